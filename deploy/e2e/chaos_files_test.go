//go:build chaos || powerloss

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
)

// chaosFiles is an endpoint that uploads files.
type chaosFiles struct {
	e       endpoint
	content map[string][]byte
}

func (f *chaosFiles) step(c *chaos, r *rand.Rand) {
	name := fmt.Sprintf("file%d.bin", len(f.content))
	content := bytes.Repeat([]byte(name), 1+r.IntN(100_000))
	parts := 1
	if r.IntN(2) == 0 {
		parts = 2 + r.IntN(3)
	}
	order := r.Perm(parts)
	if r.IntN(3) == 0 {
		order = append(order, r.IntN(parts))
	}
	for _, n := range order {
		a := artifact{Filename: name, GUID: "{" + processGUID + "}", EventHash: eventHash, Content: content[n*len(content)/parts : (n+1)*len(content)/parts]}
		if parts > 1 {
			a.Chunk, a.Total = n+1, parts
		}
		body, err := json.Marshal(a)
		if err != nil {
			panic(err)
		}
		c.again("upload", func(p *proc) error { return p.agentPost(f.e, "/upload/dumps", body) })
	}
	f.content[name] = content
}

// chaosClears is an operator who clears the report of an endpoint.
type chaosClears struct {
	agent *chaosAgent
	// counted are the alerts in the reports that were returned, lost how many
	// reports may have got lost.
	counted, lost, cleared int
}

func (o *chaosClears) step(c *chaos, r *rand.Rand) {
	o.agent.step(c, r)
	if r.IntN(4) > 0 {
		return
	}
	o.lost += c.again("DELETE report", func(p *proc) error {
		data, _, err := p.told(http.MethodDelete, "/endpoints/"+o.agent.e.UUID+"/report", "")
		if err != nil {
			return err
		}
		n, err := alertCount(data)
		o.counted += n
		return err
	})
	o.cleared++
}

// alertCount returns how many alerts a report has.
func alertCount(report json.RawMessage) (int, error) {
	var r *struct {
		Count int `json:"alert-count"`
	}
	if err := json.Unmarshal(report, &r); err != nil || r == nil {
		return 0, err
	}
	return r.Count, nil
}

// agentPost makes an agent's request that must be answered with 200.
func (p *proc) agentPost(e endpoint, path string, body []byte) error {
	resp, err := p.client.Do(p.request(e, http.MethodPost, path, bytes.NewReader(body), false))
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("POST %s: %s", path, resp.Status)
	}
	return nil
}
