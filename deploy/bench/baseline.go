package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/0xrawsec/gene/v2/engine"
	"github.com/klauspost/compress/gzip"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ownCPU returns the user and system time that this process has used.
func ownCPU() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("getrusage: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// ingestBase is what the plainest programs need for the same events, in CPU
// seconds per million events, and the bytes they keep of each.
type ingestBase struct{ append, gene, bytes float64 }

// baselineEvents is how many events a baseline of ingest works on.
const baselineEvents = 50_000

// ingestBaseline inflates bodies and appends their lines to a gzip file for
// each endpoint, flushed after every body and never synced, and runs plain
// gene over them.
func (b *bench) ingestBaseline(bodies [][]body) (*ingestBase, error) {
	n := len(bodies[0])
	for i := 0; i < len(bodies) && n*len(bodies)*bodies[0][0].events > baselineEvents; i++ {
		n = baselineEvents / len(bodies) / bodies[0][0].events
	}
	base := &ingestBase{}
	events := float64(n * len(bodies) * bodies[0][0].events)
	begin, err := ownCPU()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.dir, "append")
	if err := appendGzip(dir, bodies, n); err != nil {
		return nil, fmt.Errorf("gzip append: %w", err)
	}
	middle, err := ownCPU()
	if err != nil {
		return nil, err
	}
	size, err := diskUse(dir)
	if err != nil {
		return nil, err
	}
	found, err := b.plainGene(bodies, n)
	if err != nil {
		return nil, fmt.Errorf("plain gene: %w", err)
	}
	end, err := ownCPU()
	if err != nil {
		return nil, err
	}
	b.say("plain gene: %s %% of the events are alerts", short(100*float64(found)/events))
	base.append = (middle - begin).Seconds() / events * 1e6
	base.gene = (end - middle).Seconds() / events * 1e6
	base.bytes = float64(size) / events
	return base, os.RemoveAll(dir)
}

func appendGzip(dir string, bodies [][]body, n int) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	z := new(gzip.Reader)
	for i, list := range bodies {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%d.gz", i)))
		if err != nil {
			return err
		}
		w := gzip.NewWriter(f)
		for _, body := range list[:n] {
			if err := z.Reset(bytes.NewReader(body.packed)); err != nil {
				return err
			}
			if _, err := io.Copy(w, z); err != nil {
				return err
			}
			if err := w.Flush(); err != nil {
				return err
			}
		}
		if err := errors.Join(w.Close(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// plainGene decodes every event and matches it as gene's own tools do.
func (b *bench) plainGene(bodies [][]body, n int) (alerts int, err error) {
	log.SetOutput(io.Discard) // gene logs through it
	defer log.SetOutput(os.Stderr)
	e := engine.NewEngine()
	if templates := filepath.Join(b.rules, "templates.toml"); exists(templates) {
		if err := e.LoadTemplate(templates); err != nil {
			return 0, err
		}
	}
	files, err := filepath.Glob(filepath.Join(b.rules, "*.gen"))
	if err != nil {
		return 0, err
	}
	for _, f := range files {
		if filepath.Base(f) == "archive-v1.gen" {
			continue // of a version that gene itself refuses
		}
		if err := e.LoadFile(f); err != nil {
			return 0, fmt.Errorf("%s: %w", f, err)
		}
	}
	for _, list := range bodies {
		for _, body := range list[:n] {
			z, err := gzip.NewReader(bytes.NewReader(body.packed))
			if err != nil {
				return 0, err
			}
			d := json.NewDecoder(z)
			for d.More() {
				var ev engine.GenericEvent
				if err := d.Decode(&ev); err != nil {
					return 0, err
				}
				if names, _, _ := e.MatchOrFilter(&ev); len(names) > 0 {
					alerts++
				}
			}
		}
	}
	return alerts, nil
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// publishBase is what a minimal publish loop reaches.
type publishBase struct{ rate, cpu float64 }

// natsServer starts an embedded server that syncs before every
// acknowledgement, and returns a connection and what ends both.
func (b *bench) natsServer(name string) (*nats.Conn, func(), error) {
	dir := filepath.Join(b.dir, name)
	s, err := server.NewServer(&server.Options{JetStream: true, StoreDir: dir, SyncAlways: true, DontListen: true, NoSigs: true, NoLog: true})
	if err != nil {
		return nil, nil, fmt.Errorf("nats: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		s.Shutdown()
		return nil, nil, errors.New("nats: not ready")
	}
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		s.Shutdown()
		return nil, nil, fmt.Errorf("nats: %w", err)
	}
	return nc, func() {
		nc.Close()
		s.Shutdown()
		s.WaitForShutdown()
		_ = os.RemoveAll(dir) // the run's folder goes at the end in any case
	}, nil
}

// publishBaseline publishes events one by one from as many goroutines as
// there are endpoints, each waiting for the acknowledgement.
func (b *bench) publishBaseline(ctx context.Context, p plan, events int) (*publishBase, error) {
	nc, stop, err := b.natsServer("publish")
	if err != nil {
		return nil, err
	}
	defer stop()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "E", Subjects: []string{"e.*"}}); err != nil {
		return nil, err
	}
	before, err := ownCPU()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	failures := make(chan error, ingestEndpoints)
	for n := range ingestEndpoints {
		wg.Go(func() {
			subj := fmt.Sprintf("e.%d", n)
			var line []byte
			for i := next.Add(1); i <= int64(events); i = next.Add(1) {
				line = b.mix.line(line[:0], p.first+int(i), p.begin)
				if _, err := js.Publish(ctx, subj, line); err != nil {
					failures <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(failures)
	if err := <-failures; err != nil {
		return nil, fmt.Errorf("publish loop: %w", err)
	}
	wall := time.Since(began)
	after, err := ownCPU()
	return &publishBase{rate: float64(events) / wall.Seconds(), cpu: (after - before).Seconds() / float64(events) * 1e6}, err
}
