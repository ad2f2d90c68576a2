package backup_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/services/standalone/internal/backup"
	"github.com/nightjar-edr/nightjar/services/standalone/internal/natsd"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*Server).startGoRoutine.func1"),
		// The clock of all servers, which goes on.
		goleak.IgnoreAnyFunction("github.com/nightjar-edr/nightjar/services/standalone/internal/natsd.keepTime"))
}

const endpoint = "03e31275-2277-d8e0-bb5f-480fac7ee4ef"

var discard = slog.New(slog.DiscardHandler)

// server is a running server that keeps its data in dir/nats.
type server struct {
	*natsd.Server
	dir string
}

func start(t *testing.T, restoring bool) server {
	t.Helper()
	dir := t.TempDir()
	public, _, err := natsd.UserKey(dir, access.Backup)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := natsd.Start(natsd.Config{Dir: filepath.Join(dir, "nats"), Backup: public, Restoring: restoring, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Stop)
	if err := srv.ListenLocal(dir); err != nil {
		t.Fatal(err)
	}
	return server{srv, dir}
}

func (s server) user(t *testing.T, name string) *bus.Bus {
	t.Helper()
	o := bus.Options{Service: name, Seed: s.Seeds[name], InProcess: s, Log: discard}
	if name == access.Backup {
		o.SeedFile, o.InProcess = filepath.Join(s.dir, access.Backup+".nk"), natsd.Door{Dir: s.dir}
	}
	b, err := bus.Connect(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// restored restores a backup into a server of its own.
func restored(t *testing.T, file string) server {
	t.Helper()
	m, err := backup.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, true)
	if err := backup.Restore(t.Context(), file, m, backup.Into{NC: s.user(t, access.Restore).NC}); err != nil {
		t.Fatal(err)
	}
	return s
}

// A key that is rewritten while the bucket is copied is in the backup all the
// same: the old value is gone before the copy comes to it, the new one stands
// behind the end that the copy has set itself.
func TestKeysThatAreRewrittenMeanwhile(t *testing.T) {
	const keys = 400
	s := start(t, false)
	registry := s.user(t, access.Registry)
	kv, err := stream.EnsureKV(t.Context(), registry.JS, stream.Endpoints, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	pad := strings.Repeat(" ", 8<<10) // so that copying takes a while
	put := func(ctx context.Context, key, value int) error {
		_, err := kv.Put(ctx, fmt.Sprintf("key-%d", key), fmt.Appendf(nil, "%d%s", value, pad))
		return err
	}
	for k := range keys {
		if err := put(t.Context(), k, 0); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var acked int // the round that all keys have reached
	var mu sync.Mutex
	var writing sync.WaitGroup
	writing.Go(func() {
		for round := 1; ; round++ {
			for k := range keys {
				select {
				case <-stop:
					return
				default:
				}
				if err := put(t.Context(), k, round); err != nil {
					t.Error(err)
					return
				}
			}
			mu.Lock()
			acked = round
			mu.Unlock()
		}
	})
	for i := range 3 {
		mu.Lock()
		least := acked
		mu.Unlock()
		file := filepath.Join(t.TempDir(), "backup.tar")
		if _, err := backup.Write(t.Context(), s.user(t, access.Backup).NC, "", file); err != nil {
			t.Fatal(err)
		}
		back, err := restored(t, file).user(t, access.Registry).JS.KeyValue(t.Context(), stream.Endpoints)
		if err != nil {
			t.Fatal(err)
		}
		for k := range keys {
			e, err := back.Get(t.Context(), fmt.Sprintf("key-%d", k))
			if err != nil {
				t.Fatalf("backup %d: key %d: %v", i, k, err)
			}
			value, err := strconv.Atoi(strings.TrimSpace(string(e.Value())))
			if err != nil || value < least {
				t.Fatalf("backup %d: key %d is %d, all had reached %d before it: %v", i, k, value, least, err)
			}
		}
	}
	close(stop)
	writing.Wait()
}

// Sequences, headers, positions of durable consumers and limits come back as
// they were; what was being read is read again.
func TestStreamsComeBackAsTheyWere(t *testing.T) {
	s := start(t, false)
	rules := s.user(t, access.Rules)
	if err := stream.Ensure(t.Context(), rules.JS, stream.Alerts, stream.Limits{MaxBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if _, err := rules.JS.Publish(t.Context(), subject.Alerts(subject.High, endpoint), fmt.Appendf(nil, "alert %d", i), jetstream.WithMsgID(strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	str, err := rules.JS.Stream(t.Context(), stream.Alerts)
	if err != nil {
		t.Fatal(err)
	}
	if err := str.DeleteMsg(t.Context(), 4); err != nil {
		t.Fatal(err)
	}
	c, err := str.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "siem", AckPolicy: jetstream.AckExplicitPolicy, AckWait: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Fetch(7)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for m := range got.Messages() {
		if n++; n <= 5 { // sequences 1 2 3 5 6 are acknowledged, 7 and 8 are not
			if err := m.DoubleAck(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	file := filepath.Join(t.TempDir(), "backup.tar")
	m, err := backup.Write(t.Context(), s.user(t, access.Backup).NC, "", file)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Streams) != 1 || m.Streams[0].Messages != 9 || m.Streams[0].LastSeq != 10 || len(m.Streams[0].Consumers) != 1 {
		t.Fatalf("%+v", m)
	}
	back := restored(t, file).user(t, access.Rules)
	if err := stream.Ensure(t.Context(), back.JS, stream.Alerts, stream.Limits{MaxBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	str, err = back.JS.Stream(t.Context(), stream.Alerts)
	if err != nil {
		t.Fatal(err)
	}
	if info := str.CachedInfo(); info.Config.MaxBytes != 1<<20 || info.State.Msgs != 9 || info.State.LastSeq != 10 {
		t.Errorf("%+v", info)
	}
	if msg, err := str.GetMsg(t.Context(), 9); err != nil || string(msg.Data) != "alert 8" || msg.Header.Get("Nats-Msg-Id") != "8" {
		t.Errorf("message 9: %+v, %v", msg, err)
	}
	c, err = str.Consumer(t.Context(), "siem")
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for len(seen) < 4 {
		m, err := c.Next()
		if err != nil {
			t.Fatalf("after %v: %v", seen, err)
		}
		seen = append(seen, string(m.Data()))
		if err := m.DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"alert 6", "alert 7", "alert 8", "alert 9"} {
		if !strings.Contains(strings.Join(seen, ","), want) {
			t.Errorf("%s does not come, but %v", want, seen)
		}
	}
	if ack, err := back.JS.Publish(t.Context(), subject.Alerts(subject.High, endpoint), []byte("next")); err != nil || ack.Sequence != 11 {
		t.Errorf("next alert: %+v, %v", ack, err)
	}
}

// A backup that breaks off leaves nothing that has its name.
func TestBackupThatBreaksOff(t *testing.T) {
	s := start(t, false)
	registry := s.user(t, access.Registry)
	if _, err := stream.EnsureKV(t.Context(), registry.JS, stream.Endpoints, 1, 1); err != nil {
		t.Fatal(err)
	}
	b := s.user(t, access.Backup)
	file := filepath.Join(t.TempDir(), "backup.tar")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := backup.Write(ctx, b.NC, "", file); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	s.Stop()
	if _, err := backup.Write(t.Context(), b.NC, "", file); err == nil {
		t.Error("no error without a server")
	}
	if list, err := os.ReadDir(filepath.Dir(file)); err != nil || len(list) > 0 {
		t.Errorf("%v is left: %v", list, err)
	}
}
