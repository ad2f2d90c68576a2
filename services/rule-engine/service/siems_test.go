package ruleengine

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// What waits for a SIEM, what it has in hand and whether it has ever fetched
// anything is told for each, seen with the rights of the service, and nothing
// of one whose consumer is gone.
func TestSIEMsAreWatched(t *testing.T) {
	own, all := natstest.Restricted(t, access.Rules)
	if err := stream.Ensure(t.Context(), all.JS, stream.Alerts, stream.Limits{}); err != nil {
		t.Fatal(err)
	}
	s := &Service{cfg: Config{Env: lifecycle.Env{Bus: own, Log: lifecycle.Discard()}}}
	for _, name := range []string{"used", "unused"} {
		if err := s.ensureSIEM(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		if _, err := all.JS.Publish(t.Context(), subject.Alerts(subject.High, endpointA), nil); err != nil {
			t.Fatal(err)
		}
	}
	c, err := all.JS.Consumer(t.Context(), stream.Alerts, "used")
	if err != nil {
		t.Fatal(err)
	}
	batch, err := c.Fetch(3)
	if err != nil {
		t.Fatal(err)
	}
	var msgs []jetstream.Msg
	for m := range batch.Messages() {
		msgs = append(msgs, m)
	}
	if err := msgs[0].DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	w := newSIEMWatch(reg, own.JS, lifecycle.Discard(), []string{"used", "unused"})
	want := func(lines string) {
		t.Helper()
		// A consumer learns of a message a moment after the stream has it.
		eventually(t, func() error {
			for _, name := range w.names {
				w.look(t.Context(), name)
			}
			return testutil.GatherAndCompare(reg, strings.NewReader(lines), "nightjar_rule_engine_siem_pending_alerts",
				"nightjar_rule_engine_siem_unacknowledged_alerts", "nightjar_rule_engine_siem_deliveries_total")
		})
	}
	const unused = `# HELP nightjar_rule_engine_siem_pending_alerts Alerts that a SIEM has not fetched yet. No value while NATS does not tell.
# TYPE nightjar_rule_engine_siem_pending_alerts gauge
nightjar_rule_engine_siem_pending_alerts{siem="unused"} 5
# HELP nightjar_rule_engine_siem_unacknowledged_alerts Alerts that a SIEM has fetched and not acknowledged yet.
# TYPE nightjar_rule_engine_siem_unacknowledged_alerts gauge
nightjar_rule_engine_siem_unacknowledged_alerts{siem="unused"} 0
# HELP nightjar_rule_engine_siem_deliveries_total Alerts that a SIEM has fetched, counted as often as it fetched them; 0 says that nobody has ever used its consumer.
# TYPE nightjar_rule_engine_siem_deliveries_total counter
nightjar_rule_engine_siem_deliveries_total{siem="unused"} 0
`
	want(unused + `nightjar_rule_engine_siem_pending_alerts{siem="used"} 2
nightjar_rule_engine_siem_unacknowledged_alerts{siem="used"} 2
nightjar_rule_engine_siem_deliveries_total{siem="used"} 3
`)
	if err := all.JS.DeleteConsumer(t.Context(), stream.Alerts, "used"); err != nil {
		t.Fatal(err)
	}
	want(unused)
}
