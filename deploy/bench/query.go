package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/klauspost/compress/gzip"
)

const (
	day          = 24 * time.Hour
	queryRepeats = 9
)

// query measures what an hour and a day of one endpoint cost, and how long a
// start takes with all that stored.
func (b *bench) query(ctx context.Context) error {
	many, few := b.size(1_000_000, 20_000), b.size(100_000, 2_000)
	end := time.Now()
	plans := make([]plan, 0, 2)
	for _, n := range []int{many, few} {
		plans = append(plans, plan{events: n, batch: 500, begin: end.Add(-day), step: day / time.Duration(n)})
	}
	bodies := b.mix.bodies(plans)
	whole, err := inflateDay(bodies[0])
	if err != nil {
		return err
	}
	m, err := b.start(ctx, "query", "--tls", "off")
	if err != nil {
		return err
	}
	endpoints, err := m.enrol(ctx, 2)
	if err == nil {
		_, err = m.load(ctx, endpoints, bodies)
	}
	stop := b.profileOf(m, "query")
	for i, n := range []int{many, few} {
		if err == nil {
			err = b.hour(ctx, m, endpoints[i], n, end.Add(-12*time.Hour), whole)
		}
	}
	if err == nil {
		err = b.wholeDay(ctx, m, endpoints[0], end, whole, bodies[0])
	}
	stop()
	if err := errors.Join(err, m.stop()); err != nil {
		return err
	}
	if m, err = b.start(ctx, "query", "--tls", "off"); err != nil {
		return err
	}
	b.add(figure{section: "idle", name: fmt.Sprintf("ready after the start, %s events stored", short(float64(many+few))), unit: "s",
		value: m.started.Seconds(), bound: atMost, goal: 2})
	return errors.Join(m.stop(), os.RemoveAll(m.dir))
}

// hour asks for an hour of events and for one of alerts, from start on.
func (b *bench) hour(ctx context.Context, m *manager, e endpoint, stored int, start time.Time, whole inflated) error {
	name := fmt.Sprintf("of %s events: ", short(float64(stored)))
	logs, err := m.ask(ctx, e, "logs", start, start.Add(time.Hour))
	if err != nil {
		return err
	}
	b.say("query: an hour %s%d bytes", name, logs.bytes)
	b.add(figure{section: "query", name: "an hour " + name + "first byte, p50", unit: "ms", value: logs.first, bound: atMost, goal: 10,
		baseline: whole.ms / 2, against: "inflate a gzip file up to there"})
	b.add(figure{section: "query", name: "an hour " + name + "throughput", unit: "MB/s", value: logs.rate, bound: atLeast, goal: 200,
		baseline: whole.rate, against: "inflate a gzip file"})
	alerts, err := m.ask(ctx, e, "alerts", start, start.Add(time.Hour))
	if err != nil {
		return err
	}
	b.add(figure{section: "query", name: "alerts of an hour " + name + "p50", unit: "ms", value: alerts.all, bound: atMost, goal: 20})
	return nil
}

// wholeDay asks for all events of a day and holds their number against what
// was sent.
func (b *bench) wholeDay(ctx context.Context, m *manager, e endpoint, end time.Time, whole inflated, sent []body) error {
	before, err := m.memory("VmRSS")
	if err != nil {
		return err
	}
	if err := m.resetPeak(); err != nil {
		return fmt.Errorf("reset the peak of memory: %w", err)
	}
	all, err := m.askOnce(ctx, e, "logs", end.Add(-day-time.Minute), end)
	if err != nil {
		return err
	}
	peak, err := m.memory("VmHWM")
	if err != nil {
		return err
	}
	want := 0
	for _, s := range sent {
		want += s.events
	}
	if all.events != want {
		return fmt.Errorf("a day: %d events where %d were stored", all.events, want)
	}
	b.say("query: a day: %d events, %d bytes, in %s s", all.events, all.bytes, short(all.all/1e3))
	b.add(figure{section: "query", name: fmt.Sprintf("a day of %s events: throughput", short(float64(want))), unit: "MB/s", value: all.rate, bound: atLeast, goal: 200,
		baseline: whole.rate, against: "inflate a gzip file"})
	b.add(figure{section: "query", name: "a day: growth of resident memory", unit: "MB", value: float64(peak-before) / 1e6, bound: atMost, goal: 64})
	return nil
}

// asked is what a query took, times in milliseconds and the rate in MB/s.
type asked struct {
	first, all, rate float64
	bytes, events    int
}

// ask repeats a query and returns the medians.
func (m *manager) ask(ctx context.Context, e endpoint, what string, start, stop time.Time) (asked, error) {
	var first, all []float64
	var last asked
	for range queryRepeats {
		a, err := m.askOnce(ctx, e, what, start, stop)
		if err != nil {
			return a, err
		}
		first, all, last = append(first, a.first), append(all, a.all), a
	}
	slices.Sort(first)
	slices.Sort(all)
	last.first, last.all = first[len(first)/2], all[len(all)/2]
	last.rate = float64(last.bytes) / 1e6 / (last.all / 1e3)
	return last, nil
}

func (m *manager) askOnce(ctx context.Context, e endpoint, what string, start, stop time.Time) (asked, error) {
	q := url.Values{"start": {start.UTC().Format(time.RFC3339Nano)}, "stop": {stop.UTC().Format(time.RFC3339Nano)}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.admin+"/endpoints/"+e.UUID+"/"+what+"?"+q.Encode(), nil)
	if err != nil {
		return asked{}, err
	}
	req.Header.Set("Api-Key", adminKey)
	began := time.Now()
	resp, err := m.client.Do(req)
	if err != nil {
		return asked{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	r := bufio.NewReaderSize(resp.Body, 256<<10)
	if _, err := r.Peek(1); err != nil {
		return asked{}, fmt.Errorf("query %s: %w", what, err)
	}
	a := asked{first: ms(time.Since(began))}
	// Each event has exactly one such member; one that the buffer cuts is
	// found with the help of what was kept of the bytes before it.
	buf := make([]byte, 256<<10)
	kept := 0
	for {
		n, err := r.Read(buf[kept:])
		a.bytes += n
		part := buf[:kept+n]
		a.events += bytes.Count(part, timeKey)
		keep := min(len(part), len(timeKey)-1)
		kept = copy(buf, part[len(part)-keep:])
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return a, fmt.Errorf("query %s: %w", what, err)
		}
	}
	if resp.StatusCode != http.StatusOK || !bytes.HasSuffix(buf[:kept], []byte(`"}`)) {
		return a, fmt.Errorf("query %s: %s, %d bytes", what, resp.Status, a.bytes)
	}
	a.all = ms(time.Since(began))
	a.rate = float64(a.bytes) / 1e6 / (a.all / 1e3)
	return a, nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// inflated is what it takes to inflate a day in a gzip file.
type inflated struct{ ms, rate float64 }

func inflateDay(bodies []body) (inflated, error) {
	var file bytes.Buffer
	for _, b := range bodies {
		file.Write(b.packed)
	}
	began := time.Now()
	z, err := gzip.NewReader(&file)
	if err != nil {
		return inflated{}, err
	}
	n, err := io.Copy(io.Discard, z)
	took := ms(time.Since(began))
	return inflated{ms: took, rate: float64(n) / 1e6 / (took / 1e3)}, err
}
