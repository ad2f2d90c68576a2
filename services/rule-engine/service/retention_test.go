package ruleengine

import (
	"fmt"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// TestRetentionOfAlerts holds that the oldest alerts go beyond the size that is
// kept, that it is counted how many of them a SIEM has not acknowledged, and
// that what was raised is forgotten with them, and no more.
func TestRetentionOfAlerts(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.SIEMs, cfg.RetentionAlertBytes = []string{"reads", "sleeps"}, 10_000
	x := r.start(cfg)
	x.mustAdd(false, rule("evil", "evil", 5, ""))
	const alerts = 30
	lines := make([]string, alerts)
	for i := range lines {
		lines[i] = event4(i, "evil.exe")
	}
	r.send(endpointA, lines[:5]...)
	r.settle()
	c, err := r.bus.JS.Consumer(t.Context(), stream.Alerts, "reads")
	if err != nil {
		t.Fatal(err)
	}
	read, err := c.Fetch(5)
	if err != nil {
		t.Fatal(err)
	}
	for m := range read.Messages() {
		if err := m.DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.send(endpointA, lines[5:]...)
	r.settle()
	var first, last uint64
	eventually(t, func() error {
		s, err := r.bus.JS.Stream(t.Context(), stream.Alerts)
		if err != nil {
			return err
		}
		st := s.CachedInfo().State
		if first, last = st.FirstSeq, st.LastSeq; st.Bytes > 10_000 || last != alerts {
			return fmt.Errorf("%d alerts of %d, %d bytes", st.Msgs, last, st.Bytes)
		}
		return nil
	})
	if first < 10 || first > alerts {
		t.Fatalf("the oldest alert is number %d of %d", first, last)
	}
	for siem, want := range map[string]uint64{"reads": first - 6, "sleeps": first - 1} {
		eventually(t, func() error {
			if n := x.value("nightjar_rule_engine_retention_unread_alerts_total", "siem", siem); n != float64(want) {
				return fmt.Errorf("%v alerts of SIEM %s went unread, want %d", n, siem, want)
			}
			return nil
		})
	}
	// Alerts of a batch come in any order.
	kept := map[string]bool{}
	for _, a := range r.alerts() {
		kept[string(a.Hash[:])] = true
	}
	for i, l := range lines {
		hash := event.HashOf([]byte(l))
		eventually(t, func() error {
			raised, err := x.s.isRaised(raisedKey(endpointA, 0, hash))
			if err == nil && raised != kept[string(hash[:])] {
				err = fmt.Errorf("alert %d: raised is %v, kept %v", i, raised, kept[string(hash[:])])
			}
			return err
		})
	}
	// The SIEM that slept gets what there is.
	if c, err = r.bus.JS.Consumer(t.Context(), stream.Alerts, "sleeps"); err != nil {
		t.Fatal(err)
	}
	m, err := c.Next()
	if err != nil {
		t.Fatal(err)
	}
	if meta, err := m.Metadata(); err != nil || meta.Sequence.Stream != first {
		t.Errorf("the SIEM gets %+v, %v, want alert %d", meta, err, first)
	}
}

// TestRaisedInHand holds that alerts that retention has removed before they were
// folded are forgotten as well.
func TestRaisedInHand(t *testing.T) {
	r := newRig(t)
	x := r.start(r.config())
	x.mustAdd(false, rule("evil", "evil", 5, ""))
	if err := x.s.dropRaised(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	r.send(endpointA, event4(0, "evil.exe"))
	r.settle()
	r.send(endpointA, event4(1, "evil.exe"))
	r.settle()
	if err := x.s.raisedFold.Wait(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{false, true} {
		raised, err := x.s.isRaised(raisedKey(endpointA, 0, event.HashOf([]byte(event4(i, "evil.exe")))))
		if err != nil || raised != want {
			t.Errorf("alert %d: raised is %v, %v, want %v", i, raised, err, want)
		}
	}
}
