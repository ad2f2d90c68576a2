package ingest

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

func TestShare(t *testing.T) {
	host := func(name string, err error) func() (string, error) {
		return func() (string, error) { return name, err }
	}
	for name, c := range map[string]struct {
		shards, ordinal int
		host            func() (string, error)
		first           int // of the partitions, -1 for all
		fails           bool
	}{
		"one":                  {1, -1, host("", errors.New("none")), -1, false},
		"given":                {3, 2, host("", errors.New("none")), 2, false},
		"wrapped":              {3, 4, host("", errors.New("none")), 1, false},
		"from the host":        {3, -1, host("log-ingest-2", nil), 2, false},
		"two digits":           {8, -1, host("log-ingest-13", nil), 5, false},
		"no number":            {3, -1, host("log-ingest", nil), 0, true},
		"no host":              {3, -1, host("", errors.New("none")), 0, true},
		"no shards":            {0, 0, host("x-1", nil), 0, true},
		"too many shards":      {subject.Partitions + 1, 0, host("x-1", nil), 0, true},
		"an impossible number": {3, -2, host("x-1", nil), 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := share(c.shards, c.ordinal, c.host)
			if c.fails {
				if err == nil {
					t.Fatalf("got %v, want an error", got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.first < 0 {
				if got != nil {
					t.Fatalf("got %v, want all", got)
				}
				return
			}
			var want []int
			for p := c.first; p < subject.Partitions; p += c.shards {
				want = append(want, p)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("got %v, want %v", got, want)
			}
		})
	}
}

// TestSharesCover holds that shares do not overlap and leave nothing out.
func TestSharesCover(t *testing.T) {
	for shards := 2; shards <= subject.Partitions; shards++ {
		var all []int
		for ordinal := range shards {
			own, err := share(shards, ordinal, nil)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, own...)
		}
		slices.Sort(all)
		for p := range subject.Partitions {
			if len(all) != subject.Partitions || all[p] != p {
				t.Fatalf("%d shards own %v", shards, all)
			}
		}
	}
}

func TestFlags(t *testing.T) {
	srv := natstest.Start(t)
	env := lifecycle.Env{Bus: srv.Bus(t, "log-ingest"), Log: lifecycle.Discard(), Metrics: prometheus.NewRegistry(), DataDir: t.TempDir()}
	build := func(args ...string) (*Service, error) {
		t.Helper()
		fs := flag.NewFlagSet("log-ingest", flag.ContinueOnError)
		fs.SetOutput(io.Discard)
		f := Flags(fs)
		if err := fs.Parse(args); err != nil {
			t.Fatal(err)
		}
		c, err := f(env)
		if err != nil {
			return nil, err
		}
		return c.(*Service), nil
	}
	s, err := build("--shards", "2", "--ordinal", "1", "--retention-alerts", "2d", "--merge-after", "1m")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.db.Close(); err != nil {
			t.Error(err)
		}
	}()
	if s.cfg.RetentionAlerts != 48*time.Hour || s.cfg.MergeAfter != time.Minute || !slices.Contains(s.holding.own.list(), 1) || s.holding.own.all() {
		t.Errorf("retention %v, merged after %v, partitions %v", s.cfg.RetentionAlerts, s.cfg.MergeAfter, s.holding.own.list())
	}
	if err := s.Ready(); err == nil {
		t.Error("ready before it runs")
	}
}

func TestUnusableFlags(t *testing.T) {
	natstest.UnusableFlags(t, Flags,
		[]string{"--shards", "99"}, []string{"--shards", "0"}, []string{"--ordinal", "-2"},
		[]string{"--ordinal", "-2", "--shards", "4"}, []string{"--retention-alerts", "-1h"}, []string{"--merge-after", "0"}, []string{"--ops-addr", "nowhere"})
}

// TestPartitions runs two replicas that own a share each on one server.
func TestPartitions(t *testing.T) {
	r := newRig(t)
	p1, two := subject.PartitionOf(one), ""
	for n := 0; two == "" || subject.PartitionOf(two)%2 == p1%2; n++ {
		two = fmt.Sprintf("%08d%s", n, one[8:])
	}
	p2 := subject.PartitionOf(two)
	own := func(p int) []int {
		list, err := share(2, p, nil)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	r.send(one, noon, line(noon, 1))
	r.send(two, noon, line(noon, 2))
	m1 := r.mark(one, line(noon, 1), noon, 3)
	m2 := r.mark(two, line(noon, 2), noon, 3)
	other := &rig{t: t, srv: r.srv, bus: r.bus, own: r.own, dir: t.TempDir()}
	r.cfg.Partitions, other.cfg.Partitions = own(p1), own(p2)
	r.start()
	other.start()
	for endpoint, want := range map[string]string{one: m1, two: m2} {
		r.eventually("both replicas have folded", func() bool {
			return slices.Equal(r.ask(message.LogsRequest{Endpoint: endpoint}), []string{want})
		})
	}
	for name, x := range map[string]*rig{"first": r, "second": other} {
		if events, alerts := x.metric("events_stored_total"), x.metric("alerts_stored_total"); events != 1 || alerts != 1 {
			t.Errorf("the %s replica has stored %v events and %v alerts, want one of each", name, events, alerts)
		}
	}
	if _, err := r.svc.parse(&message.LogsRequest{Endpoint: two}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a question for the other share: %v, want unavailable", err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	cfg := r.cfg
	cfg.Metrics = prometheus.NewRegistry()
	for name, partitions := range map[string][]int{"none": {}, "negative": {-1}, "beyond": {subject.Partitions}} {
		cfg.Partitions, cfg.DataDir = partitions, filepath.Join(r.dir, name)
		if s, err := New(cfg); err == nil {
			t.Errorf("%s: made %v, want an error", name, s)
		}
	}
}
