package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

const adminKey = "a key for tests only"

// rig is a gateway on a real NATS server, with small services behind it that
// answer what the test needs.
type rig struct {
	t        *testing.T
	nats     *natstest.Server
	bus      *bus.Bus        // of the other services and of the test
	connect  func() *bus.Bus // the gateway's own connection
	registry *registry
	rules    *ruleEngine
	cfg      Config
	svc      *Service
	metrics  *prometheus.Registry
	stop     func()
}

// newRig starts everything. change, if not nil, changes the gateway's
// configuration.
func newRig(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, nats: natstest.Start(t)}
	r.bus = r.nats.Bus(t, "test")
	r.connect = func() *bus.Bus { return r.nats.Bus(t, access.Gateway) }
	r.run(change)
	return r
}

// run starts the other services, and then the gateway.
func (r *rig) run(change func(*Config)) {
	t := r.t
	t.Helper()
	answers, err := bus.Serve(t.Context(), r.bus, "test", "0.0.1", 16, 10*time.Second, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(answers.Stop)
	r.registry = startRegistry(t, r.bus, answers)
	r.rules = startRules(t, r.bus, answers)
	r.cfg = Config{AdminKey: adminKey, ServerKey: "TheServerKey", seenAgain: seenInterval, Env: lifecycle.Env{DataDir: t.TempDir(), Log: lifecycle.Discard()}}
	if change != nil {
		change(&r.cfg)
	}
	r.start()
}

// handle lets the test answer one more subject.
func (r *rig) handle(subject string, h bus.Handler) {
	r.t.Helper()
	answers, err := bus.Serve(r.t.Context(), r.bus, "extra", "0.0.1", 16, 10*time.Second, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(answers.Stop)
	if err := answers.Handle(subject, h); err != nil {
		r.t.Fatal(err)
	}
	if err := r.bus.NC.Flush(); err != nil {
		r.t.Fatal(err)
	}
}

// start starts the gateway on its data folder and waits until it answers.
func (r *rig) start() {
	r.t.Helper()
	cfg := r.cfg
	r.metrics = prometheus.NewRegistry()
	cfg.Bus, cfg.Metrics = r.connect(), r.metrics
	for _, ln := range []*net.Listener{&cfg.AdminListener, &cfg.AgentListener} {
		var err error
		if *ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			r.t.Fatal(err)
		}
	}
	svc, err := New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.svc = svc
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
	r.t.Cleanup(r.stop)
	eventually(r.t, "the gateway is ready", func() bool { return svc.Ready() == nil })
}

func (r *rig) restart() {
	r.stop()
	r.start()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain waited until %s", what)
		}
	}
}

// answer is what came back.
type answer struct {
	code   int
	header http.Header
	body   string
	err    error // of reading the body
}

var client = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Timeout:       2 * time.Minute,
}

func (r *rig) do(method, addr, path string, body io.Reader, header map[string]string) answer {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://"+addr+path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := client.Do(req)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(text), err}
}

// admin makes an authorised request of the admin API.
func (r *rig) admin(method, path, body string) answer {
	r.t.Helper()
	return r.do(method, r.svc.AdminAddr(), path, strings.NewReader(body), map[string]string{"Api-Key": adminKey})
}

// data makes an admin request that must succeed and decodes its data.
func data[T any](r *rig, method, path, body string) T {
	r.t.Helper()
	a := r.admin(method, path, body)
	var e struct {
		Data    T
		Message string
		Error   string
	}
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || e.Message == "NOK" {
		r.t.Fatalf("%s %s: %d %s", method, path, a.code, a.body)
	}
	return e.Data
}

// endpoint makes a new endpoint.
func (r *rig) endpoint() message.Endpoint {
	r.t.Helper()
	return data[message.Endpoint](r, http.MethodPut, "/endpoints", "")
}

// agent makes a request of an endpoint's agent.
func (r *rig) agent(e message.Endpoint, method, path string, body io.Reader, more ...string) answer {
	r.t.Helper()
	h := map[string]string{"UUID": e.UUID, "Api-Key": e.Key, "Hostname": "WS-" + e.UUID[:4]}
	for i := 0; i < len(more); i += 2 {
		h[more[i]] = more[i+1]
	}
	return r.do(method, r.svc.AgentAddr(), path, body, h)
}

