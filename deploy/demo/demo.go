package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/samples"
	"github.com/nightjar-edr/nightjar/services/standalone/manager"
)

// shown is how many of the sample endpoints are enrolled.
const shown = 3

// timeout bounds every single step of the demonstration.
const timeout = 30 * time.Second

type demonstration struct {
	out        io.Writer
	dir, ca    string
	key        string
	mgr        *manager.Manager
	client     *http.Client
	admin      string
	agent      string
	nats       string
	wanted     int
	hostByUUID map[string]string
}

func demo(ctx context.Context, out io.Writer, once, anyPort bool) (err error) {
	dir, err := os.MkdirTemp("", "nightjar-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	d := &demonstration{out: out, dir: dir, ca: filepath.Join(dir, "data", "tls", "ca.pem"), hostByUUID: map[string]string{}}

	d.say("Starting a manager (NATS embedded, all six services, TLS on) ...")
	running, err := d.start(anyPort)
	if err != nil {
		return err
	}
	// The manager outlives ctx by its own clean stop.
	work, stopManager := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- running.Run(work) }()
	defer func() {
		stopManager()
		err = errors.Join(err, <-ended)
		d.say("Stopped.")
	}()
	if err := d.play(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if once {
		return nil
	}
	d.say("\nThe manager goes on; Ctrl-C stops it and removes %s.", dir)
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		ended <- nil
		return errors.Join(errors.New("the manager stopped"), err)
	}
}

func (d *demonstration) say(format string, a ...any) { fmt.Fprintf(d.out, format+"\n", a...) }

