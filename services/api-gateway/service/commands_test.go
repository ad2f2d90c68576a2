package gateway

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// dispatch is as much of command-dispatch as a gateway needs.
type dispatch struct {
	t     *testing.T
	kv    jetstream.KeyValue
	files jetstream.ObjectStore

	mu       sync.Mutex
	commands []*message.CommandRecord
	revision uint64
	// nexts counts the questions for the next command.
	nexts int
	// refuse, if not nil, is the answer to results.
	refuse error
}

// startDispatch adds the bucket, the object store and the service to a rig.
func startDispatch(r *rig) *dispatch {
	r.t.Helper()
	d := &dispatch{t: r.t}
	var err error
	if d.kv, err = stream.EnsureKV(r.t.Context(), r.bus.JS, stream.Commands, 1, 1); err != nil {
		r.t.Fatal(err)
	}
	if d.files, err = stream.EnsureObjects(r.t.Context(), r.bus.JS, stream.Files, stream.Limits{}); err != nil {
		r.t.Fatal(err)
	}
	for subject, h := range map[string]bus.Handler{
		message.CommandsQueue: bus.JSON(d.queue), message.CommandsGet: bus.JSON(d.get), message.CommandsList: bus.JSON(d.list),
		message.CommandsNext: bus.JSON(d.next), message.CommandsResult: bus.JSON(d.result), message.CommandsCancel: bus.JSON(d.cancel),
		message.CommandsForget: bus.JSON(d.forget),
	} {
		r.handle(subject, h)
	}
	eventually(r.t, "the gateway follows the commands", func() bool {
		p := r.svc.commands.pending
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.complete
	})
	return d
}

// stored notes a change and puts it on record, which gateways follow.
func (d *dispatch) stored(ctx context.Context, c *message.CommandRecord) error {
	value, err := json.Marshal(c)
	if err != nil {
		return err
	}
	d.revision, err = d.kv.Put(ctx, message.CommandKey(c.Endpoint, c.UUID), value)
	return err
}

// find returns the commands of an endpoint, oldest first, or one of them.
func (d *dispatch) find(endpoint, uuid string) []*message.CommandRecord {
	var found []*message.CommandRecord
	for _, c := range d.commands {
		if c.Endpoint == endpoint && (uuid == "" || c.UUID == uuid) {
			found = append(found, c)
		}
	}
	return found
}

func (d *dispatch) queue(ctx context.Context, q message.CommandQueueRequest) (message.CommandReply, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := func(n int) string { return fmt.Sprintf("%08x-0000-4000-8000-%012x", len(d.commands)+1, n) }
	c := &message.CommandRecord{Endpoint: q.Endpoint, UUID: id(0), Order: uint64(len(d.commands) + 1), State: message.CommandQueued, Actor: q.Actor,
		Name: q.Name, Args: q.Args, Drop: q.Drop, Fetch: map[string]message.CommandFile{}, Timeout: q.Timeout}
	for i := range c.Drop {
		c.Drop[i].UUID = id(1 + i)
	}
	for i, path := range q.Fetch {
		c.Fetch[path] = message.CommandFile{UUID: id(100 + i)}
	}
	d.commands = append(d.commands, c)
	return d.reply(c), d.stored(ctx, c)
}

func (d *dispatch) reply(c *message.CommandRecord) message.CommandReply {
	return message.CommandReply{Command: c, Revision: d.revision}
}

func (d *dispatch) get(_ context.Context, q message.CommandRequest) (message.CommandReply, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if found := d.find(q.Endpoint, q.UUID); len(found) > 0 {
		c := *found[len(found)-1]
		return d.reply(&c), nil
	}
	return d.reply(nil), nil
}

