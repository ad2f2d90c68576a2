package backup

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/s2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats-server/v2/server/archive"
	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// streams returns the streams to back up, in their order:
//
//   - removals before the streams that they name, for one names sequences up to
//     which all of an endpoint is removed: were they beyond the restored ends,
//     what is to come would be removed, too;
//   - INTAKE before EVENTS, to which its messages are moved: one that is moved
//     meanwhile is in the backup twice, which counts for once, and none is missed;
//   - reports before ALERTS, for a clear names a sequence of ALERTS: were it
//     beyond the restored end, alerts to come would not count;
//   - EVENTS before ALERTS, for the rule-engine's position in EVENTS says that
//     the alerts up to there stand in ALERTS;
//   - endpoints behind everything that comes from endpoints, so that each is
//     known to whom it belongs;
//   - commands before the files that they name;
//   - AUDIT last, so that whatever is in the backup has its trail.
func streams() []string {
	kv := func(bucket string) string { name, _ := stream.KVStream(bucket); return name }
	objects := func(store string) string { name, _ := stream.ObjectStream(store); return name }
	return []string{
		kv(stream.Removed), kv(stream.Reports), stream.Intake, stream.Events, stream.DeadLetters, stream.Alerts, objects(stream.Artifacts),
		kv(stream.Commands), objects(stream.Files), kv(stream.Rules), objects(stream.Containers),
		kv(stream.Endpoints), kv(stream.Access), stream.Audit,
	}
}

// keepsAll tells whether a stream keeps its messages until they are too old, in
// their order, so that a snapshot misses none that came before it.
func keepsAll(name string) bool { return !strings.Contains(name, "_") }

// copyStream writes a stream into the archive. It returns nil when the stream
// does not exist.
func copyStream(ctx context.Context, nc *nats.Conn, tw *tar.Writer, name string, n *int) (*Stream, error) {
	if there, err := exists(ctx, nc, name); err != nil || !there {
		return nil, err
	}
	p := newParts(tw, streamsPrefix+name+"/snapshot", n)
	pr, pw := io.Pipe()
	type summary struct {
		stream *Stream
		err    error
	}
	read := make(chan summary, 1)
	go func() {
		s, err := readSnapshot(pr, name)
		if err == nil {
			_, err = io.Copy(io.Discard, pr) // what the compression ends with
		}
		_ = pr.CloseWithError(err) // never fails
		read <- summary{s, err}
	}()
	cfg, err := snapshot(ctx, nc, name, io.MultiWriter(p, pw))
	_ = pw.CloseWithError(err) // never fails
	got := <-read
	if err = cmp.Or(err, got.err); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	s := got.stream
	s.Config = *cfg
	if s.Snapshot, err = p.close(); err != nil {
		return nil, err
	}
	if !keepsAll(name) {
		if err := s.copyTail(ctx, nc, tw, n); err != nil {
			return nil, fmt.Errorf("what came meanwhile: %w", err)
		}
	}
	return s, nil
}

// readSnapshot reads a snapshot to its end and says what it holds.
func readSnapshot(r io.Reader, name string) (*Stream, error) {
	s := &Stream{Name: name}
	ar := archive.NewReader(s2.NewReader(r))
	h, err := ar.Next()
	if err != nil {
		return nil, err
	}
	var state server.StreamState
	if h.Name != stateName {
		return nil, fmt.Errorf("it begins with %q, want %s", h.Name, stateName)
	}
	if err := json.NewDecoder(ar).Decode(&state); err != nil {
		return nil, fmt.Errorf("%s: %w", stateName, err)
	}
	s.FirstSeq, s.LastSeq = state.FirstSeq, state.LastSeq
	for {
		h, err := ar.Next()
		switch {
		case err != nil:
			return nil, fmt.Errorf("cut off: %w", err)
		case h.Sequence > 0:
			s.Messages++
		case h.Name == "":
			return s, nil
		default:
			var c server.SnapshotConsumerState
			if err := json.NewDecoder(ar).Decode(&c); err != nil {
				return nil, fmt.Errorf("%s: %w", h.Name, err)
			}
			if c.ConsumerConfig != nil && c.ConsumerState != nil && c.Durable != "" {
				s.Consumers = append(s.Consumers, Consumer{Name: c.Durable, AckFloor: c.AckFloor.Stream})
			}
		}
	}
}

func writeMessage(aw *archive.Writer, h *archive.Header, parts ...[]byte) error {
	if err := aw.WriteHeader(h); err != nil {
		return err
	}
	for _, b := range parts {
		if _, err := aw.Write(b); err != nil {
			return err
		}
	}
	return nil
}
