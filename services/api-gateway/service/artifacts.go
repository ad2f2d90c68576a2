package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/semaphore"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/services/api-gateway/internal/artifact"
)

const (
	// maxUploads bounds how many uploads are read at once, each of which
	// takes less than a megabyte of memory.
	maxUploads = 64
	// artifactHead is how much of a file is read before it is answered, so
	// that what fails by then is answered with its error.
	artifactHead = 64 << 10
)

// artifactDesk is what the gateway has of artifacts.
type artifactDesk struct {
	svc   *Service
	slots *semaphore.Weighted

	mu    sync.Mutex
	store *artifact.Store
}

func (s *Service) artifactRoutes() []route {
	d := &artifactDesk{svc: s}
	return []route{
		{http.MethodGet, "/endpoints/:uuid/artifacts", s.read(d.list)},
		{http.MethodGet, "/endpoints/:uuid/artifacts/:pguid/:ehash/:fname", d.download},
	}
}

func (s *Service) agentArtifactRoutes() []route {
	d := &artifactDesk{svc: s, slots: semaphore.NewWeighted(maxUploads)}
	return []route{{http.MethodPost, "/upload/dumps", s.agent(d.upload)}}
}

// open returns the object store, once its owner has made it.
func (d *artifactDesk) open(ctx context.Context) (*artifact.Store, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.store != nil {
		return d.store, nil
	}
	store, err := artifact.Open(ctx, d.svc.cfg.Bus.JS)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "artifacts cannot be reached at the moment")
	}
	d.store = store
	return store, nil
}

// upload answers 200 when the file, or the part of one, is on stable storage.
func (d *artifactDesk) upload(c *gin.Context, a agent) {
	if err := d.take(c.Request, a.uuid); err != nil {
		plainError(c.Writer, err)
		return
	}
	c.Writer.WriteHeader(http.StatusOK)
	c.Writer.WriteHeaderNow()
}

// take stores what the body of a request uploads for an endpoint. Its errors
// are for plainError.
func (d *artifactDesk) take(r *http.Request, endpoint string) error {
	body, err := openBody(r, artifact.MaxBody)
	if err == nil {
		err = d.receive(r.Context(), endpoint, body)
	}
	if err == nil {
		return nil
	}
	d.svc.cfg.Log.Warn("upload refused", "endpoint", endpoint, "remote", peer(r), "error", err)
	var f *fault.Error
	switch {
	case errors.Is(err, artifact.ErrMalformed):
		// What is left is read, so that the answer reaches the client.
		_, _ = io.Copy(io.Discard, body)
		return fault.New(fault.Internal, "Failed to decode JSON")
	case errors.Is(err, artifact.ErrStore):
		return fault.New(fault.Unavailable, "the file cannot be stored at the moment")
	case errors.Is(err, errCoding), errors.As(err, &f):
		return err
	}
	_, err = refusal(err)
	return err
}

func (d *artifactDesk) receive(ctx context.Context, endpoint string, body io.Reader) error {
	if err := d.svc.cfg.Full(); err != nil {
		return fault.New(fault.Unavailable, "the manager cannot store more files: %v", err)
	}
	if !d.slots.TryAcquire(1) {
		return fault.New(fault.Unavailable, "too many uploads at the moment")
	}
	defer d.slots.Release(1)
	store, err := d.open(ctx)
	if err != nil {
		return err
	}
	return store.Receive(ctx, endpoint, body)
}

// artifactFolder is what an endpoint has sent because of one event, as the
// admin API shows it.
type artifactFolder struct {
	// Update is when the newest of the files was stored.
	Update  time.Time `json:"update"`
	Process string    `json:"process-guid"`
	Event   string    `json:"event-hash"`
	BaseURL string    `json:"base-url"`
	Files   []string  `json:"files"`
}

