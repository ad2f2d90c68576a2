package registry_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	registry "github.com/nightjar-edr/nightjar/services/endpoint-registry/service"
)

// replica is a running service of a test.
type replica struct {
	*registry.Service
	metrics *prometheus.Registry
	stop    func()
}

// start runs a service on a folder and waits until it is ready. It stops with
// the test, if not before.
func start(t *testing.T, srv *natstest.Server, dir string) *replica {
	t.Helper()
	return startOn(t, srv.Bus(t, access.Registry), dir)
}

func startOn(t *testing.T, b *bus.Bus, dir string) *replica {
	t.Helper()
	return startWith(t, registry.Config{Env: lifecycle.Env{
		Bus: b, Log: lifecycle.Discard(), Metrics: prometheus.NewRegistry(), DataDir: dir, Sync: false, Replicas: 1,
	}})
}

func startWith(t *testing.T, cfg registry.Config) *replica {
	t.Helper()
	r := launchWith(t, cfg)
	r.await(t)
	return r
}

// launchWith runs a service without waiting for it.
func launchWith(t *testing.T, cfg registry.Config) *replica {
	t.Helper()
	s, err := registry.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(stop)
	return &replica{Service: s, metrics: cfg.Metrics.(*prometheus.Registry), stop: stop}
}

func (r *replica) await(t *testing.T) {
	t.Helper()
	eventually(t, "ready", func() bool { return r.Ready() == nil })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not %s in time", what)
		}
	}
}

// client asks a service as a gateway does.
type client struct {
	t *testing.T
	b *bus.Bus
}

func call[A any](c client, subj string, q any) (A, error) {
	return bus.Call[A](c.t.Context(), c.b, subj, q)
}

func must[A any](c client, subj string, q any) A {
	c.t.Helper()
	a, err := call[A](c, subj, q)
	if err != nil {
		c.t.Fatalf("%s: %v", subj, err)
	}
	return a
}

func (c client) create() message.Endpoint {
	c.t.Helper()
	return must[message.EndpointReply](c, message.RegistryCreate, struct{}{}).Endpoint
}

func (c client) get(uuid string) message.Endpoint {
	c.t.Helper()
	return must[message.EndpointReply](c, message.RegistryGet, message.EndpointRequest{UUID: uuid}).Endpoint
}

func (c client) all() []message.Endpoint {
	c.t.Helper()
	return must[message.ListReply](c, message.RegistryList, message.ListRequest{}).Endpoints
}

func (c client) seen(uuid string, at time.Time, ip string) message.RevisionReply {
	c.t.Helper()
	return must[message.RevisionReply](c, message.RegistrySeen, message.SeenRequest{Seen: map[string]message.Seen{uuid: {Time: at, IP: ip}}})
}

func (c client) refused(subj string, q any, kind fault.Kind, text string) {
	c.t.Helper()
	_, err := call[map[string]any](c, subj, q)
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != kind || f.Message != text {
		c.t.Errorf("%s: got error %v, want %s %q", subj, err, kind, text)
	}
}

func newClient(t *testing.T, srv *natstest.Server) client {
	return client{t: t, b: srv.Bus(t, access.Gateway)}
}

func TestCreate(t *testing.T) {
	srv := natstest.Start(t)
	r := start(t, srv, t.TempDir())
	c := newClient(t, srv)
	key := regexp.MustCompile(`^[0-9A-Za-z]{64}$`)
	made := map[string]bool{}
	var last uint64
	for range 20 {
		reply := must[message.EndpointReply](c, message.RegistryCreate, struct{}{})
		e := reply.Endpoint
		if !subject.IsUUID(e.UUID) || e.UUID != strings.ToLower(e.UUID) || !key.MatchString(e.Key) {
			t.Fatalf("uuid %q, key of %d characters", e.UUID, len(e.Key))
		}
		if made[e.UUID] || made[e.Key] {
			t.Fatal("made twice")
		}
		made[e.UUID], made[e.Key] = true, true
		if e.Hostname != "" || e.IP != "" || !e.LastConnection.IsZero() {
			t.Errorf("a new endpoint has a past: %+v", e)
		}
		if reply.Revision <= last {
			t.Errorf("revision %d after %d", reply.Revision, last)
		}
		last = reply.Revision
		if got := c.get(e.UUID); got != e {
			t.Errorf("get: %+v, want %+v", got, e)
		}
	}
	if n, err := testutil.GatherAndCount(r.metrics, "nightjar_endpoint_registry_requests_total"); err != nil || n != 2 {
		t.Errorf("requests are counted in %d series, want those of create and get: %v", n, err)
	}
	want := "# HELP nightjar_endpoint_registry_endpoints Endpoints that exist.\n# TYPE nightjar_endpoint_registry_endpoints gauge\nnightjar_endpoint_registry_endpoints 20\n"
	if err := testutil.GatherAndCompare(r.metrics, strings.NewReader(want), "nightjar_endpoint_registry_endpoints"); err != nil {
		t.Error(err)
	}
}

