//go:build chaos || powerloss

package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"
)

// chaosDesk is an endpoint that executes commands, and the operator who asks.
type chaosDesk struct {
	e endpoint

	mu sync.Mutex
	// queued are the commands whose queueing was acknowledged, by their UUID.
	queued map[string]chaosCommand
	// cancelled are those whose cancelling was.
	cancelled map[string]bool
	// lost is how many commands may have been queued beside them.
	lost int
	// handed are the commands that came to the endpoint, with the result that
	// was acknowledged.
	handed map[string]chaosResult
	// broken is how many polls got no answer.
	broken int
	asked  int
}

type chaosCommand struct {
	arg   string
	drops bool
	fetch bool
}

type chaosResult struct {
	stdout, file []byte
}

// droppedTool is the file that commands drop.
var droppedTool = bytes.Repeat([]byte("dropped tool "), 60<<10)

func newChaosDesk(e endpoint) *chaosDesk {
	return &chaosDesk{e: e, queued: map[string]chaosCommand{},
		cancelled: map[string]bool{}, handed: map[string]chaosResult{}}
}

// waiting returns how many commands were asked for and did not come yet.
func (d *chaosDesk) waiting() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.queued) - len(d.handed) - len(d.cancelled)
}

// ask queues a command, and cancels one now and then.
func (d *chaosDesk) ask(c *chaos, r *rand.Rand) {
	if d.waiting() > 8 {
		return
	}
	d.asked++
	cmd := chaosCommand{arg: fmt.Sprintf("arg-%d", d.asked), drops: r.IntN(3) == 0, fetch: r.IntN(3) == 0}
	body := fmt.Sprintf(`{"command-line":"run %s","timeout":%d`, cmd.arg, c.timeout)
	if cmd.drops {
		body += `,"drop-files":["tool"]`
	}
	if cmd.fetch {
		body += `,"fetch-files":["/out"]`
	}
	var uuid string
	lost := c.again("POST command", func(p *proc) error {
		data, _, err := p.told(http.MethodPost, "/endpoints/"+d.e.UUID+"/command", body+"}")
		if err != nil {
			return err
		}
		var shown struct{ Command command }
		err = json.Unmarshal(data, &shown)
		uuid = shown.Command.UUID
		return err
	})
	d.mu.Lock()
	d.lost += lost
	if uuid != "" {
		d.queued[uuid] = cmd
	}
	d.mu.Unlock()
	if r.IntN(4) > 0 {
		return
	}
	tried := false
	c.again("DELETE command", func(p *proc) error {
		_, failure, err := p.told(http.MethodDelete, "/endpoints/"+d.e.UUID+"/command/"+uuid, "", "cannot be cancelled", "is cancelled already")
		if err == nil && (failure == "" || tried && strings.Contains(failure, "already")) {
			d.mu.Lock()
			d.cancelled[uuid] = true
			d.mu.Unlock()
		}
		tried = true
		return err
	})
}

// execute polls for a command and answers it.
func (d *chaosDesk) execute(c *chaos, r *rand.Rand) {
	p := c.now.Load()
	cmd, err := p.poll(d.e)
	if err != nil {
		d.mu.Lock()
		d.broken++
		d.mu.Unlock()
		return
	}
	if cmd == nil {
		return
	}
	res := chaosResult{stdout: fmt.Appendf(nil, "out of %v", cmd.Args)}
	d.mu.Lock()
	if _, twice := d.handed[cmd.UUID]; twice {
		c.t.Errorf("command %s was handed out twice", cmd.UUID)
	}
	d.handed[cmd.UUID] = chaosResult{}
	d.mu.Unlock()
	for _, f := range cmd.Drop {
		if !bytes.Equal(f.Data, droppedTool) {
			c.t.Errorf("command %s drops %d bytes, want %d", cmd.UUID, len(f.Data), len(droppedTool))
		}
	}
	fetched := "{}"
	if f, ok := cmd.Fetch["/out"]; ok {
		res.file = bytes.Repeat([]byte(cmd.UUID), 1+r.IntN(20_000))
		fetched = fmt.Sprintf(`{"/out":{"uuid":%q,"name":"","data":%q,"error":""}}`, f.UUID, base64.StdEncoding.EncodeToString(res.file))
	}
	body := fmt.Sprintf(`{"uuid":%q,"name":"run","args":["x"],"drop":[],"fetch":%s,"stdout":%q,"stderr":null,"error":""}`,
		cmd.UUID, fetched, base64.StdEncoding.EncodeToString(res.stdout))
	c.again("POST result", func(p *proc) error { return p.agentPost(d.e, "/commands", []byte(body)) })
	d.mu.Lock()
	d.handed[cmd.UUID] = res
	d.mu.Unlock()
}

