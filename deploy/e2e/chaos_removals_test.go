//go:build chaos || powerloss

package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// chaosRemovals is an operator who removes what an endpoint has stored, again
// and again.
type chaosRemovals struct {
	agent   *chaosAgent
	removed int
	files   int
}

func (o *chaosRemovals) step(c *chaos, r *rand.Rand) {
	a := o.agent
	a.step(c, r)
	body, err := json.Marshal(artifact{Filename: fmt.Sprintf("file%d.bin", o.files), GUID: "{" + processGUID + "}", EventHash: eventHash, Content: make([]byte, r.IntN(10_000))})
	if err != nil {
		panic(err)
	}
	o.files++
	c.again("upload", func(p *proc) error { return p.agentPost(a.e, "/upload/dumps", body) })
	if r.IntN(3) > 0 {
		return
	}
	path := "/endpoints/" + a.e.UUID
	c.again("DELETE stored", func(p *proc) error {
		_, _, err := p.told(http.MethodDelete, path+"/stored", "")
		return err
	})
	o.removed++
	for _, what := range []string{"/logs" + everything, "/alerts" + everything, "/artifacts"} {
		c.again("GET "+what, func(p *proc) error {
			data, _, err := p.told(http.MethodGet, path+what, "")
			if err == nil && string(data) != "[]" {
				c.t.Errorf("after a removal GET %s: %.200s", what, data)
			}
			return err
		})
	}
	a.again(c, r)
}

// again forgets what an agent has sent, and sends some of it once more, as if
// it had never been sent.
func (a *chaosAgent) again(c *chaos, r *rand.Rand) {
	a.mu.Lock()
	kept, alert := a.kept, a.alert
	a.kept, a.alert, a.past = map[int][]byte{}, map[int]bool{}, nil
	var lines [][]byte
	for n, line := range kept {
		if len(lines) == 10 {
			break
		}
		a.kept[n] = line
		if alert[n] {
			a.alert[n] = true
		}
		lines = append(lines, line)
	}
	a.mu.Unlock()
	if len(lines) > 0 {
		a.send(c, r, lines)
	}
}

// current returns the alerts without those that a removal has overtaken on
// their way to the stream, and which are deleted from it later. After the last
// removal there may be no alert, so its generation is read where it is recorded.
func (o *chaosRemovals) current(p *proc, all []jetstream.Msg) []jetstream.Msg {
	p.t.Helper()
	last := p.lastRemoval(p.asBackup(), o.agent.e).Generation
	var list []jetstream.Msg
	for _, m := range all {
		if m.Headers().Get("Nightjar-Endpoint") != o.agent.e.UUID || message.GenerationOf(m.Headers()) >= last {
			list = append(list, m)
		}
	}
	return list
}

// asBackup connects as whoever makes backups, who may read all streams.
func (p *proc) asBackup() jetstream.JetStream {
	p.t.Helper()
	js, err := jetstream.New(p.connect("backup"))
	if err != nil {
		p.t.Fatal(err)
	}
	return js
}