func (d *dispatch) list(_ context.Context, q message.CommandsListRequest) (message.CommandsListReply, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var reply message.CommandsListReply
	for _, c := range slices.Backward(d.find(q.Endpoint, "")) {
		if q.Before > 0 && c.Order >= q.Before {
			continue
		}
		if len(reply.Commands) == min(q.Limit, 2) {
			reply.Next = reply.Commands[len(reply.Commands)-1].Order
			break
		}
		reply.Commands = append(reply.Commands, c.Outline())
	}
	return reply, nil
}

func (d *dispatch) next(ctx context.Context, q message.CommandRequest) (message.CommandReply, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nexts++
	for _, c := range d.find(q.Endpoint, "") {
		if c.State == message.CommandQueued {
			before := *c
			c.State, c.Sent = message.CommandSent, time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
			return d.reply(&before), d.stored(ctx, c)
		}
	}
	return d.reply(nil), nil
}

func (d *dispatch) result(ctx context.Context, q message.CommandResultRequest) (message.CommandResultReply, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.refuse; err != nil {
		d.refuse = nil
		return message.CommandResultReply{}, err
	}
	found := d.find(q.Endpoint, q.UUID)
	if len(found) != 1 || q.UUID == "" {
		return message.CommandResultReply{Outcome: message.ResultForeign}, nil
	}
	c := found[0]
	if c.State != message.CommandSent {
		return message.CommandResultReply{Outcome: message.ResultRepeated}, nil
	}
	c.State, c.Name, c.Args, c.Drop, c.Fetch = message.CommandCompleted, q.Name, q.Args, q.Drop, q.Fetch
	c.Stdout, c.Stderr, c.Error, c.ExpectJSON = q.Stdout, q.Stderr, q.Error, q.ExpectJSON
	return message.CommandResultReply{Outcome: message.ResultAccepted}, d.stored(ctx, c)
}

func (d *dispatch) cancel(ctx context.Context, q message.CommandRequest) (message.CommandReply, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	found := d.find(q.Endpoint, q.UUID)
	if len(found) != 1 || found[0].State != message.CommandQueued {
		return message.CommandReply{}, fault.New(fault.Conflict, "cannot be cancelled")
	}
	found[0].State, found[0].Error = message.CommandCancelled, "cancelled"
	return d.reply(found[0]), d.stored(ctx, found[0])
}

func (d *dispatch) forget(_ context.Context, q message.CommandRequest) (message.CommandsForgetReply, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := len(d.find(q.Endpoint, ""))
	d.commands = slices.DeleteFunc(d.commands, func(c *message.CommandRecord) bool { return c.Endpoint == q.Endpoint })
	return message.CommandsForgetReply{Deleted: n}, nil
}

// asked returns how often the next command was asked for.
func (d *dispatch) asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.nexts
}

// objects returns how many objects there are.
func (d *dispatch) objects() int {
	d.t.Helper()
	list, err := d.files.List(d.t.Context())
	if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
		d.t.Fatal(err)
	}
	return len(list)
}

const (
	firstID  = "00000001-0000-4000-8000-000000000000"
	secondID = "00000002-0000-4000-8000-000000000000"
	noTime   = `"sent-time":"0001-01-01T00:00:00Z"`
)

// empty is a command without anything in it, as it waits.
func empty(uuid, name, args string) string {
	return `{"uuid":"` + uuid + `","name":"` + name + `","args":` + args + `,"drop":[],"fetch":{},"stdout":null,"stderr":null,"error":"",` +
		`"sent":false,"background":false,"completed":false,"expect-json":false,"timeout":0,` + noTime + `}`
}