// verify hands out what still waits, and holds every command against what
// was acknowledged of it.
func (d *chaosDesk) verify(c *chaos, p *proc) {
	for end := time.Now().Add(deadline); time.Now().Before(end); {
		n, broken := len(d.handed), d.broken
		d.execute(c, c.rand(90))
		if len(d.handed) == n && d.broken == broken {
			break
		}
	}
	var list []struct {
		UUID, State, Error string
		Args               []string
	}
	if err := json.Unmarshal(p.data(http.MethodGet, "/endpoints/"+d.e.UUID+"/commands?limit=100000", ""), &list); err != nil {
		c.t.Fatal(err)
	}
	unanswered := 0
	state := map[string]string{}
	for _, l := range list {
		state[l.UUID] = l.State
		res, handed := d.handed[l.UUID]
		switch {
		case handed && l.State != "completed":
			c.t.Errorf("command %s was handed out and answered, its state is %s", l.UUID, l.State)
		case handed:
			d.result(c, p, l.UUID, res)
		case d.cancelled[l.UUID] && l.State != "cancelled":
			c.t.Errorf("command %s was cancelled, its state is %s", l.UUID, l.State)
		case l.State == "queued":
			c.t.Errorf("command %s waits and is not handed out", l.UUID)
		case l.State != "cancelled":
			unanswered++
			if l.State != "sent" && !strings.Contains(l.Error, "deliver") {
				c.t.Errorf("command %s was not answered, its state is %s, its error %q", l.UUID, l.State, l.Error)
			}
		}
	}
	for uuid := range d.handed {
		if state[uuid] == "" {
			c.t.Errorf("command %s was handed out and is not listed", uuid)
		}
	}
	for uuid := range d.queued {
		if state[uuid] == "" {
			c.t.Errorf("command %s was queued and is lost", uuid)
		}
	}
	for uuid := range d.cancelled {
		if _, handed := d.handed[uuid]; handed {
			c.t.Errorf("command %s was cancelled and handed out", uuid)
		}
	}
	if unanswered > d.broken {
		c.t.Errorf("%d commands are sent and never came, only %d polls broke off", unanswered, d.broken)
	}
	if n := len(list) - len(d.queued); n > d.lost {
		c.t.Errorf("%d commands more than were asked for, only %d requests broke off", n, d.lost)
	}
}

// result compares a command's result with the one that was sent.
func (d *chaosDesk) result(c *chaos, p *proc, uuid string, want chaosResult) {
	var got command
	if err := json.Unmarshal(p.data(http.MethodGet, "/endpoints/"+d.e.UUID+"/commands/"+uuid, ""), &got); err != nil {
		c.t.Fatal(err)
	}
	var stdout []byte
	if err := json.Unmarshal(got.Stdout, &stdout); err != nil {
		c.t.Fatal(err)
	}
	if !bytes.Equal(stdout, want.stdout) || !bytes.Equal(got.Fetch["/out"].Data, want.file) || !got.Completed || got.Error != "" {
		c.t.Errorf("command %s has stdout %q and %d bytes fetched, error %q, want %q and %d", uuid, stdout, len(got.Fetch["/out"].Data), got.Error, want.stdout, len(want.file))
	}
}
