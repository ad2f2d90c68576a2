package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/nightjar-edr/nightjar/pkg/ops"
)

const (
	adminKey = "bench-operator-key"
	patience = 2 * time.Minute
)

// manager is a running standalone.
type manager struct {
	dir    string
	cmd    *exec.Cmd
	pid    int
	exited chan error
	log    *os.File
	client *http.Client
	// started is how long it took from the start of the process until it
	// was ready.
	started time.Duration

	admin, agent, nats, ops string
}

// startManager starts the program on a folder and waits until it is ready.
func startManager(ctx context.Context, binary, dir string, args ...string) (*manager, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	m := &manager{dir: dir, exited: make(chan error, 1)}
	var err error
	if m.log, err = os.OpenFile(filepath.Join(dir, "standalone.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err != nil {
		return nil, err
	}
	m.cmd = exec.Command(binary, append([]string{
		"--data-dir", filepath.Join(dir, "data"), "--admin-addr", "127.0.0.1:0", "--agent-addr", "127.0.0.1:0", "--nats-addr", "127.0.0.1:0",
		"--ops-addr", "127.0.0.1:0", "--admin-key", adminKey, "--log-format", "text", "--sync", "always"}, args...)...)
	m.cmd.Stderr = m.log
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start standalone: %w", err)
	}
	m.pid = m.cmd.Process.Pid
	addresses := make(chan map[string]string, 1)
	go m.follow(out, addresses)
	select {
	case a := <-addresses:
		m.admin, m.agent, m.nats, m.ops = a["admin API"], a["agent API"], a["NATS"], strings.TrimSuffix(a["ops"], "/readyz")
	case err := <-m.exited:
		m.exited <- err
		return nil, fmt.Errorf("standalone ended at once, its log is %s: %w", m.log.Name(), err)
	case <-ctx.Done():
		m.kill()
		return nil, ctx.Err()
	}
	m.client = &http.Client{Transport: &http.Transport{TLSClientConfig: m.trust(), MaxIdleConnsPerHost: 64}}
	if err := until(ctx, "standalone to become ready", func() error { return ops.Health(ctx, strings.TrimPrefix(m.ops, "http://")) }); err != nil {
		m.kill()
		return nil, err
	}
	m.started = time.Since(began)
	return m, nil
}

// follow reads the addresses that the program prints, and waits for its end.
func (m *manager) follow(out io.Reader, addresses chan<- map[string]string) {
	fields := map[string]string{}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		for _, key := range []string{"admin API", "agent API", "NATS", "ops"} {
			if v, ok := strings.CutPrefix(lines.Text(), key); ok {
				fields[key] = strings.TrimSpace(v)
			}
		}
		if fields["ops"] != "" && addresses != nil {
			addresses <- fields
			addresses = nil
		}
	}
	m.exited <- m.cmd.Wait()
}

func (m *manager) trust() *tls.Config {
	pem, err := os.ReadFile(filepath.Join(m.dir, "data", "tls", "ca.pem"))
	if err != nil {
		return nil
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12}
}

// stop ends the program cleanly.
func (m *manager) stop() error {
	defer func() { _ = m.log.Close() }()
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop standalone: %w", err)
	}
	select {
	case err := <-m.exited:
		if err != nil {
			return fmt.Errorf("standalone, whose log is %s: %w", m.log.Name(), err)
		}
		return nil
	case <-time.After(patience):
		m.kill()
		return errors.New("standalone did not stop")
	}
}

func (m *manager) kill() {
	_ = m.cmd.Process.Kill() // it may have ended
	<-m.exited
	_ = m.log.Close()
}

// until repeats a check until it passes.
func until(ctx context.Context, what string, check func() error) error {
	return untilEvery(ctx, 10*time.Millisecond, what, check)
}

func untilEvery(ctx context.Context, pause time.Duration, what string, check func() error) error {
	end := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// endpoint is an enrolled endpoint.
type endpoint struct{ UUID, Key string }

// enrol makes n endpoints.
func (m *manager) enrol(ctx context.Context, n int) ([]endpoint, error) {
	out := make([]endpoint, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(32)
	for i := range out {
		g.Go(func() error {
			req, err := http.NewRequestWithContext(ctx, http.MethodPut, m.admin+"/endpoints", nil)
			if err != nil {
				return err
			}
			req.Header.Set("Api-Key", adminKey)
			resp, err := m.client.Do(req)
			if err != nil {
				return fmt.Errorf("enrol an endpoint: %w", err)
			}
			defer func() { _ = resp.Body.Close() }()
			var a struct {
				Data  endpoint
				Error string
			}
			if err := json.NewDecoder(resp.Body).Decode(&a); err != nil || a.Error != "" {
				return fmt.Errorf("enrol an endpoint: %s %w", a.Error, err)
			}
			out[i] = a.Data
			return nil
		})
	}
	return out, g.Wait()
}

// metric returns the sum of a metric's samples.
func (m *manager) metric(name string) (float64, error) {
	resp, err := http.Get(m.ops + "/metrics")
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for line := range bytes.Lines(text) {
		rest, ok := bytes.CutPrefix(line, []byte(name))
		if !ok || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		v, err := strconv.ParseFloat(string(bytes.TrimSpace(rest[bytes.LastIndexByte(rest, ' ')+1:])), 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s: %w", name, err)
		}
		sum += v
	}
	return sum, nil
}

// await waits until a metric has reached a value.
func (m *manager) await(ctx context.Context, name string, want float64) error {
	return untilEvery(ctx, 50*time.Millisecond, name, func() error {
		got, err := m.metric(name)
		if err == nil && got < want {
			err = fmt.Errorf("%v of %v", got, want)
		}
		return err
	})
}

// cpu returns the user and system time that the process has used.
func (m *manager) cpu() (time.Duration, error) { return cpuOf(m.pid) }

// clockTick is the unit of /proc/PID/stat: every Linux has 100 a second there.
const clockTick = 10 * time.Millisecond

func cpuOf(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in brackets may hold spaces; user and system time are fields
	// 14 and 15 of all, 12 and 13 behind it.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * clockTick, err
}

// memory returns a size of /proc/PID/status in bytes, such as VmHWM.
func (m *manager) memory(name string) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("no %s of process %d", name, m.pid)
}

// resetPeak makes VmHWM begin again at what is resident now.
func (m *manager) resetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", m.pid), []byte("5"), 0)
}

// diskUse returns the bytes allocated on disk below a folder. Files may go
// while it looks.
func diskUse(dir string) (int64, error) {
	total := int64(0)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return ignoreMissing(err)
		}
		info, err := d.Info()
		if err != nil {
			return ignoreMissing(err)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			total += st.Blocks * 512
		}
		return nil
	})
	return total, err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// siem connects as the SIEM.
func (m *manager) siem() (*nats.Conn, error) {
	seed, err := nats.NkeyOptionFromSeed(filepath.Join(m.dir, "data", "siem.nk"))
	if err != nil {
		return nil, err
	}
	opts := []nats.Option{seed, nats.CustomInboxPrefix("_INBOX_siem")}
	if t := m.trust(); t != nil {
		opts = append(opts, nats.Secure(t))
	}
	nc, err := nats.Connect("nats://"+m.nats, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect as the SIEM: %w", err)
	}
	return nc, nil
}