func TestCommandAnswers(t *testing.T) {
	r := newRig(t, nil)
	startDispatch(r)
	e, none := r.endpoint(), "00000000-1111-2222-3333-444444444444"
	path := "/endpoints/" + e.UUID + "/command"
	unknown := nok("Unknown endpoint: " + none)
	notSet := nok("Command is not set for endpoint: " + e.UUID)
	shown := func(command string) string {
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return ok(strings.Replace(string(text), `"last-connection":`, `"command":`+command+`,"last-connection":`, 1))
	}
	for _, tc := range []struct{ method, path, body, want string }{
		{"GET", path, "", ok("null")},
		{"GET", path + "?wait=true", "", ok("null")},
		{"GET", path + "/completed", "", notSet},
		{"GET", path + "/nosuch", "", notSet},
		{"GET", path + "s", "", ok("[]")},
		{"GET", "/endpoints/" + none + "/command", "", unknown},
		{"GET", "/endpoints/" + none + "/command/completed", "", unknown},
		{"GET", "/endpoints/" + none + "/commands", "", unknown},
		{"GET", "/endpoints/" + none + "/commands/" + firstID, "", unknown},
		{"POST", "/endpoints/" + none + "/command", `{"command-line":"echo hello"}`, unknown},
		{"DELETE", "/endpoints/" + none + "/command/" + firstID, "", unknown},
		{"POST", path, "{nope", nok("invalid character 'n' looking for beginning of object key string")},
		{"POST", path, "", nok("unexpected end of JSON input")},
		{"POST", path, `{"command-line":"cmd \"abc"}`, nok("Failed to create command to execute: failed to parse command line:\u00a0EOF found when expecting closing quote")},
		{"POST", path, `{"drop-files":["nosuchfile"]}`, nok(`Failed to create command to execute: cannot read drop file "nosuchfile": no such file or directory`)},
		{"GET", path + "?wait=maybe", "", nok("Failed to parse wait parameter, it must be a boolean")},
		{"GET", path + "?wait-timeout=soon", "", nok("Failed to parse wait-timeout parameter, it must be a duration from 0 to 1h0m0s")},
		{"GET", path + "?wait=true&wait-timeout=-1s", "", nok("Failed to parse wait-timeout parameter, it must be a duration from 0 to 1h0m0s")},
		{"GET", path + "s?limit=x", "", nok("Failed to parse limit parameter, it must be a number that is not negative")},

		{"POST", path, `{}`, shown(empty(firstID, "", "null"))},
		{"GET", path, "", ok(empty(firstID, "", "null"))},
		{"POST", path, `{"command-line":"echo 'a b' x","drop-files":[""]}`, shown(empty(secondID, "echo", `["a b","x"]`))},
		{"GET", path, "", ok(empty(secondID, "echo", `["a b","x"]`))},
		{"GET", path + "?wait=true&wait-timeout=1ms", "", ok(empty(secondID, "echo", `["a b","x"]`))},
		{"GET", path + "s/" + firstID, "", ok(empty(firstID, "", "null"))},
		{"GET", path + "s/" + none, "", nok("Unknown command: " + none)},
		{"GET", "/endpoints/" + e.UUID, "", shown(empty(secondID, "echo", `["a b","x"]`))},
		{"GET", path + "/completed", "", ok("false")},
		{"GET", path + "/stdout", "", ok("null")},
		{"GET", path + "/stderr", "", ok("null")},
		{"GET", path + "/error", "", ok(`""`)},
		{"GET", path + "/files", "", ok("{}")},
		{"GET", path + "/fetch", "", ok("{}")},
		{"GET", path + "/sent", "", nok("Field sent not handled")},
		{"GET", path + "/nosuch", "", nok("Field nosuch not handled")},
		{"DELETE", path + "/" + secondID, "", ok(strings.NewReplacer(`"error":""`, `"error":"cancelled"`, `"completed":false`, `"completed":true`).
			Replace(empty(secondID, "echo", `["a b","x"]`)))},
		{"DELETE", path + "/" + secondID, "", nok("cannot be cancelled")},
		{"GET", path + "/completed", "", ok("true")},
		{"GET", path + "/error", "", ok(`"cancelled"`)},
	} {
		t.Run(tc.method+" "+tc.path+" "+tc.body, func(t *testing.T) {
			r.t = t
			r.expect(tc.method, tc.path, tc.body, tc.want)
		})
	}
	r.t = t
	if list := r.admin("GET", "/endpoints", "").body; strings.Contains(list, `"command"`) {
		t.Errorf("the list of endpoints shows commands: %s", list)
	}
	type entry struct{ UUID, State, Operator string }
	for range 3 {
		r.admin("POST", path, `{}`)
	}
	for query, want := range map[string]int{"": 5, "?limit=0": 0, "?limit=1": 1, "?limit=3": 3, "?limit=9": 5} {
		if got := data[[]entry](r, "GET", path+"s"+query, ""); len(got) != want || want > 4 && (got[4].UUID != firstID || got[3].State != "cancelled" || got[0].Operator != "admin") {
			t.Errorf("history%s is %+v, want %d", query, got, want)
		}
	}
	for _, p := range []string{path + "s/nosuch", "/endpoints/nosuch/command"} {
		if a := r.admin("GET", p, ""); a.code != 404 {
			t.Errorf("%s: %d", p, a.code)
		}
	}
	if a := r.admin("DELETE", path+"/stdout", ""); a.code != 405 {
		t.Errorf("DELETE of a field: %d", a.code)
	}
}