// list answers with an endpoint's artifacts, one element for each event.
func (d *artifactDesk) list(ctx context.Context, q *call) (result, error) {
	if err := d.svc.remembered(ctx, q.uuid()); err != nil {
		return result{}, err
	}
	var since time.Time
	if v := q.query.Get("since"); v != "" {
		var err error
		if since, err = time.Parse(time.RFC3339, v); err != nil {
			return result{}, fault.New(fault.Invalid, "Failed to parse since parameter: %v", err)
		}
	}
	req := message.ArtifactsListRequest{Endpoint: q.uuid(), Removed: d.svc.removed()}
	base := q.http.URL.Path + "/"
	// The folder that the last file was in may go on in the next page.
	var open *artifactFolder
	return result{list: array(func(ctx context.Context) ([]byte, bool, error) {
		reply, err := ask[message.ArtifactsListReply](ctx, d.svc, message.ArtifactsList, req)
		if err != nil {
			return nil, false, err
		}
		req.After = reply.Next
		var elements []byte
		finish := func() error {
			if open == nil || open.Update.Before(since) {
				return nil
			}
			text, err := json.Marshal(open)
			if err != nil {
				return fmt.Errorf("encode artifacts: %w", err)
			}
			if len(elements) > 0 {
				elements = append(elements, ',')
			}
			elements = append(elements, text...)
			return nil
		}
		for _, a := range reply.Artifacts {
			if open == nil || open.Process != a.Process || open.Event != a.Event {
				if err := finish(); err != nil {
					return nil, false, err
				}
				open = &artifactFolder{Process: a.Process, Event: a.Event, BaseURL: base + a.Process + "/" + a.Event + "/"}
			}
			open.Files = append(open.Files, a.File)
			if a.Time.After(open.Update) {
				open.Update = a.Time.UTC()
			}
		}
		if reply.Next == "" {
			if err := finish(); err != nil {
				return nil, false, err
			}
		}
		return elements, reply.Next != "", nil
	})}, nil
}

// download answers with a file: in an envelope as base64, or as it is.
func (d *artifactDesk) download(c *gin.Context) {
	q, ok := d.svc.authorizeOperator(c)
	if !ok {
		plain(c.Writer, http.StatusForbidden, "Not Authorized")
		return
	}
	ctx := c.Request.Context()
	var f *artifactFile
	res, err := d.svc.handle(ctx, q, func(ctx context.Context, q *call) (result, error) {
		var err error
		if f, err = d.file(ctx, q); err != nil {
			return result{}, err
		}
		return result{write: f.base64}, nil
	})
	if err != nil || !f.raw {
		d.svc.respond(ctx, c.Writer, res, err)
		return
	}
	h := c.Writer.Header()
	h.Set("Content-Type", http.DetectContentType(f.head))
	// What an endpoint has sent must not run in an operator's browser.
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": f.name}))
	h.Set("X-Content-Type-Options", "nosniff")
	if f.size >= 0 {
		h.Set("Content-Length", strconv.FormatInt(f.size, 10))
	}
	if err := f.copy(c.Writer); err != nil {
		if ctx.Err() == nil {
			d.svc.cfg.Log.Error("artifact broken off", "endpoint", q.uuid(), "error", err)
		}
		panic(http.ErrAbortHandler)
	}
}

// artifactFile is a file to be answered with.
type artifactFile struct {
	name string
	raw  bool
	// size is -1 where it is not known.
	size int64
	// head is how the content begins, rest what follows.
	head []byte
	rest io.Reader
}

func (d *artifactDesk) file(ctx context.Context, q *call) (_ *artifactFile, err error) {
	f := &artifactFile{name: q.gin.Param("fname")}
	if f.raw, err = q.flag("raw"); err != nil {
		return nil, err
	}
	gunzip, err := q.flag("gunzip")
	if err != nil {
		return nil, err
	}
	if err := d.svc.remembered(ctx, q.uuid()); err != nil {
		return nil, err
	}
	if !message.IsArtifactName(f.name) {
		return nil, fault.New(fault.NotFound, "File not found")
	}
	store, err := d.open(ctx)
	if err != nil {
		return nil, err
	}
	obj, size, err := store.Get(ctx, message.ArtifactID{Endpoint: q.uuid(), Process: q.gin.Param("pguid"), Event: q.gin.Param("ehash"), File: f.name})
	if err != nil {
		return nil, err
	}
	f.size, f.rest = int64(size), obj
	if gunzip {
		zr, err := gzip.NewReader(obj)
		if err != nil {
			return nil, fault.New(fault.Invalid, "Failed to gunzip file: %v", err)
		}
		f.size, f.rest = -1, zr
	}
	var head bytes.Buffer
	if _, err = io.CopyN(&head, f.rest, artifactHead); err != nil && err != io.EOF {
		if gunzip {
			return nil, fault.New(fault.Invalid, "Failed to gunzip file: %v", err)
		}
		return nil, fault.New(fault.Unavailable, "Cannot read file: %v", err)
	}
	f.head = head.Bytes()
	return f, nil
}

func (f *artifactFile) copy(w io.Writer) error {
	if _, err := w.Write(f.head); err != nil {
		return err
	}
	_, err := io.Copy(w, f.rest)
	return err
}

// base64 writes the content as a JSON string.
func (f *artifactFile) base64(_ context.Context, w io.Writer) error {
	out := bufio.NewWriter(w)
	enc := base64.NewEncoder(base64.StdEncoding, out)
	_ = out.WriteByte('"') // its error stays
	err := f.copy(enc)
	if err == nil {
		err = enc.Close()
	}
	if err == nil {
		err = out.WriteByte('"')
	}
	if err == nil {
		err = out.Flush()
	}
	return err
}