// start makes the manager, on the usual ports where they are free.
func (d *demonstration) start(anyPort bool) (*manager.Manager, error) {
	rules := filepath.Join(d.dir, "rules")
	if err := samples.WriteRules(rules); err != nil {
		return nil, err
	}
	secret := make([]byte, 16)
	if _, err := rand.Read(secret); err != nil {
		return nil, err
	}
	d.key = hex.EncodeToString(secret)
	port := func(usual string) string {
		addr := "127.0.0.1:" + usual
		if l, err := net.Listen("tcp", addr); err == nil && !anyPort {
			_ = l.Close()
			return addr
		} else if err == nil {
			_ = l.Close()
		}
		return "127.0.0.1:0"
	}
	day := config.Duration(24 * time.Hour)
	var err error
	d.mgr, err = manager.New(manager.Config{
		DataDir: filepath.Join(d.dir, "data"), AdminAddr: port("8001"), AgentAddr: port("8000"), NATSAddr: port("4222"), OpsAddr: port("8002"),
		SIEMs: "siem", TLS: "auto", AdminKey: d.key, RulesDir: rules,
		RetentionEvents: day, RetentionAlerts: day, Sync: config.Sync{Always: true},
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	return d.mgr, err
}

// play is the demonstration itself.
func (d *demonstration) play(ctx context.Context) error {
	if err := wait(ctx, d.mgr.Ready); err != nil {
		return fmt.Errorf("the manager does not become ready: %w", err)
	}
	admin, agent, natsAddr, ops := d.mgr.Addresses()
	d.admin, d.agent, d.nats = "https://"+admin, "https://"+agent, natsAddr
	pem, err := os.ReadFile(d.ca)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	d.client = &http.Client{Timeout: timeout, Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}}}
	d.say("Ready: admin API %s, agent API %s, NATS %s, metrics http://%s/metrics", d.admin, d.agent, d.nats, ops)

	siem, alerts, err := d.listen()
	if err != nil {
		return err
	}
	defer siem.Close()
	d.say("A SIEM listens on edr.alerts.> with its own key.\n")
	stories := samples.Endpoints()[:shown]
	endpoints := make([]string, len(stories))
	keys := map[string]string{}
	for i, s := range stories {
		var e struct{ UUID, Key string }
		if err := d.ask(ctx, http.MethodPut, "/endpoints", &e); err != nil {
			return err
		}
		endpoints[i], keys[e.UUID], d.hostByUUID[e.UUID] = e.UUID, e.Key, s.Hostname
		d.say("Enrolled %-18s as %s", s.Hostname, e.UUID)
	}
	d.say("\nReplaying %d endpoints' events; each alert as it reaches the SIEM:", len(stories))
	for i, s := range stories {
		lines := s.ShiftTo(time.Now().Add(-time.Second))
		d.wanted += len(s.Expected)
		for chunk := range slices.Chunk(lines, 20) {
			if err := d.post(ctx, endpoints[i], keys[endpoints[i]], s.Hostname, chunk); err != nil {
				return err
			}
		}
	}
	for n := 0; n < d.wanted; n++ {
		select {
		case m := <-alerts:
			d.say("  %-54s %s", m.Subject, d.summary(m))
		case <-time.After(timeout):
			return fmt.Errorf("only %d of %d alerts arrived", n, d.wanted)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return d.conclude(ctx)
}

// listen subscribes as the SIEM does.
func (d *demonstration) listen() (*nats.Conn, <-chan *nats.Msg, error) {
	seed, err := nats.NkeyOptionFromSeed(filepath.Join(d.dir, "data", "siem.nk"))
	if err != nil {
		return nil, nil, err
	}
	nc, err := nats.Connect("tls://"+d.nats, seed, nats.RootCAs(d.ca), nats.CustomInboxPrefix("_INBOX_siem"))
	if err != nil {
		return nil, nil, fmt.Errorf("connect as the SIEM: %w", err)
	}
	alerts := make(chan *nats.Msg, 1024)
	if _, err := nc.ChanSubscribe("edr.alerts.>", alerts); err != nil {
		nc.Close()
		return nil, nil, err
	}
	return nc, alerts, nc.Flush()
}

func (d *demonstration) summary(m *nats.Msg) string {
	return fmt.Sprintf("%-18s criticality %-2s by %-7s %s", d.hostByUUID[m.Header.Get("Nightjar-Endpoint")],
		m.Header.Get("Nightjar-Criticality"), m.Header.Get("Nightjar-Origin"), m.Header.Get("Nightjar-Signatures"))
}

// conclude prints the endpoints by score and what to try next.
func (d *demonstration) conclude(ctx context.Context) error {
	type report struct {
		Alerts int64 `json:"alert-count"`
		Score  int64
	}
	reports := map[string]*report{}
	if err := wait(ctx, func() error {
		clear(reports)
		if err := d.ask(ctx, http.MethodGet, "/endpoints/reports", &reports); err != nil {
			return err
		}
		var counted int64
		for _, r := range reports {
			if r != nil {
				counted += r.Alerts
			}
		}
		if counted < int64(d.wanted) {
			return fmt.Errorf("%d of %d alerts are in the reports", counted, d.wanted)
		}
		return nil
	}); err != nil {
		return err
	}
	ranked := make([]string, 0, len(reports))
	for uuid, r := range reports {
		if r != nil {
			ranked = append(ranked, uuid)
		}
	}
	if len(ranked) == 0 {
		return errors.New("no endpoint has a report")
	}
	slices.SortFunc(ranked, func(a, b string) int { return int(reports[b].Score - reports[a].Score) })
	d.say("\nEndpoints by score:")
	for _, uuid := range ranked {
		d.say("  %6d  %-18s %3d alerts  %s", reports[uuid].Score, d.hostByUUID[uuid], reports[uuid].Alerts, uuid)
	}
	curl := fmt.Sprintf("curl -s --cacert %s -H 'Api-Key: %s'", d.ca, d.key)
	d.say("\nTry next, in another terminal:")
	d.say("  %s %s/endpoints/%s/report", curl, d.admin, ranked[0])
	d.say("  %s '%s/endpoints/%s/alerts'", curl, d.admin, ranked[0])
	d.say("  %s '%s/rules?name=Lsass'", curl, d.admin)
	return nil
}

// ask makes a request to the admin API and decodes the data of its answer.
func (d *demonstration) ask(ctx context.Context, method, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, d.admin+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Api-Key", d.key)
	resp, err := d.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Data  json.RawMessage
		Error string
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if answer.Error != "" {
		return fmt.Errorf("%s %s: %s", method, path, answer.Error)
	}
	return json.Unmarshal(answer.Data, into)
}

// post sends events as an agent does.
func (d *demonstration) post(ctx context.Context, uuid, key, host string, lines [][]byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.agent+"/logs", bytes.NewReader(append(bytes.Join(lines, []byte("\n")), '\n')))
	if err != nil {
		return err
	}
	req.Header.Set("UUID", uuid)
	req.Header.Set("Api-Key", key)
	req.Header.Set("Hostname", host)
	resp, err := d.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
		return fmt.Errorf("POST /logs of %s: %s %s", host, resp.Status, strings.TrimSpace(string(text)))
	}
	return nil
}

// wait repeats a check until it passes, at most for timeout.
func wait(ctx context.Context, check func() error) error {
	end := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
