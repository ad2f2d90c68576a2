package message_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// TestAlertHeadersAreBounded makes alerts that do not fit into the headers
// that JetStream takes: they can be published all the same, and come back.
func TestAlertHeadersAreBounded(t *testing.T) {
	var names []string
	var rules []message.RuleInfo
	for i := range 3000 {
		names = append(names, fmt.Sprintf("Signature,%04d with a long name", i))
		rules = append(rules, message.RuleInfo{Name: names[i], Criticality: 3, ATTACK: []event.Attack{{ID: "T1059", Tactic: "execution", Reference: strings.Repeat("r", 200)}}})
	}
	list := `["` + strings.Join(names, `","`) + `"]`
	large := `"` + strings.Repeat("x", 1<<20) + `"`
	for name, c := range map[string]struct {
		line   string
		origin message.Origin
	}{
		"many signatures":                 {`{"Event":{"GeneInfo":{"Signature":` + list + `,"Criticality":9}}}`, message.OriginBoth},
		"many signatures in Detection":    {`{"Event":{"Detection":{"Signature":` + list + `,"Criticality":9}}}`, message.OriginAgent},
		"a large EdrData":                 {`{"Event":{"EdrData":` + large + `,"GeneInfo":{"Signature":` + list + `,"Criticality":9}}}`, message.OriginManager},
		"much between what is replaced":   {`{"Event":{"GeneInfo":null,"Data":` + large + `,"Detection":{"Signature":` + list + `,"Criticality":9}}}`, message.OriginAgent},
		"a large EdrData and no mark yet": {`{"Event":{"EdrData":` + large + `},"detection":{"rules":` + list + `,"severity":9}}`, message.OriginAgent},
	} {
		t.Run(name, func(t *testing.T) {
			a := message.Alert{Endpoint: endpoint, Hostname: strings.Repeat("h", 100_000), Received: received, Time: received, Hash: event.HashOf(nil),
				Line: []byte(c.line), Signatures: names, Criticality: 9, Origin: c.origin, Rules: rules}
			m, err := a.Msg()
			if err != nil {
				t.Fatal(err)
			}
			size := 0
			for k, v := range m.Header {
				size += len(k) + len(v[0]) + 4
			}
			if size > 60<<10 {
				t.Errorf("%d bytes of headers", size)
			}
			info, err := event.Scan(m.Data)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(info.EdrData.Of(m.Data)), endpoint) {
				t.Error("the EdrData that counts is not the manager's")
			}
			if mark := event.AgentMark(m.Data, &event.Info{GeneInfo: info.GeneInfo}); mark == nil || len(mark.Signatures) != len(names) {
				t.Error("the payload's GeneInfo has not all signatures")
			}
			back, err := message.ParseAlert(m.Header, m.Data)
			if err != nil {
				t.Fatal(err)
			}
			if string(back.Line) != c.line {
				t.Error("the stored line is not the one that was sent")
			}
			if !slices.Equal(back.Signatures, names) {
				t.Errorf("%d signatures came back, want %d", len(back.Signatures), len(names))
			}
			if len(back.Rules) < 100 {
				t.Errorf("only %d rules came back", len(back.Rules))
			}
		})
	}
}
