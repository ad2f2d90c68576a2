package removal_test

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	"github.com/nightjar-edr/nightjar/pkg/removal"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

const (
	alpha = "03e31275-2277-d8e0-bb5f-480fac7ee4ef"
	beta  = "13e31275-2277-d8e0-bb5f-480fac7ee4ef"
)

// service keeps removals as services do.
type service struct {
	t   *testing.T
	bus *bus.Bus
	kv  jetstream.KeyValue
	dir string
	*removal.Removals
	stop func()

	mu             sync.Mutex
	obeyed, clears []string
	// failing is what clearing returns.
	failing error
}

func newService(t *testing.T) *service {
	b := natstest.Start(t).Bus(t, "test")
	return &service{t: t, bus: b, kv: natstest.Removed(t, b), dir: filepath.Join(t.TempDir(), "store")}
}

func (s *service) start() {
	s.t.Helper()
	db, err := store.Open(store.Options{Dir: s.dir})
	if err != nil {
		s.t.Fatal(err)
	}
	note := func(list *[]string) func(removal.Removal) error {
		return func(r removal.Removal) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			*list = append(*list, r.Endpoint+" "+strconv.FormatUint(r.Record.Generation, 10))
			return s.failing
		}
	}
	obey, clear := note(&s.obeyed), note(&s.clears)
	s.Removals, err = removal.New(removal.Config{
		View:  view.Config{DB: db, JS: s.bus.JS, Log: lifecycle.Discard()},
		Obey:  func(r removal.Removal) error { _ = obey(r); return nil },
		Clear: map[string]func(context.Context, removal.Removal) error{"S": func(_ context.Context, r removal.Removal) error { return clear(r) }},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, db.Close()); err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(s.stop)
}

func (s *service) put(endpoint string, r message.RemovalRecord) uint64 {
	s.t.Helper()
	data, err := json.Marshal(r)
	if err != nil {
		s.t.Fatal(err)
	}
	revision, err := s.kv.Put(s.t.Context(), endpoint, data)
	if err != nil {
		s.t.Fatal(err)
	}
	return revision
}

// took returns what was obeyed and cleared since the last call.
func (s *service) took() (obeyed, cleared []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	obeyed, cleared = s.obeyed, s.clears
	s.obeyed, s.clears = nil, nil
	return obeyed, cleared
}

// A removal is obeyed before the view has passed it, cleared until that has
// worked, also after a restart, and both once; a store that is built anew does
// both again.
func TestRemovalIsObeyedAndCleared(t *testing.T) {
	s := newService(t)
	s.failing = errors.New("not yet")
	s.start()
	revision := s.put(alpha, message.RemovalRecord{Generation: 7, Ends: map[string]uint64{"S": 3}})
	if err := s.Obeyed(t.Context(), revision); err != nil {
		t.Fatal(err)
	}
	if obeyed, _ := s.took(); !slices.Equal(obeyed, []string{alpha + " 7"}) || s.Generation(alpha) != 7 || s.Generation(beta) != 0 {
		t.Errorf("obeyed %v, generation %d", obeyed, s.Generation(alpha))
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Cleared(short, alpha, revision); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("told to be cleared: %v", err)
	}
	s.stop()
	s.took()
	s.failing = nil
	check := func(when string, obeyed, cleared []string) {
		t.Helper()
		s.start()
		if err := s.Cleared(t.Context(), alpha, revision); err != nil {
			t.Fatal(err)
		}
		if o, c := s.took(); !slices.Equal(o, obeyed) || !slices.Equal(c, cleared) || s.Generation(alpha) != 7 {
			t.Errorf("%s: obeyed %v and cleared %v, want %v and %v", when, o, c, obeyed, cleared)
		}
		if reach, err := s.Reach("S")(t.Context()); err != nil || reach != 3 {
			t.Errorf("%s: removed up to %d, %v", when, reach, err)
		}
		s.stop()
	}
	check("after a restart", nil, []string{alpha + " 7"})
	check("after another restart", nil, nil)
	s.dir = filepath.Join(t.TempDir(), "anew")
	check("built anew", []string{alpha + " 7"}, []string{alpha + " 7"})
}

// A stream loses what is removed, and nothing else: neither of another endpoint,
// nor of the endpoint from after the removal, wherever that stands.
func TestStreamIsCleared(t *testing.T) {
	b := natstest.Start(t).Bus(t, "test")
	if _, err := b.JS.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.*.*"}}); err != nil {
		t.Fatal(err)
	}
	publish := func(endpoint string, generation uint64) uint64 {
		m := nats.NewMsg("s.x." + endpoint)
		if generation > 0 {
			m.Header.Set(message.HeaderGeneration, strconv.FormatUint(generation, 10))
		}
		ack, err := b.JS.PublishMsg(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		return ack.Sequence
	}
	publish(alpha, 0)           // 1
	publish(beta, 0)            // 2
	end := publish(alpha, 6)    // 3
	publish(alpha, 6)           // 4, on its way
	publish(alpha, 7)           // 5
	publish(beta, 0)            // 6
	publish(alpha, 0)           // 7, on its way
	settled := publish(beta, 0) // 8
	publish(alpha, 7)           // 9
	clear := removal.Stream(b.JS, "S", func(endpoint string) string { return "s.*." + endpoint })
	r := removal.Removal{Endpoint: alpha, Record: message.RemovalRecord{Generation: 7, Ends: map[string]uint64{"S": end}}}
	check := func(want ...uint64) {
		t.Helper()
		for range 2 { // again is harmless
			if err := clear(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		s, err := b.JS.Stream(t.Context(), "S")
		if err != nil {
			t.Fatal(err)
		}
		var got []uint64
		for seq := uint64(1); seq <= 9; seq++ {
			if _, err := s.GetMsg(t.Context(), seq); err == nil {
				got = append(got, seq)
			} else if !errors.Is(err, jetstream.ErrMsgNotFound) {
				t.Fatal(err)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("left are %v, want %v", got, want)
		}
	}
	check(2, 4, 5, 6, 7, 8, 9)
	r.Record.Settled = map[string]uint64{"S": settled}
	check(2, 5, 6, 8, 9)
}

// A record that cannot be read is passed over.
func TestMalformedRecord(t *testing.T) {
	s := newService(t)
	s.start()
	for key, value := range map[string]string{alpha: "{", "no-uuid": "{}"} {
		if _, err := s.kv.PutString(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Cleared(t.Context(), beta, s.put(beta, message.RemovalRecord{Generation: 1})); err != nil {
		t.Fatal(err)
	}
	if obeyed, _ := s.took(); !slices.Equal(obeyed, []string{beta + " 1"}) || len(s.All()) != 1 {
		t.Errorf("obeyed %v", obeyed)
	}
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*Server).startGoRoutine.func1"))
}