func TestUnknownEndpoint(t *testing.T) {
	srv := natstest.Start(t)
	start(t, srv, t.TempDir())
	c := newClient(t, srv)
	e := c.create()
	upper := strings.ToUpper(e.UUID)
	for _, subj := range []string{message.RegistryGet, message.RegistryDelete, message.RegistryBind, message.RegistryRelease} {
		for _, uuid := range []string{"00000000-1111-2222-3333-444444444444", upper, "seen.3", "*"} {
			if uuid == e.UUID {
				continue // no letter in it
			}
			c.refused(subj, message.EndpointRequest{UUID: uuid, Hostname: "h"}, fault.NotFound, "Unknown endpoint: "+uuid)
		}
	}
	if got := c.all(); len(got) != 1 || got[0] != e {
		t.Errorf("endpoints are %+v", got)
	}
}

func TestListPages(t *testing.T) {
	srv := natstest.Start(t)
	start(t, srv, t.TempDir())
	c := newClient(t, srv)
	var want []message.Endpoint
	for range 11 {
		want = append(want, c.create())
	}
	for _, limit := range []int{1, 3, 11, 12} {
		t.Run(fmt.Sprintf("limit %d", limit), func(t *testing.T) {
			var got []message.Endpoint
			for after := ""; ; {
				page := must[message.ListReply](c, message.RegistryList, message.ListRequest{After: after, Limit: limit})
				if page.Total != len(want) || len(page.Endpoints) == 0 || len(page.Endpoints) > limit {
					t.Fatalf("page of %d, total %d", len(page.Endpoints), page.Total)
				}
				got = append(got, page.Endpoints...)
				if after = page.Next; after == "" {
					break
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
	t.Run("a deleted endpoint does not lose the place", func(t *testing.T) {
		first := must[message.ListReply](c, message.RegistryList, message.ListRequest{Limit: 4})
		must[message.EndpointReply](c, message.RegistryDelete, message.EndpointRequest{UUID: want[3].UUID})
		rest := must[message.ListReply](c, message.RegistryList, message.ListRequest{After: first.Next})
		if !slices.Equal(rest.Endpoints, want[4:]) || rest.Next != "" || rest.Total != 10 {
			t.Errorf("rest is %+v", rest)
		}
	})
	t.Run("refused", func(t *testing.T) {
		c.refused(message.RegistryList, message.ListRequest{After: "?"}, fault.Invalid, "after: malformed cursor")
		c.refused(message.RegistryList, message.ListRequest{Limit: -1}, fault.Invalid, "limit: -1 is negative")
	})
}

func TestDelete(t *testing.T) {
	srv := natstest.Start(t)
	start(t, srv, t.TempDir())
	c := newClient(t, srv)
	a, b, d := c.create(), c.create(), c.create()
	must[message.EndpointReply](c, message.RegistryBind, message.EndpointRequest{UUID: b.UUID, Hostname: "host-b"})
	at := time.Now().UTC()
	c.seen(b.UUID, at, "192.0.2.7")
	b.Hostname, b.IP, b.LastConnection = "host-b", "192.0.2.7", at
	got := must[message.EndpointReply](c, message.RegistryDelete, message.EndpointRequest{UUID: b.UUID})
	if got.Endpoint != b {
		t.Errorf("delete returned %+v, want %+v", got.Endpoint, b)
	}
	kv, err := c.b.JS.KeyValue(t.Context(), "endpoints")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Get(t.Context(), b.UUID); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Errorf("record of a deleted endpoint: %v", err)
	}
	if st, err := kv.Status(t.Context()); err != nil || st.Values() == 0 || got.Revision == 0 {
		t.Errorf("revision %d, status %v %v", got.Revision, st, err)
	}
	c.refused(message.RegistryDelete, message.EndpointRequest{UUID: b.UUID}, fault.NotFound, "Unknown endpoint: "+b.UUID)
	if got := c.all(); !slices.Equal(got, []message.Endpoint{a, d}) {
		t.Errorf("endpoints are %+v", got)
	}
}

func TestBindAndRelease(t *testing.T) {
	srv := natstest.Start(t)
	start(t, srv, t.TempDir())
	c := newClient(t, srv)
	e := c.create()
	bind := func(name string) message.EndpointReply {
		t.Helper()
		return must[message.EndpointReply](c, message.RegistryBind, message.EndpointRequest{UUID: e.UUID, Hostname: name})
	}
	if got := bind(""); got.Endpoint.Hostname != "" {
		t.Errorf("an empty hostname was recorded as %q", got.Endpoint.Hostname)
	}
	first := bind("one")
	if first.Endpoint.Hostname != "one" {
		t.Errorf("bound to %q", first.Endpoint.Hostname)
	}
	if again := bind("one"); again != first {
		t.Errorf("binding again: %+v, want %+v", again, first)
	}
	for _, other := range []string{"two", "One", ""} {
		c.refused(message.RegistryBind, message.EndpointRequest{UUID: e.UUID, Hostname: other}, fault.Conflict,
			"endpoint "+e.UUID+" is bound to another hostname")
	}
	c.refused(message.RegistryBind, message.EndpointRequest{UUID: e.UUID, Hostname: strings.Repeat("h", 1025)}, fault.Invalid,
		"hostname: longer than 1024 bytes")
	released := must[message.EndpointReply](c, message.RegistryRelease, message.EndpointRequest{UUID: e.UUID})
	if released.Endpoint != e || released.Revision <= first.Revision {
		t.Errorf("released %+v", released)
	}
	if again := must[message.EndpointReply](c, message.RegistryRelease, message.EndpointRequest{UUID: e.UUID}); again != released {
		t.Errorf("releasing again: %+v, want %+v", again, released)
	}
	if got := bind("two"); got.Endpoint.Hostname != "two" {
		t.Errorf("bound to %q", got.Endpoint.Hostname)
	}
}

func TestSeen(t *testing.T) {
	srv := natstest.Start(t)
	start(t, srv, t.TempDir())
	c := newClient(t, srv)
	e := c.create()
	t0 := time.Now().UTC()
	check := func(at time.Time, ip string) {
		t.Helper()
		got := c.get(e.UUID)
		if !got.LastConnection.Equal(at) || got.IP != ip || got.LastConnection.Location() != time.UTC {
			t.Errorf("last heard of at %v from %q, want %v %q", got.LastConnection, got.IP, at, ip)
		}
	}
	c.seen(e.UUID, t0.In(time.FixedZone("", 7200)), "192.0.2.1")
	check(t0, "192.0.2.1")

	unchanged := c.seen(e.UUID, t0.Add(-1), "192.0.2.2")
	check(t0, "192.0.2.1")
	if again := c.seen(e.UUID, t0, "192.0.2.3"); again != unchanged {
		t.Errorf("a contact that is not newer was written at %d", again.Revision)
	}
	check(t0, "192.0.2.1")

	before := time.Now().UTC()
	c.seen(e.UUID, before.Add(time.Hour), "2001:db8::1")
	got := c.get(e.UUID)
	if got.LastConnection.Before(before) || got.LastConnection.After(time.Now()) || got.IP != "2001:db8::1" {
		t.Errorf("a contact in the future stands at %v from %q", got.LastConnection, got.IP)
	}

	nobody := "00000000-1111-2222-3333-444444444444"
	end := c.seen(nobody, time.Now(), "192.0.2.9")
	kv, err := c.b.JS.KeyValue(t.Context(), "endpoints")
	if err != nil {
		t.Fatal(err)
	}
	entry, err := kv.Get(t.Context(), fmt.Sprintf("seen.%d", subject.PartitionOf(nobody)))
	if err == nil && strings.Contains(string(entry.Value()), nobody) {
		t.Errorf("a contact of an endpoint that does not exist was written: %s", entry.Value())
	}
	if end.Revision == 0 {
		t.Error("no revision")
	}
}

// One request writes each partition it touches once, whatever the number of
// endpoints.
func TestSeenWritesOncePerPartition(t *testing.T) {
	srv := natstest.Start(t)
	start(t, srv, t.TempDir())
	c := newClient(t, srv)
	q := message.SeenRequest{Seen: map[string]message.Seen{}}
	touched := map[int]bool{}
	for range 60 {
		e := c.create()
		q.Seen[e.UUID] = message.Seen{Time: time.Now(), IP: "192.0.2.1"}
		touched[subject.PartitionOf(e.UUID)] = true
	}
	written := lastSeq(t, c.b)
	must[message.RevisionReply](c, message.RegistrySeen, q)
	if got := lastSeq(t, c.b) - written; got != uint64(len(touched)) {
		t.Errorf("%d records written for %d partitions", got, len(touched))
	}
	for _, e := range c.all() {
		if e.IP != "192.0.2.1" {
			t.Errorf("%s was not seen", e.UUID)
		}
	}
}

func lastSeq(t *testing.T, b *bus.Bus) uint64 {
	t.Helper()
	s, err := b.JS.Stream(t.Context(), "KV_endpoints")
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.LastSeq
}

func count(endpoints []message.Endpoint, e message.Endpoint) (n int) {
	for _, x := range endpoints {
		if x == e {
			n++
		}
	}
	return n
}

func uuids(endpoints []message.Endpoint) []string {
	var list []string
	for _, e := range endpoints {
		list = append(list, e.UUID)
	}
	return list
}

func TestImport(t *testing.T) {
	srv := natstest.Start(t)
	start(t, srv, t.TempDir())
	c := newClient(t, srv)
	made := c.create()
	records := []message.EndpointRecord{
		{UUID: "ffffffff-0000-0000-0000-000000000001", Key: "secret one", Hostname: "host-1"},
		{UUID: "00000000-0000-0000-0000-000000000002", Key: "secret two"},
		{UUID: "88888888-0000-0000-0000-00000000000A", Key: "secret three"},
		{UUID: "ffffffff-0000-0000-0000-000000000001", Key: "secret one"},
	}
	order := []string{made.UUID, records[0].UUID, records[1].UUID, records[2].UUID}
	first := must[message.RevisionReply](c, message.RegistryImport, message.ImportRequest{Endpoints: records})
	if got := uuids(c.all()); !slices.Equal(got, order) {
		t.Fatalf("order is %v, want %v", got, order)
	}
	if e := c.get(records[0].UUID); e.Key != "secret one" || e.Hostname != "host-1" {
		t.Errorf("imported %+v", e)
	}
	end := lastSeq(t, c.b)
	if again := must[message.RevisionReply](c, message.RegistryImport, message.ImportRequest{Endpoints: records}); again != first || lastSeq(t, c.b) != end {
		t.Errorf("importing again wrote up to %d, before %d", lastSeq(t, c.b), end)
	}
	t.Run("refused", func(t *testing.T) {
		fresh := message.EndpointRecord{UUID: "77777777-0000-0000-0000-000000000007", Key: "k"}
		other := records[1]
		other.Key = "another"
		twice := fresh
		twice.Key = "another"
		for name, bad := range map[string]struct {
			record message.EndpointRecord
			kind   fault.Kind
			text   string
		}{
			"other key":             {other, fault.Conflict, "endpoint " + other.UUID + " exists with another key"},
			"two keys in a request": {twice, fault.Conflict, "endpoint " + twice.UUID + " exists with another key"},
			"malformed uuid":        {message.EndpointRecord{UUID: "x.y", Key: "k"}, fault.Invalid, `uuid "x.y" is not of the form 8-4-4-4-12`},
			"no key":                {message.EndpointRecord{UUID: fresh.UUID}, fault.Invalid, "endpoint " + fresh.UUID + ": the key must have 1 to 1024 bytes"},
		} {
			t.Run(name, func(t *testing.T) {
				c.refused(message.RegistryImport, message.ImportRequest{Endpoints: []message.EndpointRecord{fresh, bad.record}}, bad.kind, bad.text)
				if lastSeq(t, c.b) != end {
					t.Error("something was written")
				}
			})
		}
	})
}

// What was seen of an endpoint before it was deleted is not told of the one
// that is imported under its uuid later, although its contact still stands in
// the partition's record.
func TestImportAfterDeleteHasNoPast(t *testing.T) {
	srv := natstest.Start(t)
	dir := t.TempDir()
	r := start(t, srv, dir)
	c := newClient(t, srv)
	old := c.create()
	c.seen(old.UUID, time.Now(), "192.0.2.1")
	must[message.EndpointReply](c, message.RegistryDelete, message.EndpointRequest{UUID: old.UUID})
	must[message.RevisionReply](c, message.RegistryImport, message.ImportRequest{Endpoints: []message.EndpointRecord{{UUID: old.UUID, Key: "new key"}}})
	want := message.Endpoint{UUID: old.UUID, Key: "new key"}
	if got := c.get(old.UUID); got != want {
		t.Errorf("imported %+v, want %+v", got, want)
	}
	r.stop()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	start(t, srv, dir)
	if got := c.get(old.UUID); got != want {
		t.Errorf("after a rebuild %+v, want %+v", got, want)
	}
	at := time.Now().UTC()
	c.seen(old.UUID, at, "192.0.2.2")
	if got := c.get(old.UUID); !got.LastConnection.Equal(at) || got.IP != "192.0.2.2" {
		t.Errorf("the new endpoint's contact: %+v", got)
	}
}

// populate makes endpoints with all that can be known of them.
func populate(c client) []message.Endpoint {
	for i := range 8 {
		e := c.create()
		if i%2 == 0 {
			must[message.EndpointReply](c, message.RegistryBind, message.EndpointRequest{UUID: e.UUID, Hostname: fmt.Sprintf("host-%d", i)})
		}
		c.seen(e.UUID, time.Now(), fmt.Sprintf("192.0.2.%d", i))
		if i == 5 {
			must[message.EndpointReply](c, message.RegistryDelete, message.EndpointRequest{UUID: e.UUID})
		}
	}
	return c.all()
}

func TestRestartAndRebuild(t *testing.T) {
	srv := natstest.Start(t)
	dir := filepath.Join(t.TempDir(), "store")
	r := start(t, srv, dir)
	c := newClient(t, srv)
	want := populate(c)
	if len(want) != 7 {
		t.Fatalf("%d endpoints", len(want))
	}
	r.stop()
	r = start(t, srv, dir)
	if got := c.all(); !slices.Equal(got, want) {
		t.Errorf("after a restart %+v, want %+v", got, want)
	}
	r.stop()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	r = start(t, srv, dir)
	if got := c.all(); !slices.Equal(got, want) {
		t.Errorf("after a rebuild %+v, want %+v", got, want)
	}
	r.stop()
	srv.Restart(t)
	start(t, srv, dir)
	if got := newClient(t, srv).all(); !slices.Equal(got, want) {
		t.Errorf("after a restart of NATS %+v, want %+v", got, want)
	}
}

// Records that cannot be read are passed over: the service goes on.
func TestMalformedRecords(t *testing.T) {
	srv := natstest.Start(t)
	r := start(t, srv, t.TempDir())
	c := newClient(t, srv)
	e := c.create()
	kv, err := c.b.JS.KeyValue(t.Context(), "endpoints")
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{
		"00000000-1111-2222-3333-444444444444": "{",
		"00000000-1111-2222-3333-555555555555": `{"uuid":"another"}`,
		"seen.99":                              `{}`,
		"seen.x":                               `{}`,
		"seen.1":                               `[]`,
	} {
		if _, err := kv.PutString(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.all(); len(got) != 1 || got[0] != e {
		t.Errorf("endpoints are %+v", got)
	}
	want := "# HELP nightjar_endpoint_registry_malformed_records_total Records of the bucket that could not be read and were passed over.\n" +
		"# TYPE nightjar_endpoint_registry_malformed_records_total counter\nnightjar_endpoint_registry_malformed_records_total 5\n"
	if err := testutil.GatherAndCompare(r.metrics, strings.NewReader(want), "nightjar_endpoint_registry_malformed_records_total"); err != nil {
		t.Error(err)
	}
}

func TestNotReadyBeforeRun(t *testing.T) {
	srv := natstest.Start(t)
	s, err := registry.New(registry.Config{Env: lifecycle.Env{
		Bus: srv.Bus(t, access.Registry), Log: lifecycle.Discard(), Metrics: prometheus.NewRegistry(), DataDir: t.TempDir(), Replicas: 1,
	}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Ready() == nil {
		t.Error("ready before it runs")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Errorf("Run with an ended context: %v", err)
	}
}