// TestCommandRoundTrip has a command with files, small and large ones, go to
// its endpoint and come back.
func TestCommandRoundTrip(t *testing.T) {
	drops := t.TempDir()
	r := newRig(t, func(c *Config) { c.DropDir = drops })
	d := startDispatch(r)
	e := r.endpoint()
	path := "/endpoints/" + e.UUID + "/command"
	large := bytes.Repeat([]byte("0123456789abcdef\xff"), 40<<10)
	for name, content := range map[string][]byte{"tool.sh": []byte("#!/bin/sh\n"), "large": large} {
		if err := os.WriteFile(filepath.Join(drops, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b64 := base64.StdEncoding.EncodeToString
	drop := `[{"uuid":"00000001-0000-4000-8000-000000000001","name":"tool.sh","data":"` + b64([]byte("#!/bin/sh\n")) + `","error":""},` +
		`{"uuid":"00000001-0000-4000-8000-000000000002","name":"large","data":"` + b64(large) + `","error":""}]`
	fetch := `{"C:\\a":{"uuid":"00000001-0000-4000-8000-000000000064","name":"","data":null,"error":""}}`
	waiting := `{"uuid":"` + firstID + `","name":"sh","args":["tool.sh"],"drop":` + drop + `,"fetch":` + fetch +
		`,"stdout":null,"stderr":null,"error":"","sent":false,"background":false,"completed":false,"expect-json":false,"timeout":10000000000,` + noTime + `}`
	a := r.admin("POST", path, `{"command-line":"sh tool.sh","drop-files":["tool.sh","large"],"fetch-files":["C:\\a"],"timeout":10}`)
	if !strings.Contains(a.body, `"command":`+waiting+`,"last-connection":`) || !json.Valid([]byte(a.body)) {
		t.Fatalf("POST answers %.600s", a.body)
	}
	r.expect("GET", path, "", ok(waiting))
	r.expect("GET", path+"/files", "", ok(fetch))
	if a := r.agent(e, "GET", "/commands", nil); a.code != 200 || a.body != waiting || a.err != nil {
		t.Fatalf("agent gets %d %.600s (%v)", a.code, a.body, a.err)
	}
	if a := r.agent(e, "GET", "/commands", nil); a.code != 204 || a.body != "" || a.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Fatalf("agent gets it again: %d %q %v", a.code, a.body, a.header)
	}
	result := `"name":"/bin/sh","args":["sh","tool.sh"],"drop":` + strings.NewReplacer(`"data":"`+b64(large)+`"`, `"data":null`).Replace(drop) +
		`,"fetch":` + strings.Replace(fetch, `"data":null`, `"data":"`+b64(large)+`"`, 1) + `,"stdout":"` + b64(large) + `","stderr":"","error":"exit status 1",`
	post := func(what, uuid string, zipIt bool) {
		t.Helper()
		body := `{"uuid":"` + uuid + `",` + result + `"sent":false,"background":false,"completed":false,"expect-json":false,"timeout":10000000000,` + noTime + `}`
		var a answer
		if zipIt {
			a = r.agent(e, "POST", "/commands", bytes.NewReader(gz(t, body)), "Content-Encoding", "gzip")
		} else {
			a = r.agent(e, "POST", "/commands", strings.NewReader(body))
		}
		if a.code != 200 || a.body != "" || a.header.Get("Content-Length") != "0" {
			t.Fatalf("%s: %d %q %v", what, a.code, a.body, a.header)
		}
	}
	sent := strings.NewReplacer(`"sent":false`, `"sent":true`, noTime, `"sent-time":"2026-02-03T04:05:06Z"`).Replace(waiting)
	before := d.objects()
	post("foreign", secondID, true)
	if a := r.agent(e, "POST", "/commands", strings.NewReader("{nope")); a.code != 200 || a.body != "" {
		t.Fatalf("malformed: %d %q", a.code, a.body)
	}
	if n := testutil.ToFloat64(r.svc.commands.malformed); n != 1 {
		t.Errorf("%v malformed results counted, want 1", n)
	}
	r.expect("GET", path, "", ok(sent))
	if n := d.objects(); n != before {
		t.Errorf("results that are ignored left %d objects", n-before)
	}
	post("result", firstID, true)
	done := `{"uuid":"` + firstID + `",` + result + `"sent":true,"background":false,"completed":true,"expect-json":false,"timeout":10000000000,"sent-time":"2026-02-03T04:05:06Z"}`
	r.expect("GET", path, "", ok(done))
	r.expect("GET", path+"/stdout", "", ok(`"`+b64(large)+`"`))
	r.expect("GET", path+"/stderr", "", ok(`""`))
	r.expect("GET", path+"/error", "", ok(`"exit status 1"`))
	if n := d.objects(); n != before+2 {
		t.Errorf("the result has %d objects, want 2", n-before)
	}
	post("repeated", firstID, false)
	r.expect("GET", path, "", ok(done))
	if n := d.objects(); n != before+2 {
		t.Errorf("repeated result left %d objects", n-before-2)
	}
	var actions []string
	for _, m := range r.messages(stream.Audit) {
		var a message.Audit
		if err := json.Unmarshal(m.Data, &a); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(m.Data, []byte("tool.sh")) {
			t.Errorf("the audit trail shows contents: %s", m.Data)
		}
		actions = append(actions, a.Action+" "+a.Target)
	}
	if !slices.Contains(actions, "command.queue "+e.UUID) {
		t.Errorf("audit trail is %v", actions)
	}
}

// TestPollsAskNobody has polls answered by the gateway alone, except where
// something may wait.
func TestPollsAskNobody(t *testing.T) {
	r := newRig(t, nil)
	d := startDispatch(r)
	idle, busy := r.endpoint(), r.endpoint()
	poll := func(e message.Endpoint, code int) {
		t.Helper()
		if a := r.agent(e, "GET", "/commands", nil); a.code != code {
			t.Fatalf("poll: %d %s, want %d", a.code, a.body, code)
		}
	}
	for range 20 {
		poll(idle, 204)
		poll(busy, 204)
	}
	if n := d.asked(); n != 0 {
		t.Fatalf("asked %d times, nothing was queued", n)
	}
	r.admin("POST", "/endpoints/"+busy.UUID+"/command", `{}`)
	eventually(t, "the command is handed out", func() bool { return r.agent(busy, "GET", "/commands", nil).code == 200 })
	// What was queued and what was handed out are two changes, and either may
	// become known after an answer that already took it into account.
	eventually(t, "the gateway knows that nothing waits", func() bool {
		before := d.asked()
		for range 20 {
			poll(idle, 204)
			poll(busy, 204)
		}
		return d.asked() == before
	})
	if n := d.asked(); n > 3 {
		t.Errorf("asked %d times, want one time for the command and one for each of two changes at most", n)
	}
	// A gateway that starts anew does not know what waits and asks.
	r.admin("POST", "/endpoints/"+busy.UUID+"/command", `{}`)
	r.restart()
	poll(busy, 200)
}

// TestPendingNone has a late answer not hide a newer command.
func TestPendingNone(t *testing.T) {
	p := newPendingCommands(nil, nil)
	p.setComplete(true)
	p.changed("a", 5)
	p.none("a", 4)
	if !p.have("a") {
		t.Error("an answer as of revision 4 hides the change of revision 5")
	}
	p.none("a", 5)
	if p.have("a") {
		t.Error("nothing waits as of revision 5")
	}
	p.setComplete(false)
	if !p.have("a") {
		t.Error("without a complete view anything may wait")
	}
}

// TestPendingOfACopyThatIsBehind has nobody be told that nothing waits while the
// copy that is followed lacks commands.
func TestPendingOfACopyThatIsBehind(t *testing.T) {
	js := natstest.Start(t).Bus(t, "test").JS
	kv, err := stream.EnsureKV(t.Context(), js, stream.Commands, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	const a, b, c = "00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b", "00000000-0000-0000-0000-00000000000c"
	for _, endpoint := range []string{a, b} {
		if _, err := kv.PutString(t.Context(), message.CommandKey(endpoint, c), "{}"); err != nil {
			t.Fatal(err)
		}
	}
	name, _ := stream.KVStream(stream.Commands)
	behind := natstest.NewBehind(t, js, name)
	p := newPendingCommands(behind, lifecycle.Discard())
	changes, stop := p.watch(a)
	defer stop()
	go p.run(t.Context())
	eventually(t, "followed", func() bool { return behind.Made.Load() > 0 })
	behind.Catchup(1)
	<-changes
	if !p.have(b) {
		t.Error("nothing is said to wait for an endpoint whose command the copy lacks")
	}
	behind.Catchup(1)
	eventually(t, "complete", func() bool { return !p.have(c) })
	if !p.have(a) || !p.have(b) {
		t.Error("a command is not known")
	}
}

func TestWaitForCommand(t *testing.T) {
	r := newRig(t, nil)
	startDispatch(r)
	e := r.endpoint()
	path := "/endpoints/" + e.UUID + "/command"
	r.admin("POST", path, `{"command-line":"echo"}`)
	eventually(t, "the command is handed out", func() bool { return r.agent(e, "GET", "/commands", nil).code == 200 })
	type shown struct {
		UUID      string
		Completed bool
		Stdout    string
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+r.svc.AdminAddr()+path+"?wait=true&wait-timeout=1m", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Api-Key", adminKey)
	answered := make(chan error, 1)
	var got struct{ Data shown }
	go func() {
		resp, err := client.Do(req)
		if err == nil {
			err = json.NewDecoder(resp.Body).Decode(&got)
			resp.Body.Close()
		}
		answered <- err
	}()
	eventually(t, "the request waits", func() bool {
		p := r.svc.commands.pending
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.watchers[e.UUID]) == 1
	})
	// A newer command does not end it.
	r.admin("POST", path, `{}`)
	if a := r.agent(e, "POST", "/commands", strings.NewReader(`{"uuid":"`+firstID+`","stdout":"aGkK"}`)); a.code != 200 {
		t.Fatalf("result: %d", a.code)
	}
	if err, want := <-answered, (shown{firstID, true, "aGkK"}); err != nil || got.Data != want {
		t.Fatalf("waited for %+v, %v; want %+v", got.Data, err, want)
	}
	eventually(t, "nobody watches", func() bool {
		p := r.svc.commands.pending
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.watchers) == 0
	})
}

// TestResultRefused has results that cannot be read or stored answered so
// that the agent sees it, and leave nothing behind.
func TestResultRefused(t *testing.T) {
	r := newRig(t, nil)
	e := r.endpoint()
	if a := r.agent(e, "POST", "/commands", strings.NewReader("{}")); a.code != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("without an object store: %d %s", a.code, a.body)
	}
	if a := r.agent(e, "GET", "/commands", nil); a.code != 503 {
		t.Errorf("poll without command-dispatch: %d %s", a.code, a.body)
	}
	d := startDispatch(r)
	path := "/endpoints/" + e.UUID + "/command"
	r.admin("POST", path, `{}`)
	eventually(t, "the command is handed out", func() bool { return r.agent(e, "GET", "/commands", nil).code == 200 })
	result := `{"uuid":"` + firstID + `","stderr":"` + strings.Repeat("AAAA", 200<<10) + `"}`
	whole := gz(t, result)
	refused := errors.New("refused")
	for _, tc := range []struct {
		name   string
		body   io.Reader
		header []string
		refuse error
		code   int
	}{
		{"not gzip", strings.NewReader("{}"), []string{"Content-Encoding", "gzip"}, nil, 500},
		{"unknown encoding", strings.NewReader("{}"), []string{"Content-Encoding", "br"}, nil, 415},
		{"gzip breaks off", bytes.NewReader(whole[:len(whole)-12]), []string{"Content-Encoding", "gzip"}, nil, 400},
		{"too much beside the files", io.MultiReader(strings.NewReader(`{"args":["`), io.LimitReader(ones{}, oneResultMemory), strings.NewReader(`"]}`)), nil, nil, 413},
		{"cannot be stored now", strings.NewReader(result), nil, fault.New(fault.Unavailable, "not now"), 503},
		{"failure", strings.NewReader(result), nil, refused, 500},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d.mu.Lock()
			d.refuse = tc.refuse
			d.mu.Unlock()
			if a := r.agent(e, "POST", "/commands", tc.body, tc.header...); a.code != tc.code {
				t.Errorf("%d %s, want %d", a.code, a.body, tc.code)
			}
		})
	}
	// What may have been recorded keeps its object; all else is gone.
	if n := d.objects(); n != 2 {
		t.Errorf("%d objects, want the 2 of results whose fate is not known", n)
	}
	r.expect("GET", path+"/completed", "", ok("false"))
	// A result that cannot be kept ends its command.
	d.mu.Lock()
	d.refuse = fault.New(fault.TooLarge, "too large")
	d.mu.Unlock()
	if a := r.agent(e, "POST", "/commands", strings.NewReader(result)); a.code != 200 {
		t.Errorf("result that cannot be kept: %d %s", a.code, a.body)
	}
	r.expect("GET", path+"/error", "", ok(`"Command was executed, but its result cannot be kept: it is too large"`))
	if n := d.objects(); n != 2 {
		t.Errorf("%d objects, want 2", n)
	}
}

