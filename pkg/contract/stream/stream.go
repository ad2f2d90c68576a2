package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

// Names of the streams.
const (
	Intake      = "INTAKE"
	Events      = "EVENTS"
	Alerts      = "ALERTS"
	Audit       = "AUDIT"
	DeadLetters = "DEADLETTER"
)

// EventsConsumer is the durable consumer of Events through which the
// rule-engine's replicas look at every batch. What it has not acknowledged is
// not removed.
const EventsConsumer = "rule-engine"

// Names of the key-value buckets.
const (
	Access    = "access"
	Endpoints = "endpoints"
	Rules     = "rules"
	Commands  = "commands"
	Reports   = "reports"
	Removed   = "removed"
)

// Names of the object stores.
const (
	Containers = "containers"
	Files      = "files"
	Artifacts  = "artifacts"
)

// MaxMessage is the size in bytes that a message may have on NATS; a server
// must be configured with at least this max_payload. It leaves room for the
// longest line, 4 MiB, with its detection and headers.
const MaxMessage = 8 << 20

// DuplicateWindow is how long a stream remembers message ids by itself.
// Repetitions that come later are recognised by the views.
const DuplicateWindow = 2 * time.Minute

// MarkerTTL is how long the mark of a deleted key stays in a bucket when its
// deletion asks for that. A view that was away for longer keeps what was
// deleted meanwhile, until its store is deleted.
const MarkerTTL = 30 * 24 * time.Hour

// placementTimeout bounds the wait for a server that a stream can be placed on:
// the servers of a cluster that starts tell each other what room they have a
// moment after they take requests, and at the latest 10 seconds after.
const placementTimeout = 20 * time.Second

// patience bounds how often a definition is written again to a server that
// gives no answer: one whose disk is busy is slow for a moment, and no reason
// for a service to end.
const patience = 2 * time.Minute

// overlap is longer than what an owner takes that looks at a stream and then
// changes it by what it has seen.
const overlap = 250 * time.Millisecond

// noSuitablePeers is the error code of JetStream for a stream that no server,
// or not enough of them, can take.
const noSuitablePeers jetstream.ErrorCode = 10005

// Limits are what an operator may choose. The zero value keeps everything
// for ever on one replica.
type Limits struct {
	// MaxAge is how long messages are kept; 0 means for ever. KeepBytes is the
	// size beyond which the oldest go; 0 means that none do. Of streams their
	// owner holds both, see package retention, and the server neither.
	MaxAge    time.Duration
	KeepBytes int64
	// MaxBytes bounds a stream; 0 means no bound. A full stream refuses.
	MaxBytes int64
	// Replicas is the number of copies in a cluster; 0 means 1.
	Replicas int
}

// definition returns the configuration of a stream.
func definition(name string, l Limits) (jetstream.StreamConfig, error) {
	subjects, ok := map[string]string{
		Intake:      subject.AllIntake,
		Events:      subject.AllEvents,
		Alerts:      subject.AllAlerts,
		Audit:       subject.AllAudit,
		DeadLetters: subject.AllDeadLetters,
	}[name]
	if !ok {
		return jetstream.StreamConfig{}, fmt.Errorf("no stream %q is defined", name)
	}
	cfg := jetstream.StreamConfig{
		Name:       name,
		Subjects:   []string{subjects},
		Retention:  jetstream.LimitsPolicy,
		Storage:    jetstream.FileStorage,
		Discard:    jetstream.DiscardNew,
		MaxBytes:   -1,
		MaxMsgs:    -1,
		Replicas:   max(1, l.Replicas),
		Duplicates: DuplicateWindow,
	}
	if name == Events || name == Alerts {
		// Publishers share writes to stable storage by atomic batches. Small
		// batches, alerts and headers compress well next to each other.
		// Neither in a cluster, docs/adr/0020 says why.
		if cfg.Replicas == 1 {
			cfg.AllowAtomicPublish, cfg.Compression = true, jetstream.S2Compression
		}
	}
	if l.MaxBytes > 0 {
		cfg.MaxBytes = l.MaxBytes
	}
	if l.MaxAge > 0 && l.MaxAge < cfg.Duplicates {
		cfg.Duplicates = l.MaxAge // what is gone is no reason to refuse
	}
	return cfg, nil
}

