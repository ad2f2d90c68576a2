package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

const ingestEndpoints = 32

// plans spread events over endpoints, each beginning elsewhere in the mix,
// their times ending about now.
func (m *mix) plans(endpoints, events, batch int) []plan {
	const step = 10 * time.Millisecond
	out := make([]plan, endpoints)
	each := events / endpoints
	for i := range out {
		out[i] = plan{first: i * len(m.templates) / endpoints, events: each, batch: batch, begin: time.Now().Add(-time.Duration(each) * step), step: step}
	}
	return out
}

// ingest measures batches of 100 events, as agents with much to say send them.
func (b *bench) ingest(ctx context.Context) error {
	if err := b.ingestOf(ctx, b.mix, ""); err != nil || b.all == nil {
		return err
	}
	return b.ingestOf(ctx, b.all, ", all recordings")
}

// ingestOf measures events of a mix, which the names of the figures end with.
func (b *bench) ingestOf(ctx context.Context, m *mix, of string) error {
	events := b.size(640_000, 32_000)
	bodies := m.bodies(m.plans(ingestEndpoints, events, 100))
	base, err := b.ingestBaseline(bodies)
	if err != nil {
		return err
	}
	l, disk, err := b.loadOnce(ctx, "ingest", bodies)
	if err != nil {
		return err
	}
	b.say("ingest: %s: %d events, %d bytes each; 50 %% of POSTs within %s ms, 99 %% within %s ms", m.name, l.events, l.raw/l.events,
		short(percentile(l.times, 0.5)), short(percentile(l.times, 0.99)))
	b.add(figure{section: "ingest", name: "CPU seconds per million events" + of, value: l.perMillion(), bound: atMost, goal: 18,
		baseline: base.append + base.gene, against: fmt.Sprintf("append %s + gene %s", short(base.append), short(base.gene))})
	b.add(figure{section: "ingest", name: "events acknowledged" + of, unit: "/s", value: l.rate(), bound: atLeast, goal: 60_000,
		baseline: 2e6 / (base.append + base.gene), against: "append + gene on two cores"})
	b.add(figure{section: "ingest", name: "all queryable after the last 200" + of, unit: "s", value: l.settling.Seconds(), bound: atMost, goal: 2})
	b.addDisk("batches of 100"+of, l, disk, base.bytes)
	return nil
}

// single measures batches of one event, as many events as ingest: the last block
// of a stream is stored as it came, and weighs little on the disk of many.
func (b *bench) single(ctx context.Context) error {
	events := b.size(640_000, 3_200)
	plans := b.mix.plans(ingestEndpoints, events, 1)
	base, err := b.publishBaseline(ctx, plans[0], b.size(20_000, 1_000))
	if err != nil {
		return err
	}
	l, disk, err := b.loadOnce(ctx, "single", b.mix.bodies(plans))
	if err != nil {
		return err
	}
	b.say("single: %d events; 50 %% of POSTs within %s ms, 99 %% within %s ms", l.events, short(percentile(l.times, 0.5)), short(percentile(l.times, 0.99)))
	b.add(figure{section: "single", name: "events acknowledged, one in a request", unit: "/s", value: l.rate(), bound: atLeast, goal: 5 * 1530,
		baseline: base.rate, against: "JetStream publish loop"})
	b.add(figure{section: "single", name: "CPU seconds per million events", value: l.perMillion(), baseline: base.cpu, against: "JetStream publish loop"})
	b.addDisk("batches of 1", l, disk, 0)
	return nil
}

// usage is the disk use of a manager's data after what was stored is merged, and
// what CPU time that took.
type usage struct {
	stream, views int64
	merging       time.Duration
}

func (u usage) perEvent(events int) float64 { return float64(u.stream+u.views) / float64(events) }

func (b *bench) addDisk(name string, l *loaded, u usage, baseline float64) {
	b.say("disk: %s: JetStream %d, stores %d bytes per event; until all was merged %s CPU seconds per million events more",
		name, u.stream/int64(l.events), u.views/int64(l.events), short(u.merging.Seconds()/float64(l.events)*1e6))
	b.add(figure{section: "disk", name: "bytes per event, " + name, value: u.perEvent(l.events), bound: atMost, goal: 150,
		baseline: baseline, against: "gzip append"})
}

// mergeAfter is how long nothing comes until what is stored is merged; an hour
// with little in it waits 20 times as long.
func (b *bench) mergeAfter() time.Duration {
	return either(b.short, 100*time.Millisecond, time.Second)
}

// loadOnce loads a fresh manager, waits until all of it is merged, stops it, and
// returns what its data took.
func (b *bench) loadOnce(ctx context.Context, name string, bodies [][]body) (*loaded, usage, error) {
	m, err := b.start(ctx, name, "--tls", "off", "--merge-after", b.mergeAfter().String())
	if err != nil {
		return nil, usage{}, err
	}
	var l *loaded
	var merging time.Duration
	endpoints, err := m.enrol(ctx, len(bodies))
	if err == nil {
		stop := b.profileOf(m, name)
		l, err = m.load(ctx, endpoints, bodies)
		stop()
		if err == nil {
			merging, err = m.settle(ctx, 3*b.mergeAfter())
		}
	}
	if err := errors.Join(err, m.stop()); err != nil {
		return nil, usage{}, err
	}
	u, err := dataUse(filepath.Join(m.dir, "data"))
	u.merging = merging
	return l, u, errors.Join(err, os.RemoveAll(m.dir))
}

// settle waits until nothing was left to be merged for some time, and returns the
// CPU time that was used meanwhile.
func (m *manager) settle(ctx context.Context, quiet time.Duration) (time.Duration, error) {
	before, err := m.cpu()
	if err != nil {
		return 0, err
	}
	var since time.Time
	err = untilEvery(ctx, 500*time.Millisecond, "chunks to be merged", func() error {
		waiting, err := m.metric("nightjar_log_ingest_merge_waiting_hours")
		if err != nil || waiting != 0 {
			since = time.Time{}
			return errors.Join(err, fmt.Errorf("%v hours wait", waiting))
		}
		if since.IsZero() {
			since = time.Now()
		}
		if time.Since(since) < quiet {
			return errors.New("more may come")
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	after, err := m.cpu()
	return after - before, err
}

// dataUse returns the disk use of a data folder.
func dataUse(data string) (usage, error) {
	all, err := diskUse(data)
	if err != nil {
		return usage{}, err
	}
	js, err := diskUse(filepath.Join(data, "nats"))
	return usage{stream: js, views: all - js}, err
}

// profileOf has perf record where a manager spends its time, when that is
// wanted, and returns what ends it.
func (b *bench) profileOf(m *manager, name string) func() {
	if b.profile == "" {
		return func() {}
	}
	perf := exec.Command("perf", "record", "-q", "-F", "199", "-g", "-p", strconv.Itoa(m.pid), "-o", filepath.Join(b.profile, name+".data"))
	if err := perf.Start(); err != nil {
		b.say("no profile: %v", err)
		return func() {}
	}
	return func() {
		_ = perf.Process.Signal(os.Interrupt)
		_ = perf.Wait() // it ends with the signal's error
	}
}
