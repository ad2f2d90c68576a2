package ruleengine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	"github.com/nightjar-edr/nightjar/pkg/objects"
)

// listedDomain is a rule over the container domains.
const listedDomain = `{"Name":"listed domain","Meta":{"Events":{"Test":[]},"Criticality":5,"Schema":"2.0.0"},` +
	`"Matches":["$c: extract('(?P<d>[a-z.]+)', Image) in domains"],"Condition":"$c"}`

// upload stores text as the gateway does.
func upload(t *testing.T, b *bus.Bus, text string) message.ContainerContent {
	t.Helper()
	store, err := objects.Open(t.Context(), b.JS, stream.Containers)
	if err != nil {
		t.Fatal(err)
	}
	d, err := store.Write(t.Context(), strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return message.ContainerContent(*d)
}

func (r *rig) putContainer(name string, add bool, text string) (message.ContainerReply, error) {
	r.t.Helper()
	return bus.Call[message.ContainerReply](r.t.Context(), r.bus, message.ContainersPut,
		message.ContainerPutRequest{Name: name, Append: add, Content: upload(r.t, r.bus, text), Actor: "tester"})
}

func (r *rig) mustPutContainer(name string, add bool, text string) message.ContainerReply {
	r.t.Helper()
	reply, err := r.putContainer(name, add, text)
	if err != nil {
		r.t.Fatal(err)
	}
	return reply
}

func (r *rig) deleteContainer(name string) error {
	_, err := bus.Call[message.ContainerReply](r.t.Context(), r.bus, message.ContainersDelete, message.ContainerDeleteRequest{Name: name, Actor: "tester"})
	return err
}

// contents returns how many contents the object store holds.
func (r *rig) contents() int {
	r.t.Helper()
	name, _ := stream.ObjectStream(stream.Containers)
	s, err := r.bus.JS.Stream(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	info, err := s.Info(r.t.Context(), jetstream.WithSubjectFilter(stream.ObjectChunks(stream.Containers, "*")))
	if err != nil {
		r.t.Fatal(err)
	}
	return len(info.State.Subjects)
}

// A change is in force for the next batch once it is answered, and nothing is
// left of what was before.
func TestContainerChanges(t *testing.T) {
	r := newRig(t)
	x := r.start(r.config())
	x.mustAdd(false, listedDomain)
	n, alerts := 0, 0
	matches := func(image string, want bool) {
		t.Helper()
		n++
		r.send(endpointA, event4(n, image))
		if want {
			alerts++
		}
		if got := len(r.alerts()); got != alerts {
			t.Fatalf("%d alerts after %s, want %d", got, image, alerts)
		}
	}
	matches("evil.example", false)
	reply := r.mustPutContainer("domains", true, "EVIL.example\n\n")
	if c := reply.Container; c.Name != "domains" || c.Lines != 2 || c.Size != 14 || len(c.SHA256) != 64 || c.Modified.IsZero() || reply.Revision == 0 {
		t.Errorf("answered %+v", reply)
	}
	matches("evil.example", true)
	if got := x.value("nightjar_rule_engine_rules_waiting") + 10*x.value("nightjar_rule_engine_containers") + 100*x.value("nightjar_rule_engine_container_lines"); got != 210 {
		t.Errorf("metrics are %v", got)
	}
	if c := r.mustPutContainer("domains", true, "b.example\n").Container; c.Lines != 3 {
		t.Errorf("answered %+v", c)
	}
	matches("b.example", true)
	matches("evil.example", true)
	if got := r.stored("domains"); !slices.Equal(got, []string{"EVIL.example", "", "b.example"}) {
		t.Errorf("stored %q", got)
	}
	r.mustPutContainer("domains", false, "c.example\n")
	matches("evil.example", false)
	matches("c.example", true)
	if err := r.deleteContainer("domains"); err != nil {
		t.Fatal(err)
	}
	matches("c.example", false)
	if got := x.value("nightjar_rule_engine_rules_waiting"); got != 1 {
		t.Errorf("%v rules wait", got)
	}
	wantFault(t, r.deleteContainer("domains"), fault.NotFound, "Unknown container: domains")
	if n := r.contents(); n != 0 {
		t.Errorf("%d contents are left", n)
	}
	// Written by another, without an end of the last line.
	if _, err := r.containers().PutString(t.Context(), "domains", "d.example"); err != nil {
		t.Fatal(err)
	}
	if c := r.mustPutContainer("domains", true, "e.example\n").Container; c.Lines != 2 {
		t.Errorf("answered %+v", c)
	}
	matches("d.example", true)
	matches("e.example", true)
}

// Nobody's lines are lost, whoever adds them at once to whatever replica, and
// all replicas use them.
func TestContainerAppendsAtOnce(t *testing.T) {
	r := newRig(t)
	x, y := r.start(r.config()), r.start(r.config())
	const writers, each = 6, 5
	var all []string
	var wg sync.WaitGroup
	for w := range writers {
		for n := range each {
			all = append(all, fmt.Sprintf("line-%d-%d", w, n))
		}
		wg.Go(func() {
			for n := range each {
				line := fmt.Sprintf("line-%d-%d\n", w, n)
				// Another replica may be faster too often.
				for {
					_, err := r.putContainer("many", true, line)
					if err == nil {
						break
					}
					if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "by others") {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	got := r.stored("many")
	slices.Sort(got)
	if slices.Sort(all); !slices.Equal(got, all) {
		t.Errorf("%d lines, want %d: %q", len(got), len(all), got)
	}
	for _, replica := range []*replica{x, y} {
		eventually(t, func() error {
			if n := replica.value("nightjar_rule_engine_container_lines"); n != writers*each {
				return fmt.Errorf("%v lines are used", n)
			}
			return nil
		})
		if got := replica.value("nightjar_rule_engine_requests_total", "subject", message.ContainersPut); got == 0 {
			t.Error("one of the replicas answered nothing")
		}
	}
}

// What is refused changes nothing.
func TestContainerRefusals(t *testing.T) {
	r := newRig(t)
	r.start(r.config())
	r.mustPutContainer("a", false, "one\n")
	good := upload(t, r.bus, "two\n")
	damaged, lost := good, good
	damaged.Digest = "SHA-256=x"
	lost.Chunks++
	full := strings.Repeat("\n", message.MaxContainerLines)
	for name, tc := range map[string]struct {
		q     message.ContainerPutRequest
		kind  fault.Kind
		holds string
	}{
		"no name":            {message.ContainerPutRequest{Content: good}, fault.Invalid, "name"},
		"bad name":           {message.ContainerPutRequest{Name: "a b", Content: good}, fault.Invalid, "name"},
		"bad content":        {message.ContainerPutRequest{Name: "a", Content: message.ContainerContent{ID: "a.*"}}, fault.Invalid, "name"},
		"damaged":            {message.ContainerPutRequest{Name: "a", Content: damaged}, fault.Unavailable, "differs"},
		"lost":               {message.ContainerPutRequest{Name: "a", Content: lost}, fault.Unavailable, "chunk 2 of 2"},
		"not ended":          {message.ContainerPutRequest{Name: "a", Content: upload(t, r.bus, "x")}, fault.Invalid, "normal form"},
		"carriage returns":   {message.ContainerPutRequest{Name: "a", Append: true, Content: upload(t, r.bus, "x\r\n")}, fault.Invalid, "normal form"},
		"no UTF-8":           {message.ContainerPutRequest{Name: "a", Content: upload(t, r.bus, "\xff\n")}, fault.Invalid, "line 1 is not UTF-8"},
		"nothing to append":  {message.ContainerPutRequest{Name: "a", Append: true, Content: upload(t, r.bus, "")}, fault.Invalid, "No lines to append to container a"},
		"too many":           {message.ContainerPutRequest{Name: "a", Content: upload(t, r.bus, full+"\n")}, fault.TooLarge, "more than 1000000 lines"},
		"too many with both": {message.ContainerPutRequest{Name: "a", Append: true, Content: upload(t, r.bus, full)}, fault.TooLarge, "Container a would be too large: more than 1000000 lines"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := bus.Call[message.ContainerReply](t.Context(), r.bus, message.ContainersPut, tc.q)
			wantFault(t, err, tc.kind, tc.holds)
			if got := r.stored("a"); !slices.Equal(got, []string{"one"}) {
				t.Errorf("stored %q", got)
			}
		})
	}
	if c := r.mustPutContainer("a", false, full).Container; c.Lines != message.MaxContainerLines {
		t.Errorf("%d lines", c.Lines)
	}
}

// A restart puts nothing back that was changed or deleted since the import,
// unless its file changed.
func TestContainerFolderIsRemembered(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.ContainersDir = writeFolder(t, map[string]string{"kept": "file\n", "replaced": "file\r\n", "added.txt": "file", "deleted": "file\n", "both": "file\n"})
	x := r.start(cfg)
	restart := func() {
		t.Helper()
		x.stop()
		cfg.Bus, cfg.Metrics = r.srv.Bus(t, access.Rules), prometheus.NewRegistry()
		x = r.start(cfg)
	}
	check := func(want map[string]string) {
		t.Helper()
		list, err := r.containers().List(t.Context())
		if err != nil || len(list) != len(want) {
			t.Errorf("%d containers, want %d, %v", len(list), len(want), err)
		}
		for name, lines := range want {
			if got := strings.Join(r.stored(name), " "); got != lines {
				t.Errorf("%s is %q, want %q", name, got, lines)
			}
		}
	}
	r.mustPutContainer("replaced", false, "other\n")
	r.mustPutContainer("added", true, "more\n")
	for _, name := range []string{"deleted", "both"} {
		if err := r.deleteContainer(name); err != nil {
			t.Fatal(err)
		}
	}
	r.mustPutContainer("both", false, "again\n")
	want := map[string]string{"kept": "file", "replaced": "other", "added": "file more", "both": "again"}
	check(want)
	restart()
	check(want)
	for _, name := range []string{"replaced", "deleted"} {
		if err := os.WriteFile(filepath.Join(cfg.ContainersDir, name), []byte("new\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(cfg.ContainersDir, "kept")); err != nil {
		t.Fatal(err)
	}
	restart()
	want["replaced"], want["deleted"] = "new", "new"
	check(want)
	// A container that is as its file was not imported again, but is known to
	// be the file's from then on.
	r.mustPutContainer("api", false, "same\n")
	if err := os.WriteFile(filepath.Join(cfg.ContainersDir, "api"), []byte("same"), 0o644); err != nil {
		t.Fatal(err)
	}
	restart()
	if err := r.deleteContainer("api"); err != nil {
		t.Fatal(err)
	}
	restart()
	check(want)
}

// The service's own rights on NATS are enough for all of it.
func TestContainerRights(t *testing.T) {
	own, all := natstest.Restricted(t, access.Rules)
	natstest.Removed(t, all)
	for _, name := range []string{stream.Events, stream.DeadLetters} {
		if err := stream.Ensure(t.Context(), all.JS, name, stream.Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	dir := writeFolder(t, map[string]string{"a": "one\n"})
	s, err := New(Config{Env: lifecycle.Env{Bus: own, Log: lifecycle.Discard(), Metrics: prometheus.NewRegistry(), DataDir: t.TempDir(), Replicas: 1},
		RetentionAlerts: DefaultRetentionAlerts, Workers: 1, ContainersDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	eventually(t, s.Ready)
	for _, add := range []bool{true, false} {
		q := message.ContainerPutRequest{Name: "a", Append: add, Content: upload(t, all, "two\n")}
		if reply := call[message.ContainerReply](t, all, message.ContainersPut, q); reply.Container.Name != "a" {
			t.Errorf("answered %+v", reply)
		}
	}
	call[message.ContainerReply](t, all, message.ContainersDelete, message.ContainerDeleteRequest{Name: "a"})
	if _, err := s.objects.Tidy(t.Context(), received); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
