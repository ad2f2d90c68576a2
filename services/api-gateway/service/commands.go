package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	natsstream "github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/objects"
	"github.com/nightjar-edr/nightjar/services/api-gateway/internal/command"
)

const (
	// maxCommand bounds the body of a request for a command, maxResult that
	// of a result, both inflated.
	maxCommand = 1 << 20
	maxResult  = 512 << 20
	// resultMemory bounds what all results together hold in memory while they
	// are read; oneResultMemory what one may.
	resultMemory    = 96 << 20
	oneResultMemory = 32 << 20
	// waitDefault and waitMax bound how long wait=true waits; waitRefresh is
	// how often the command is looked at though no change was noticed.
	waitDefault = 10 * time.Second
	waitMax     = time.Hour
	waitRefresh = 5 * time.Second
	// discardTimeout bounds the deletion of values that are not needed.
	discardTimeout = 10 * time.Second
	// historyPage is how many commands the list of an endpoint's commands
	// shows unless asked for more or fewer.
	historyPage = 100
)

// commandDesk is what the gateway has of commands.
type commandDesk struct {
	pending *pendingCommands
	memory  *semaphore.Weighted
	// malformed counts the results that could not be read; what becomes of
	// all others is counted by command-dispatch.
	malformed prometheus.Counter

	mu    sync.Mutex
	files *objects.Store
}

func newCommandDesk(s *Service) *commandDesk {
	d := &commandDesk{pending: newPendingCommands(s.cfg.Bus.JS, s.cfg.Log), memory: semaphore.NewWeighted(resultMemory),
		malformed: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "malformed_results_total", Help: "Results of commands that could not be read and were ignored."})}
	s.cfg.Metrics.MustRegister(d.malformed)
	return d
}

// store returns the object store files, once its owner has made it.
func (d *commandDesk) store(ctx context.Context, s *Service) (*objects.Store, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files != nil {
		return d.files, nil
	}
	files, err := objects.Open(ctx, s.cfg.Bus.JS, natsstream.Files)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "object store %s cannot be reached: %v", natsstream.Files, err)
	}
	d.files = files
	return files, nil
}

// uploads returns uploads of values of an endpoint's commands. They are refused
// while there is no room for more.
func (s *Service) uploads(files *objects.Store, endpoint string) *command.Uploads {
	up := command.NewUploads(files, endpoint)
	up.Room = func(ctx context.Context) error {
		if err := s.cfg.Full(); err != nil {
			return fault.New(fault.Unavailable, "the manager cannot store more files: %v", err)
		}
		n, err := files.Size(ctx)
		if err != nil {
			return fault.New(fault.Unavailable, "object store %s cannot be reached: %v", natsstream.Files, err)
		}
		if n >= uint64(s.cfg.MaxCommandFiles) {
			return fault.New(fault.Unavailable, "the files of commands have %d bytes, at most %d are kept (max-command-files)", n, s.cfg.MaxCommandFiles)
		}
		return nil
	}
	return up
}

// discard deletes uploads that nothing refers to. It does so even when the
// client is gone.
func (s *Service) discard(ctx context.Context, up *command.Uploads, keep ...string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTimeout)
	defer cancel()
	if err := up.Discard(ctx, keep...); err != nil {
		s.cfg.Log.Warn("values of a command not deleted; they will be later", "error", err)
	}
}

// refused tells whether an error means that a request was not carried out and
// cannot be any more, as opposed to one whose fate is not known.
func refused(err error) bool {
	f := fault.From(err)
	return f != nil && f.Kind != fault.Unavailable && f.Kind != fault.Internal
}

// newest returns an endpoint's newest command, nil when it has none.
func (s *Service) newestCommand(ctx context.Context, uuid string) (*message.CommandRecord, error) {
	reply, err := ask[message.CommandReply](ctx, s, message.CommandsGet, message.CommandRequest{Endpoint: uuid})
	return reply.Command, err
}

// document makes the answer of a document, whose objects must be there.
func (s *Service) document(ctx context.Context, d *command.Document, r *message.CommandRecord) (result, error) {
	if text, ok := d.Inline(); ok {
		return result{data: json.RawMessage(text)}, nil
	}
	files, err := s.commands.store(ctx, s)
	if err != nil {
		return result{}, err
	}
	if err := command.Check(ctx, files, r); err != nil {
		return result{}, fault.New(fault.Unavailable, "%v", err)
	}
	return result{write: func(ctx context.Context, w io.Writer) error { return d.Write(ctx, files, w) }}, nil
}

// streamValue writes an envelope whose data write gives.
func (s *Service) streamValue(ctx context.Context, w http.ResponseWriter, write func(context.Context, io.Writer) error) {
	w.Header().Set("Content-Type", contentJSON)
	out := bufio.NewWriterSize(w, 64<<10)
	_, err := out.WriteString(`{"data":`)
	if err == nil {
		err = write(ctx, out)
	}
	if err == nil {
		_, err = out.WriteString(`,"message":"OK","error":""}`)
	}
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		if ctx.Err() == nil {
			s.cfg.Log.Error("answer broken off", "error", err)
		}
		panic(http.ErrAbortHandler)
	}
}

// showEndpoint answers with an endpoint and its newest command within. It is
// shown without one when command-dispatch cannot be asked.
func (s *Service) showEndpoint(ctx context.Context, e message.Endpoint) (result, error) {
	r, err := s.newestCommand(ctx, e.UUID)
	if err != nil {
		s.cfg.Log.Warn("endpoint shown without its command", "endpoint", e.UUID, "error", err)
	}
	return s.endpointWith(ctx, e, r)
}

// endpointWith answers with an endpoint and a command, if any, which stands
// before its last member.
func (s *Service) endpointWith(ctx context.Context, e message.Endpoint, r *message.CommandRecord) (result, error) {
	if r == nil {
		return result{data: e}, nil
	}
	text, err := json.Marshal(e)
	if err != nil {
		return result{}, fmt.Errorf("encode endpoint: %w", err)
	}
	// Within strings quotes are escaped, so this finds the member alone.
	at := bytes.LastIndex(text, []byte(`"last-connection":`))
	if at < 0 {
		return result{}, fmt.Errorf("endpoint without last-connection")
	}
	var d command.Document
	d.Text(string(text[:at]))
	d.Text(`"command":`)
	d.Command(r)
	d.Text(",")
	d.Text(string(text[at:]))
	return s.document(ctx, &d, r)
}

// takeCommands deletes the commands of an endpoint that was deleted, and
// returns the newest without the values that are gone with it. An endpoint is
// deleted even when that fails: nobody can ask for its commands any more.
func (s *Service) takeCommands(ctx context.Context, uuid string) *message.CommandRecord {
	r, err := s.newestCommand(ctx, uuid)
	if err == nil {
		_, err = ask[message.CommandsForgetReply](ctx, s, message.CommandsForget, message.CommandRequest{Endpoint: uuid})
	}
	if err != nil {
		s.cfg.Log.Warn("commands of a deleted endpoint not deleted", "endpoint", uuid, "error", err)
	}
	if r == nil {
		return nil
	}
	gone := func(b *message.CommandBlob) *message.CommandBlob {
		if b == nil || b.Object != "" {
			return nil
		}
		return b
	}
	r.Stdout, r.Stderr = gone(r.Stdout), gone(r.Stderr)
	for i := range r.Drop {
		r.Drop[i].Data = gone(r.Drop[i].Data)
	}
	for path, f := range r.Fetch {
		f.Data = gone(f.Data)
		r.Fetch[path] = f
	}
	return r
}
