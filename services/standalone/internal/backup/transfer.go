package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// Bounds of the exchange with JetStream, whose requests for snapshots are those
// of its package server.
const (
	requestTimeout = 30 * time.Second
	// chunkSize is how many bytes of a snapshot come at once, window how many
	// the server sends before it waits for acknowledgements.
	chunkSize = 512 << 10
	window    = 8 << 20
	// quiet is how long the server may send nothing; it gives up earlier.
	quiet = time.Minute
	// unknown is how long it may take until the servers of a cluster know
	// which of them restores.
	unknown = 10 * time.Second
	// restoring bounds the work of the server at the end of a restore.
	restoring = time.Hour
)

// watch returns a context that ends with the connection, without which nothing
// comes any more, and when the server refuses what is asked of it, for then it
// does not answer.
func watch(ctx context.Context, nc *nats.Conn) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	nc.SetDisconnectErrHandler(func(_ *nats.Conn, err error) {
		cancel(errors.Join(errors.New("the connection to nats is lost"), err))
	})
	nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) {
			cancel(fmt.Errorf("the key is not that of a user who may do this: %w", err))
		}
	})
	return ctx, cancel
}

// ask sends a request to JetStream's API and reads the answer.
func ask(ctx context.Context, nc *nats.Conn, subject string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	reply, err := nc.RequestWithContext(ctx, subject, body)
	if err != nil {
		return fmt.Errorf("%s: %w", subject, err)
	}
	if err := json.Unmarshal(reply.Data, answer); err != nil {
		return fmt.Errorf("%s: %w", subject, err)
	}
	return nil
}

// apiError returns an answer's error, nil when there is none.
func apiError(r server.ApiResponse) error {
	if r.Error == nil {
		return nil
	}
	return r.Error
}

// exists tells whether the server has a stream.
func exists(ctx context.Context, nc *nats.Conn, name string) (bool, error) {
	var info server.JSApiStreamInfoResponse
	if err := ask(ctx, nc, "$JS.API.STREAM.INFO."+name, struct{}{}, &info); err != nil {
		return false, err
	}
	err := apiError(info.ApiResponse)
	if server.IsNatsErr(err, server.JSStreamNotFoundErr) {
		return false, nil
	}
	return err == nil, err
}

// snapshot writes JetStream's snapshot of a stream, with its consumers, to w
// and returns the stream's configuration.
func snapshot(ctx context.Context, nc *nats.Conn, name string, w io.Writer) (*server.StreamConfig, error) {
	inbox := nc.NewRespInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()             // the connection may be gone
	if err := sub.SetPendingLimits(-1, -1); err != nil { // the window is the limit
		return nil, err
	}
	var resp server.JSApiStreamSnapshotResponse
	req := server.JSApiStreamSnapshotRequest{DeliverSubject: inbox, ChunkSize: chunkSize, WindowSize: window}
	if err := ask(ctx, nc, "$JS.API.STREAM.SNAPSHOT."+name, req, &resp); err != nil {
		return nil, err
	}
	if err := apiError(resp.ApiResponse); err != nil {
		return nil, err
	}
	for {
		m, err := nextChunk(ctx, sub)
		if err != nil {
			return nil, err
		}
		if len(m.Data) == 0 {
			if status := m.Header.Get("Status"); status != "" && status != "204" {
				return nil, fmt.Errorf("the server gave up: %s %s", status, m.Header.Get("Description"))
			}
			return resp.Config, nil
		}
		if _, err := w.Write(m.Data); err != nil {
			return nil, err
		}
		if m.Reply != "" {
			if err := m.Respond(nil); err != nil {
				return nil, err
			}
		}
	}
}

func nextChunk(ctx context.Context, sub *nats.Subscription) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, quiet, fmt.Errorf("nothing came for %s", quiet))
	defer cancel()
	m, err := sub.NextMsgWithContext(ctx)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, err
	}
	return m, nil
}

// restore makes a stream of a snapshot read from r and returns its last
// sequence.
func restore(ctx context.Context, nc *nats.Conn, cfg *server.StreamConfig, state server.StreamState, r io.Reader) (uint64, error) {
	var resp server.JSApiStreamRestoreResponse
	req := server.JSApiStreamRestoreRequest{Config: *cfg, State: state}
	if err := ask(ctx, nc, "$JS.API.STREAM.RESTORE."+cfg.Name, req, &resp); err != nil {
		return 0, err
	}
	if err := apiError(resp.ApiResponse); err != nil {
		return 0, err
	}
	chunk := make([]byte, min(chunkSize, nc.MaxPayload()))
	for {
		n, err := io.ReadFull(r, chunk)
		if n > 0 {
			if _, err := send(ctx, nc, resp.DeliverSubject, chunk[:n], requestTimeout); err != nil {
				return 0, err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		} else if err != nil {
			return 0, err
		}
	}
	created, err := send(ctx, nc, resp.DeliverSubject, nil, restoring)
	if err != nil {
		return 0, err
	}
	if created.StreamInfo == nil {
		return 0, errors.New("the server did not say what it restored")
	}
	return created.StreamInfo.State.LastSeq, nil
}

// send sends a part of a snapshot and waits until the server has taken it. In a
// cluster the server that restores may not be known yet to the one that is asked;
// what reached nobody is sent again.
func send(ctx context.Context, nc *nats.Conn, subject string, data []byte, patience time.Duration) (created server.JSApiStreamCreateResponse, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var m *nats.Msg
	for known := time.Now().Add(unknown); ; {
		m, err = nc.RequestWithContext(ctx, subject, data)
		if !errors.Is(err, nats.ErrNoResponders) || time.Now().After(known) {
			break
		}
		if lifecycle.Sleep(ctx, 20*time.Millisecond) != nil {
			return created, context.Cause(ctx)
		}
	}
	if err != nil {
		return created, err
	}
	if len(m.Data) > 0 {
		if err := json.Unmarshal(m.Data, &created); err != nil {
			return created, err
		}
	}
	return created, apiError(created.ApiResponse)
}