// ones is the digit 1, without end.
type ones struct{}

func (ones) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '1'
	}
	return len(p), nil
}

// TestResultBreaksOff has a client that goes away in the middle of a file.
func TestResultBreaksOff(t *testing.T) {
	r := newRig(t, nil)
	d := startDispatch(r)
	e := r.endpoint()
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+r.svc.AgentAddr()+"/commands", io.MultiReader(
		strings.NewReader(`{"uuid":"x","stdout":"`), io.LimitReader(ones{}, 2<<20), iotest.ErrReader(errors.New("gone"))))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"UUID": e.UUID, "Api-Key": e.Key, "Hostname": "H"} {
		req.Header.Set(k, v)
	}
	if resp, err := client.Do(req); err == nil {
		resp.Body.Close()
		t.Fatalf("answered with %d", resp.StatusCode)
	}
	eventually(t, "nothing is left of the upload", func() bool {
		s, err := r.bus.JS.Stream(t.Context(), "OBJ_"+stream.Files)
		if err != nil {
			t.Fatal(err)
		}
		return s.CachedInfo().State.Msgs == 0
	})
	if n := d.objects(); n != 0 {
		t.Errorf("%d objects", n)
	}
}

// TestCommandFilesAreBounded has commands and results with files refused while
// there is no room for files; those without are accepted.
func TestCommandFilesAreBounded(t *testing.T) {
	drops := t.TempDir()
	if err := os.WriteFile(filepath.Join(drops, "large"), make([]byte, 2*message.MaxInlineBlob), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *Config) { c.DropDir, c.MaxCommandFiles = drops, message.MaxInlineBlob })
	d := startDispatch(r)
	e := r.endpoint()
	path := "/endpoints/" + e.UUID + "/command"
	r.admin("POST", path, `{"command-line":"first","drop-files":["large"]}`)
	if n := d.objects(); n != 1 {
		t.Fatalf("%d objects, want 1", n)
	}
	const bound = "(max-command-files)"
	if a := r.admin("POST", path, `{"drop-files":["large"]}`); !strings.Contains(a.body, bound) || !strings.Contains(a.body, `"NOK"`) {
		t.Errorf("a command beyond the bound: %d %s", a.code, a.body)
	}
	eventually(t, "the command is handed out", func() bool { return r.agent(e, "GET", "/commands", nil).code == 200 })
	large := `{"uuid":"` + firstID + `","stdout":"` + strings.Repeat("AAAA", message.MaxInlineBlob) + `"}`
	if a := r.agent(e, "POST", "/commands", strings.NewReader(large)); a.code != 503 || a.header.Get("Retry-After") == "" || !strings.Contains(a.body, bound) {
		t.Errorf("a result beyond the bound: %d %s", a.code, a.body)
	}
	if n := d.objects(); n != 1 {
		t.Errorf("%d objects, want 1", n)
	}
	if a := r.agent(e, "POST", "/commands", strings.NewReader(`{"uuid":"`+firstID+`","stdout":"aGkK"}`)); a.code != 200 {
		t.Errorf("a result without a file: %d %s", a.code, a.body)
	}
	r.expect("GET", path+"/stdout", "", ok(`"aGkK"`))
}

