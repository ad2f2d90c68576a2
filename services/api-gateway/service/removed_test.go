package gateway

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// removers answer what a removal asks of other services. They record one of the
// generation 7.
type removers struct {
	// away says that log-ingest does not clear its artifacts.
	away     atomic.Bool
	operator atomic.Value
}

func (r *rig) startRemovers() *removers {
	r.t.Helper()
	x := &removers{}
	kv := natstest.Removed(r.t, r.bus)
	answers, err := bus.Serve(r.t.Context(), r.bus, "removers", "0.0.1", 8, 10*time.Second, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(answers.Stop)
	for on, h := range map[string]bus.Handler{
		"edr.logs.*." + message.LogsCount: bus.JSON(func(context.Context, message.LogsCountRequest) (message.LogsCountReply, error) {
			return message.LogsCountReply{Events: 5, Alerts: 4, Artifacts: 3}, nil
		}),
		message.RegistryRemove: bus.JSON(func(ctx context.Context, q message.RemoveRequest) (message.RemoveReply, error) {
			x.operator.Store(q.Operator)
			ends := map[string]uint64{}
			for _, name := range []string{stream.Events, stream.DeadLetters} {
				s, err := r.bus.JS.Stream(ctx, name)
				if err != nil {
					return message.RemoveReply{}, err
				}
				ends[name] = s.CachedInfo().State.LastSeq
			}
			record, err := json.Marshal(message.RemovalRecord{Generation: 7, Ends: ends})
			if err != nil {
				return message.RemoveReply{}, err
			}
			revision, err := kv.Put(ctx, q.UUID, record)
			return message.RemoveReply{Generation: 7, Revision: revision}, err
		}),
		message.AlertsCleared: bus.JSON(func(context.Context, message.ClearedRequest) (struct{}, error) { return struct{}{}, nil }),
		message.ArtifactsCleared: bus.JSON(func(context.Context, message.ClearedRequest) (struct{}, error) {
			if x.away.Load() {
				return struct{}{}, fault.New(fault.Unavailable, "away")
			}
			return struct{}{}, nil
		}),
		message.ReportsGet: bus.JSON(func(context.Context, message.ReportRequest) (message.ReportReply, error) {
			return message.ReportReply{Report: &message.Report{}}, nil
		}),
	} {
		if err := answers.Handle(on, h); err != nil {
			r.t.Fatal(err)
		}
	}
	return x
}

// held returns the generations of an endpoint's messages in a stream, in order.
func (r *rig) held(name, filter string) string {
	r.t.Helper()
	s, err := r.bus.JS.Stream(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	var list []string
	for seq := uint64(1); ; {
		m, err := s.GetMsg(r.t.Context(), seq, jetstream.WithGetMsgSubject(filter))
		if err != nil {
			return strings.Join(list, " ")
		}
		list = append(list, strconv.FormatUint(message.GenerationOf(m.Header), 10))
		seq = m.Sequence + 1
	}
}

// A removal says how much there was, clears the gateway's streams, and what the
// endpoint sends from then on, to any gateway, is of the new generation, also
// when it is the same as before.
func TestStoredIsRemoved(t *testing.T) {
	r := newRig(t, nil)
	x := r.startRemovers()
	second := r.beside(nil)
	e, other := r.endpoint(), r.endpoint()
	post := func(r *rig, e message.Endpoint) {
		t.Helper()
		eventually(t, "the endpoint is known", func() bool {
			return r.agent(e, http.MethodPost, "/logs", strings.NewReader(`{"n":1}`+"\nno event\n")).code == http.StatusOK
		})
	}
	post(r, e)
	post(r, other)
	r.heard(second.svc.peers.name)
	got := data[stored](r, http.MethodDelete, "/endpoints/"+e.UUID+"/stored", "")
	if want := (stored{Events: 5, Alerts: 4, DeadLetters: 1, Artifacts: 3, Reports: 1}); got != want || x.operator.Load() != adminOperator {
		t.Errorf("removed %+v for %v, want %+v", got, x.operator.Load(), want)
	}
	for name, filter := range map[string]string{stream.Events: subject.Events(e.UUID), stream.DeadLetters: subject.AllDeadLettersOf(e.UUID)} {
		if got := r.held(name, filter); got != "" {
			t.Errorf("stream %s has messages of generations %s", name, got)
		}
	}
	post(second, e)
	post(second, other)
	for name, filter := range map[string]func(string) string{stream.Events: subject.Events, stream.DeadLetters: subject.AllDeadLettersOf} {
		if got := r.held(name, filter(e.UUID)); got != "7" {
			t.Errorf("afterwards stream %s has generations %q", name, got)
		}
		if got := r.held(name, filter(other.UUID)); got != "0" {
			t.Errorf("of another endpoint stream %s has generations %q", name, got)
		}
	}
}

// Where a service does not get to it, the answer says that the removal goes on.
func TestRemovalGoesOn(t *testing.T) {
	r := newRig(t, nil)
	x := r.startRemovers()
	e := r.endpoint()
	x.away.Store(true)
	a := r.admin(http.MethodDelete, "/endpoints/"+e.UUID+"/stored", "")
	if !strings.Contains(a.body, "the removal is recorded and goes on, but it is not complete yet: away") {
		t.Errorf("answered %s", a.body)
	}
	if r.svc.removals.Generation(e.UUID) != 7 {
		t.Error("the removal is not known")
	}
	if a := r.admin(http.MethodPost, "/endpoints/"+e.UUID+"/stored", ""); a.code != http.StatusMethodNotAllowed {
		t.Errorf("POST is answered %d", a.code)
	}
}