// messages returns all messages of a stream.
func (r *rig) messages(name string) []*jetstream.RawStreamMsg {
	r.t.Helper()
	s, err := r.bus.JS.Stream(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []*jetstream.RawStreamMsg
	for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(r.t.Context(), seq)
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// events returns the lines that are stored as events of an endpoint, and the
// batches they came in.
func (r *rig) events(uuid string) (lines []string, batches []message.Batch) {
	r.t.Helper()
	for _, m := range r.messages(stream.Events) {
		b, _, err := message.ParseBatch(m.Subject, m.Header, m.Data, nil)
		if err != nil {
			r.t.Fatal(err)
		}
		if b.Endpoint != uuid {
			continue
		}
		for _, l := range b.Lines {
			lines = append(lines, string(l))
		}
		batches = append(batches, b)
	}
	return lines, batches
}

// registry is as much of the endpoint-registry as a gateway needs.
type registry struct {
	kv jetstream.KeyValue

	mu    sync.Mutex
	order []string
	by    map[string]message.EndpointRecord
	seen  map[string]message.Seen
	next  byte
	// page bounds what a page of a list holds.
	page int
	// binds counts the requests to bind a hostname, and tells those that tell
	// who was last seen.
	binds, tells int
}

func startRegistry(t *testing.T, b *bus.Bus, answers *bus.Service) *registry {
	t.Helper()
	natstest.Removed(t, b)
	kv, err := stream.EnsureKV(t.Context(), b.JS, stream.Endpoints, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	r := &registry{kv: kv, by: map[string]message.EndpointRecord{}, seen: map[string]message.Seen{}, page: 2}
	one := func(f func(ctx context.Context, q message.EndpointRequest) (message.EndpointReply, error)) bus.Handler {
		return bus.JSON(func(ctx context.Context, q message.EndpointRequest) (message.EndpointReply, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			return f(ctx, q)
		})
	}
	existing := func(f func(ctx context.Context, rec *message.EndpointRecord, q message.EndpointRequest) (uint64, error)) bus.Handler {
		return one(func(ctx context.Context, q message.EndpointRequest) (message.EndpointReply, error) {
			rec, ok := r.by[q.UUID]
			if !ok {
				return message.EndpointReply{}, fault.New(fault.NotFound, "no such endpoint")
			}
			revision, err := f(ctx, &rec, q)
			return message.EndpointReply{Endpoint: r.show(rec), Revision: revision}, err
		})
	}
	for subject, h := range map[string]bus.Handler{
		message.RegistryCreate: one(func(ctx context.Context, _ message.EndpointRequest) (message.EndpointReply, error) {
			r.next++
			rec := message.EndpointRecord{UUID: fmt.Sprintf("03e31275-2277-d8e0-bb5f-480fac7ee4%02x", r.next), Key: newKey(), Created: time.Now()}
			revision, err := r.write(ctx, rec)
			r.order = append(r.order, rec.UUID)
			return message.EndpointReply{Endpoint: r.show(rec), Revision: revision}, err
		}),
		message.RegistryGet: existing(func(context.Context, *message.EndpointRecord, message.EndpointRequest) (uint64, error) { return 0, nil }),
		message.RegistryDelete: existing(func(ctx context.Context, rec *message.EndpointRecord, _ message.EndpointRequest) (uint64, error) {
			delete(r.by, rec.UUID)
			if err := r.kv.Delete(ctx, rec.UUID); err != nil {
				return 0, err
			}
			st, err := r.kv.Status(ctx)
			if err != nil {
				return 0, err
			}
			return st.(*jetstream.KeyValueBucketStatus).StreamInfo().State.LastSeq, nil
		}),
		message.RegistryBind: existing(func(ctx context.Context, rec *message.EndpointRecord, q message.EndpointRequest) (uint64, error) {
			r.binds++
			if rec.Hostname != "" && rec.Hostname != q.Hostname {
				return 0, fault.New(fault.Conflict, "bound to another hostname")
			}
			rec.Hostname = q.Hostname
			return r.write(ctx, *rec)
		}),
		message.RegistryRelease: existing(func(ctx context.Context, rec *message.EndpointRecord, _ message.EndpointRequest) (uint64, error) {
			rec.Hostname = ""
			return r.write(ctx, *rec)
		}),
		message.RegistryList: bus.JSON(r.list),
		message.RegistrySeen: bus.JSON(func(_ context.Context, q message.SeenRequest) (message.RevisionReply, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.tells++
			for uuid, s := range q.Seen {
				r.seen[uuid] = s
			}
			return message.RevisionReply{}, nil
		}),
	} {
		if err := answers.Handle(subject, h); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (r *registry) write(ctx context.Context, rec message.EndpointRecord) (uint64, error) {
	value, err := json.Marshal(rec)
	if err != nil {
		return 0, err
	}
	r.by[rec.UUID] = rec
	return r.kv.Put(ctx, rec.UUID, value)
}

func (r *registry) show(rec message.EndpointRecord) message.Endpoint {
	s := r.seen[rec.UUID]
	return message.Endpoint{UUID: rec.UUID, Hostname: rec.Hostname, IP: s.IP, Key: rec.Key, LastConnection: s.Time}
}

func (r *registry) list(_ context.Context, q message.ListRequest) (message.ListReply, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	reply := message.ListReply{Endpoints: []message.Endpoint{}, Total: len(r.by)}
	after := q.After == ""
	for _, uuid := range r.order {
		rec, ok := r.by[uuid]
		if ok && after {
			if len(reply.Endpoints) == r.page {
				reply.Next = reply.Endpoints[r.page-1].UUID
				break
			}
			reply.Endpoints = append(reply.Endpoints, r.show(rec))
		}
		after = after || uuid == q.After
	}
	return reply, nil
}

// ruleEngine is as much of the rule-engine as a gateway needs.
type ruleEngine struct {
	kv jetstream.KeyValue

	mu       sync.Mutex
	texts    [2]string // v1, v2
	revision uint64
	// part bounds what one answer carries; fetched counts them.
	part, fetched int
}

func startRules(t *testing.T, b *bus.Bus, answers *bus.Service) *ruleEngine {
	t.Helper()
	kv, err := stream.EnsureKV(t.Context(), b.JS, stream.Rules, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	r := &ruleEngine{kv: kv, part: 10}
	r.set(t, "{\"Name\":\"one, v1\"}\n", "{\"Name\":\"one, v2\"}\n")
	if err := answers.Handle(message.RulesAgent, bus.JSON(r.agent)); err != nil {
		t.Fatal(err)
	}
	return r
}

// set changes the rules of agents.
func (r *ruleEngine) set(t *testing.T, v1, v2 string) uint64 {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	revision, err := r.kv.Put(t.Context(), message.RulesKey, []byte("changed"))
	if err != nil {
		t.Fatal(err)
	}
	r.texts, r.revision = [2]string{v1, v2}, revision
	return revision
}

func (r *ruleEngine) agent(_ context.Context, q message.RulesAgentRequest) (message.RulesAgentReply, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fetched++
	text := r.texts[0]
	if q.V2 {
		text = r.texts[1]
	}
	sum := sha256.Sum256([]byte(text))
	part := text[min(q.Offset, len(text)):min(q.Offset+r.part, len(text))]
	return message.RulesAgentReply{Text: message.Compress(nil, []byte(part)), SHA256: hex.EncodeToString(sum[:]), Size: len(text), Revision: r.revision}, nil
}

// pages answers LogsQuery with pages of lines; a nil page is an error.
func pages(all ...[]string) (bus.Handler, *[]message.LogsRequest) {
	asked := &[]message.LogsRequest{}
	return func(_ context.Context, data []byte) (*bus.Reply, error) {
		var q message.LogsRequest
		if err := json.Unmarshal(data, &q); err != nil {
			return nil, err
		}
		*asked = append(*asked, q)
		n := len(q.Cursor)
		if n >= len(all) || all[n] == nil {
			return nil, fault.New(fault.Internal, "page %d is lost", n)
		}
		lines := all[n]
		h := nats.Header{}
		if q.Limit > 0 && q.Limit < len(lines) {
			lines = lines[:q.Limit]
		} else if n+1 < len(all) {
			h.Set(message.HeaderNext, strings.Repeat("x", n+1))
		}
		var b bytes.Buffer
		for _, l := range lines {
			b.WriteString(l + "\n")
		}
		return &bus.Reply{Data: message.Compress(nil, b.Bytes()), Header: h}, nil
	}, asked
}

func newRegistry() *prometheus.Registry { return prometheus.NewRegistry() }

// canceled returns a context that has ended.
func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
