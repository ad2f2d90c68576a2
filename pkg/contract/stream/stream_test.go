package stream_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

func js(t *testing.T) jetstream.JetStream {
	t.Helper()
	return natstest.Start(t).Bus(t, "test").JS
}

func config(t *testing.T, js jetstream.JetStream, name string) jetstream.StreamConfig {
	t.Helper()
	s, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().Config
}

// A stream is what its definition and the operator's limits say, also when it
// was there with others. How long messages are kept is its owner's work.
func TestEnsure(t *testing.T) {
	js := js(t)
	for _, tc := range []struct{ name, subjects string }{
		{stream.Events, subject.AllEvents}, {stream.Alerts, subject.AllAlerts},
		{stream.Audit, subject.AllAudit}, {stream.DeadLetters, subject.AllDeadLetters},
	} {
		for _, limits := range []struct {
			name       string
			set        stream.Limits
			maxBytes   int64
			duplicates time.Duration
		}{
			{"none", stream.Limits{}, -1, stream.DuplicateWindow},
			{"some", stream.Limits{MaxAge: 30 * 24 * time.Hour, KeepBytes: 32 << 20, MaxBytes: 64 << 20, Replicas: 1}, 64 << 20, stream.DuplicateWindow},
			{"short", stream.Limits{MaxAge: time.Minute}, -1, time.Minute},
			{"short again", stream.Limits{MaxAge: time.Minute}, -1, time.Minute},
		} {
			t.Run(tc.name+"/"+limits.name, func(t *testing.T) {
				if err := stream.Ensure(t.Context(), js, tc.name, limits.set); err != nil {
					t.Fatal(err)
				}
				c := config(t, js, tc.name)
				if len(c.Subjects) != 1 || c.Subjects[0] != tc.subjects || c.MaxAge != 0 || c.MaxBytes != limits.maxBytes ||
					c.Replicas != 1 || c.Duplicates != limits.duplicates || c.Storage != jetstream.FileStorage ||
					c.Discard != jetstream.DiscardNew || c.Retention != jetstream.LimitsPolicy {
					t.Errorf("got %+v", c)
				}
			})
		}
	}
	if err := stream.Ensure(t.Context(), js, "OTHER", stream.Limits{}); err == nil || !strings.Contains(err.Error(), `"OTHER"`) {
		t.Errorf("a stream that is not defined: %v", err)
	}
}

// A full stream refuses; it never forgets what it has acknowledged.
func TestFullStreamRefuses(t *testing.T) {
	js := js(t)
	if err := stream.Ensure(t.Context(), js, stream.Events, stream.Limits{MaxBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	const name = "edr.events.9.03e31275-2277-d8e0-bb5f-480fac7ee4ef"
	stored, data := uint64(0), make([]byte, 16<<10)
	var err error
	for range 5 {
		if _, err = js.Publish(t.Context(), name, data); err != nil {
			break
		}
		stored++
	}
	if apiErr := new(jetstream.APIError); !errors.As(err, &apiErr) || !strings.Contains(apiErr.Description, "maximum bytes exceeded") {
		t.Errorf("after %d messages: %v", stored, err)
	}
	s, err := js.Stream(t.Context(), stream.Events)
	if err != nil {
		t.Fatal(err)
	}
	if st := s.CachedInfo().State; st.Msgs != stored || st.FirstSeq != 1 || stored == 0 {
		t.Errorf("%d messages from %d on, want all %d", st.Msgs, st.FirstSeq, stored)
	}
}

func TestEnsureKV(t *testing.T) {
	js := js(t)
	for _, tc := range []struct {
		history uint8
		want    int64
	}{{0, 1}, {5, 5}, {5, 5}} {
		kv, err := stream.EnsureKV(t.Context(), js, stream.Rules, tc.history, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kv.Put(t.Context(), "key.of.it", []byte("value")); err != nil {
			t.Fatal(err)
		}
		name, filter := stream.KVStream(stream.Rules)
		c := config(t, js, name)
		if c.MaxMsgsPerSubject != tc.want || len(c.Subjects) != 1 || c.Subjects[0] != filter || c.Replicas != 1 ||
			c.Storage != jetstream.FileStorage || c.SubjectDeleteMarkerTTL != stream.MarkerTTL || c.MaxAge != 0 {
			t.Errorf("history %d: %+v", tc.history, c)
		}
	}
	if _, err := stream.EnsureKV(t.Context(), js, "not a bucket", 1, 1); !errors.Is(err, jetstream.ErrInvalidBucketName) || !strings.Contains(err.Error(), "not a bucket") {
		t.Errorf("bad name: %v", err)
	}
}

func TestEnsureObjects(t *testing.T) {
	js := js(t)
	for _, tc := range []struct {
		set      stream.Limits
		maxBytes int64
	}{
		{stream.Limits{}, -1},
		{stream.Limits{MaxAge: time.Hour, MaxBytes: 32 << 20, Replicas: 1}, 32 << 20},
	} {
		o, err := stream.EnsureObjects(t.Context(), js, stream.Files, tc.set)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.PutString(t.Context(), "tool.exe", "MZ"); err != nil {
			t.Fatal(err)
		}
		if c := config(t, js, "OBJ_"+stream.Files); c.MaxBytes != tc.maxBytes || c.MaxAge != 0 || c.Replicas != 1 || c.Storage != jetstream.FileStorage {
			t.Errorf("%+v: %+v", tc.set, c)
		}
		if s, err := o.GetString(t.Context(), "tool.exe"); err != nil || s != "MZ" {
			t.Errorf("%q, %v", s, err)
		}
	}
	if _, err := stream.EnsureObjects(t.Context(), js, "not a store", stream.Limits{}); err == nil || !strings.Contains(err.Error(), "not a store") {
		t.Errorf("bad name: %v", err)
	}
}

// The names of what lies behind an object store are those that JetStream
// gives: its descriptions and chunks are found under them.
func TestObjectNames(t *testing.T) {
	js := js(t)
	o, err := stream.EnsureObjects(t.Context(), js, stream.Containers, stream.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	info, err := o.PutString(t.Context(), "sysmon", "lines")
	if err != nil {
		t.Fatal(err)
	}
	name, descriptions := stream.ObjectStream(stream.Containers)
	s, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	for _, filter := range []string{descriptions, stream.ObjectChunks(stream.Containers, info.NUID)} {
		in, err := s.Info(t.Context(), jetstream.WithSubjectFilter(filter))
		if err != nil || len(in.State.Subjects) != 1 {
			t.Errorf("%s: %v", filter, err)
		}
	}
}

// Await outlasts the absence of a stream and ends with its context.
func TestAwait(t *testing.T) {
	js := js(t)
	type result struct {
		s   jetstream.Stream
		err error
	}
	found := make(chan result, 1)
	go func() {
		s, err := stream.Await(t.Context(), js, stream.Alerts)
		found <- result{s, err}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := stream.Await(ctx, js, stream.Alerts); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), stream.Alerts) {
		t.Errorf("context at its end: %v", err)
	}
	if err := stream.Ensure(t.Context(), js, stream.Alerts, stream.Limits{}); err != nil {
		t.Fatal(err)
	}
	if r := <-found; r.err != nil || r.s.CachedInfo().Config.Name != stream.Alerts {
		t.Errorf("got %v", r.err)
	}
	if _, err := stream.Await(t.Context(), js, "not a name"); !errors.Is(err, jetstream.ErrInvalidStreamName) {
		t.Errorf("bad name: %v", err)
	}
}