// Ensure creates a stream or brings it to its definition. Only the stream's
// owner calls it. It is idempotent, and asks a server that does not answer in
// time again, for two minutes. What it changes in a stream that is there
// holds against another owner that was amid a removal; of two that want
// different things the last one wins.
func Ensure(ctx context.Context, js jetstream.JetStream, name string, l Limits) error {
	cfg, err := definition(name, l)
	if err != nil {
		return err
	}
	is := func(c jetstream.StreamConfig) bool {
		return c.MaxBytes == cfg.MaxBytes && c.Replicas == cfg.Replicas && c.Duplicates == cfg.Duplicates &&
			c.Compression == cfg.Compression && c.AllowAtomicPublish == cfg.AllowAtomicPublish
	}
	_, err = patiently(ctx, func() (struct{}, error) {
		return struct{}{}, define(ctx, js, name, is, func(metadata map[string]string) error {
			cfg.Metadata = metadata
			_, err := placed(ctx, func() (jetstream.Stream, error) { return js.CreateOrUpdateStream(ctx, cfg) })
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("stream %s: %w", name, err)
	}
	return nil
}

// define writes the definition of a stream until the stream is what it is to be,
// and stays so for longer than another owner can take that has looked at it
// before. It gives up after a few times, as then somebody wants something else.
func define(ctx context.Context, js jetstream.JetStream, name string, is func(jetstream.StreamConfig) bool, write func(metadata map[string]string) error) error {
	for range 3 {
		before, err := lookAt(ctx, js, name)
		if err != nil {
			return err
		}
		if before == nil {
			return write(nil)
		}
		if err := write(keptMark(before.Config)); err != nil {
			return err
		}
		after, err := lookAt(ctx, js, name)
		if err != nil || after == nil {
			return err
		}
		if first := leftMeanwhile(before, after); first > RemovedBelow(after.Config) {
			if _, err := mark(ctx, js, name, first); err != nil {
				return err
			}
		}
		if is(before.Config) && is(after.Config) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(overlap):
		}
		if now, err := lookAt(ctx, js, name); err != nil || now != nil && is(now.Config) {
			return err
		}
	}
	return nil
}

// lookAt returns what a stream is, nil where there is none.
func lookAt(ctx context.Context, js jetstream.JetStream, name string) (*jetstream.StreamInfo, error) {
	s, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return s.CachedInfo(), nil
}

// placed repeats what creates a stream while servers that could take it are
// missing, for placementTimeout at most.
func placed[T any](ctx context.Context, create func() (T, error)) (T, error) {
	for end := time.Now().Add(placementTimeout); ; {
		made, err := create()
		if api := (*jetstream.APIError)(nil); !errors.As(err, &api) || api.ErrorCode != noSuitablePeers || time.Now().After(end) {
			return made, err
		}
		select {
		case <-ctx.Done():
			return made, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// patiently repeats what a server did not answer in time, until ctx ends or
// patience is over. What is repeated may have been done.
func patiently[T any](ctx context.Context, do func() (T, error)) (T, error) {
	for end := time.Now().Add(patience); ; {
		v, err := do()
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil || time.Now().After(end) {
			return v, err
		}
	}
}

// EnsureKV creates a key-value bucket or brings it to its definition, with
// the given number of past values of each key kept. Only the bucket's owner
// calls it. It is idempotent and as patient as Ensure.
func EnsureKV(ctx context.Context, js jetstream.JetStream, bucket string, history uint8, replicas int) (jetstream.KeyValue, error) {
	cfg := jetstream.KeyValueConfig{
		Bucket: bucket, History: max(1, history), Replicas: max(1, replicas), Storage: jetstream.FileStorage,
		LimitMarkerTTL: MarkerTTL,
	}
	kv, err := patiently(ctx, func() (jetstream.KeyValue, error) {
		return placed(ctx, func() (jetstream.KeyValue, error) { return js.CreateOrUpdateKeyValue(ctx, cfg) })
	})
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", bucket, err)
	}
	return kv, nil
}

// EnsureObjects creates an object store or brings it to its definition. Only
// the store's owner calls it. It is idempotent and as patient as Ensure.
func EnsureObjects(ctx context.Context, js jetstream.JetStream, name string, l Limits) (jetstream.ObjectStore, error) {
	cfg := jetstream.ObjectStoreConfig{Bucket: name, Storage: jetstream.FileStorage, Replicas: max(1, l.Replicas), MaxBytes: -1}
	if l.MaxBytes > 0 {
		cfg.MaxBytes = l.MaxBytes
	}
	behind, _ := ObjectStream(name)
	is := func(c jetstream.StreamConfig) bool { return c.MaxBytes == cfg.MaxBytes && c.Replicas == cfg.Replicas }
	o, err := patiently(ctx, func() (o jetstream.ObjectStore, err error) {
		err = define(ctx, js, behind, is, func(metadata map[string]string) (err error) {
			cfg.Metadata = metadata
			o, err = placed(ctx, func() (jetstream.ObjectStore, error) { return js.CreateOrUpdateObjectStore(ctx, cfg) })
			return err
		})
		return o, err
	})
	if err != nil {
		return nil, fmt.Errorf("object store %s: %w", name, err)
	}
	return o, nil
}

// KVStream returns the name of the stream behind a key-value bucket, and the
// filter over all its keys.
func KVStream(bucket string) (name, filter string) {
	return "KV_" + bucket, "$KV." + bucket + ".>"
}

// ObjectStream returns the name of the stream behind an object store, and the
// filter over the descriptions of all its objects.
func ObjectStream(store string) (name, filter string) {
	return "OBJ_" + store, "$O." + store + ".M.>"
}

// Record returns the names of all streams that make up the record, with those
// behind buckets and object stores.
func Record() []string {
	names := []string{Intake, Events, Alerts, Audit, DeadLetters}
	for _, bucket := range []string{Access, Endpoints, Rules, Commands, Reports, Removed} {
		name, _ := KVStream(bucket)
		names = append(names, name)
	}
	for _, store := range []string{Containers, Files, Artifacts} {
		name, _ := ObjectStream(store)
		names = append(names, name)
	}
	return names
}

// ObjectChunks returns the subject of the chunks of one object, which its
// description names by its nuid.
func ObjectChunks(store, nuid string) string {
	return "$O." + store + ".C." + nuid
}

// Following returns how a consumer that is followed for ever asks for messages.
// The server tells a service that runs apart every 5 seconds that it is there, as
// that has to notice when it is cut off. In one process neither can be without
// the other: every 30 seconds, and one request waits for ten minutes.
func Following(js jetstream.JetStream) []jetstream.PullConsumeOpt {
	if js.Conn().Opts.InProcessServer == nil {
		return nil
	}
	return []jetstream.PullConsumeOpt{jetstream.PullExpiry(10 * time.Minute), jetstream.PullHeartbeat(30 * time.Second)}
}

// LastSequence returns the sequence of the newest message of a stream on
// subjects that match a filter, 0 when there is none. It asks the leader of the
// stream itself, by the request STREAM.MSG.GET of the JetStream API: the client
// takes the answer of any replica of a bucket, which may be behind, and asks with
// the subject as part of the request's own, which no wildcard can be. A context
// without a deadline bounds the wait for the answer to 5 seconds, as it does with
// the client.
func LastSequence(ctx context.Context, js jetstream.JetStream, name, filter string) (uint64, error) {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
	}
	m, err := js.Conn().RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+name, fmt.Appendf(nil, `{"last_by_subj":%q}`, filter))
	if err != nil {
		return 0, err
	}
	var reply struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Seq uint64 `json:"seq"`
		} `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &reply); err != nil {
		return 0, err
	}
	if reply.Error != nil && reply.Error.ErrorCode != jetstream.JSErrCodeMessageNotFound {
		return 0, reply.Error
	}
	return reply.Message.Seq, nil
}

// Await waits until a stream exists, whose owner may still be starting. It
// ends with ctx.
func Await(ctx context.Context, js jetstream.JetStream, name string) (jetstream.Stream, error) {
	for {
		s, err := js.Stream(ctx, name)
		if err == nil {
			return s, nil
		}
		if ctx.Err() == nil && !errors.Is(err, jetstream.ErrStreamNotFound) &&
			!errors.Is(err, jetstream.ErrNoStreamResponse) && !errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("stream %s: %w", name, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for stream %s: %w", name, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
