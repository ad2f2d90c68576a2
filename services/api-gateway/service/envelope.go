package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
)

const (
	contentJSON = "application/json; charset=utf-8"
	contentText = "text/plain; charset=utf-8"
)

// envelope is what every answer of the admin API is, members in this order.
type envelope struct {
	Data    any    `json:"data"`
	Message string `json:"message"`
	Error   string `json:"error"`
}

// result is a successful answer. Without a message it is OK.
type result struct {
	data    any
	message string
	// list, if not nil, gives the data instead, page by page.
	list *listing
	// write, if not nil, gives the data instead, by writing it. An error
	// breaks the connection off.
	write func(ctx context.Context, w io.Writer) error
}

// listing is data too large to be held at once: an array or an object.
type listing struct {
	open, close byte
	// next returns the elements of the next page, joined by commas, and
	// whether more pages follow.
	next func(ctx context.Context) (elements []byte, more bool, err error)
}

// array lists the pages of a JSON array.
func array(next func(ctx context.Context) ([]byte, bool, error)) *listing {
	return &listing{open: '[', close: ']', next: next}
}

// object lists the pages of a JSON object.
func object(next func(ctx context.Context) ([]byte, bool, error)) *listing {
	return &listing{open: '{', close: '}', next: next}
}

// respond writes a result, or the error in its place. Both have status 200.
func (s *Service) respond(ctx context.Context, w http.ResponseWriter, res result, err error) {
	switch {
	case err != nil:
		writeEnvelope(w, envelope{Message: "NOK", Error: fault.From(err).Message})
	case res.list != nil:
		s.stream(ctx, w, res.list)
	case res.write != nil:
		s.streamValue(ctx, w, res.write)
	default:
		writeEnvelope(w, envelope{Data: res.data, Message: or(res.message, "OK")})
	}
}

func writeEnvelope(w http.ResponseWriter, e envelope) {
	body, err := json.Marshal(e)
	if err != nil {
		panic(fmt.Errorf("encode answer: %w", err))
	}
	w.Header().Set("Content-Type", contentJSON)
	// A client that is gone needs no answer.
	_, _ = w.Write(body)
}

// stream writes a listing. The next page is fetched while the last is being
// written, so that two are in memory at most. An error on the first page is
// answered; after that the connection is broken off, so that the client
// cannot take a part for the whole.
func (s *Service) stream(ctx context.Context, w http.ResponseWriter, l *listing) {
	ctx, cancel := context.WithCancel(ctx)
	pages := s.fetch(ctx, l.next)
	defer func() {
		cancel()
		for range pages { // until the fetching has ended
		}
	}()
	write := func(b []byte) {
		if _, err := w.Write(b); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	open, elements := true, false
	for p := range pages {
		if open {
			if p.err != nil {
				writeEnvelope(w, envelope{Message: "NOK", Error: fault.From(p.err).Message})
				return
			}
			w.Header().Set("Content-Type", contentJSON)
			write(append([]byte(`{"data":`), l.open))
			open = false
		}
		if p.err != nil {
			panic(http.ErrAbortHandler)
		}
		if len(p.elements) > 0 {
			if elements {
				write([]byte{','})
			}
			write(p.elements)
			elements = true
		}
		if !p.more {
			write(append([]byte{l.close}, `,"message":"OK","error":""}`...))
			return
		}
	}
	panic(http.ErrAbortHandler) // ctx has ended: the client is gone, or the gateway stops
}

type page struct {
	elements []byte
	more     bool
	err      error
}

// fetch calls next for one page after the other and closes the channel when
// it ends, by itself or with ctx.
func (s *Service) fetch(ctx context.Context, next func(context.Context) ([]byte, bool, error)) <-chan page {
	pages := make(chan page)
	go func() {
		defer close(pages)
		for {
			p := s.fetchOne(ctx, next)
			select {
			case pages <- p:
			case <-ctx.Done():
				return
			}
			if p.err != nil || !p.more {
				return
			}
		}
	}()
	return pages
}

// fetchOne turns a panic into an error, for it runs outside of the request's
// own goroutine.
func (s *Service) fetchOne(ctx context.Context, next func(context.Context) ([]byte, bool, error)) (p page) {
	defer func() {
		if v := recover(); v != nil {
			s.metrics.panics.Inc()
			s.cfg.Log.Error("listing panicked", "panic", v, "stack", string(debug.Stack()))
			p = page{err: fault.New(fault.Internal, "internal error")}
		}
	}()
	p.elements, p.more, p.err = next(ctx)
	return p
}

// plain answers with a text, as net/http's Error does.
func plain(w http.ResponseWriter, code int, text string) { http.Error(w, text, code) }