// TestDeliveryFails has a command whose files are gone end with an error.
func TestDeliveryFails(t *testing.T) {
	drops := t.TempDir()
	if err := os.WriteFile(filepath.Join(drops, "large"), make([]byte, message.MaxInlineBlob+1), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *Config) { c.DropDir = drops })
	d := startDispatch(r)
	e := r.endpoint()
	path := "/endpoints/" + e.UUID + "/command"
	r.admin("POST", path, `{"drop-files":["large"]}`)
	d.mu.Lock()
	object := d.commands[0].Drop[0].Data.Object
	d.mu.Unlock()
	if err := d.files.Delete(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	if a := r.admin("GET", path, ""); !strings.HasPrefix(a.body, `{"data":null,"message":"NOK","error":"value of command `) {
		t.Errorf("GET of a command whose file is gone: %s", a.body)
	}
	eventually(t, "the delivery fails", func() bool { return r.agent(e, "GET", "/commands", nil).code == 503 })
	r.expect("GET", path+"/completed", "", ok("true"))
	r.expect("GET", path+"/error", "", ok(`"Command could not be delivered: its files cannot be read"`))
}

func TestDeletedEndpointHasNoCommands(t *testing.T) {
	r := newRig(t, nil)
	d := startDispatch(r)
	e, other := r.endpoint(), r.endpoint()
	for _, x := range []message.Endpoint{e, other} {
		r.admin("POST", "/endpoints/"+x.UUID+"/command", `{"command-line":"echo"}`)
	}
	a := r.admin("DELETE", "/endpoints/"+e.UUID, "")
	if !strings.Contains(a.body, `"command":`+empty(firstID, "echo", "null")+`,"last-connection":`) || !strings.HasPrefix(a.body, `{"data":{"uuid":"`+e.UUID) {
		t.Errorf("DELETE answers %s", a.body)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.commands) != 1 || d.commands[0].Endpoint != other.UUID {
		t.Errorf("%d commands left", len(d.commands))
	}
}
