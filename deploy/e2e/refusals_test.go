package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
)

// refusals shows that every key can do its own work and not another's, against
// the server as it runs. That the table of rights is right is shown in package
// access; this shows that the server has it.
func (c *cluster) refusals(t *testing.T) {
	const uuid = "03e31275-2277-d8e0-bb5f-480fac7ee4ef"
	users := append(slices.Clone(access.Services), "siem")
	const gateway, rules, registry, commands, ingest, scorer = access.Gateway, access.Rules, access.Registry, access.Commands, access.Ingest, access.Scorer
	conns := map[string]*nats.Conn{}
	for _, user := range users {
		conns[user] = c.connect(user)
	}
	// Nobody listens on these, or a request without a reply subject is
	// answered to nobody; so a permitted one changes nothing.
	for subject, allowed := range map[string][]string{
		"edr.registry.nothing":                     {gateway},
		"edr.rules.nothing":                        {gateway},
		"edr.commands.nothing":                     {gateway},
		"edr.logs.0.nothing":                       {gateway},
		"edr.artifacts.nothing":                    {gateway},
		"edr.reports.nothing":                      {gateway},
		"edr.alerts.high." + uuid + ".nothing":     nil,
		"edr.events.0." + uuid + ".nothing":        nil,
		"$JS.API.STREAM.INFO.EVENTS":               {gateway, rules, ingest, registry},
		"$JS.API.STREAM.INFO.ALERTS":               {rules, ingest, scorer, registry},
		"$JS.API.STREAM.INFO.AUDIT":                {gateway},
		"$JS.API.STREAM.INFO.KV_access":            {gateway},
		"$JS.API.STREAM.INFO.KV_endpoints":         {gateway, registry},
		"$JS.API.STREAM.INFO.KV_removed":           {gateway, registry, rules, ingest, scorer},
		"$JS.API.STREAM.INFO.KV_rules":             {gateway, rules},
		"$JS.API.STREAM.INFO.KV_commands":          {gateway, commands},
		"$JS.API.STREAM.INFO.KV_reports":           {scorer},
		"$JS.API.STREAM.INFO.OBJ_artifacts":        {gateway, ingest, registry},
		"$JS.API.STREAM.DELETE.ALERTS":             nil,
		"$JS.API.STREAM.DELETE.EVENTS":             nil,
		"$JS.API.STREAM.NAMES":                     nil,
		"$JS.API.CONSUMER.DELETE.ALERTS.no-such":   {rules, ingest, scorer},
		"$JS.API.CONSUMER.MSG.NEXT.ALERTS.no-such": {rules, ingest, scorer},
		"$JS.API.CONSUMER.INFO.ALERTS.siem":        {rules, ingest, scorer, "siem"},
		"$SYS.REQ.SERVER.PING":                     nil,
		"_INBOX_api-gateway.answer":                nil,
		"anything":                                 nil,
	} {
		for _, user := range users {
			if got := accepted(t, conns[user], "Publish", subject); got != slices.Contains(allowed, user) {
				t.Errorf("%s may publish to %s: %v", user, subject, got)
			}
		}
	}
	for subject, allowed := range map[string][]string{
		"edr.alerts.>":            {"siem"},
		"edr.events.>":            nil,
		"edr.deadletter.>":        nil,
		"edr.audit.>":             nil,
		"edr.registry.nothing":    {registry},
		"edr.rules.nothing":       {rules},
		"edr.commands.nothing":    {commands},
		"edr.logs.0.nothing":      {ingest},
		"edr.artifacts.nothing":   {ingest},
		"edr.reports.nothing":     {scorer},
		"$KV.>":                   nil,
		"$O.>":                    nil,
		"$SYS.>":                  nil,
		"_INBOX.>":                nil,
		">":                       nil,
		"_INBOX_api-gateway.x":    {gateway},
		"_INBOX_rule-engine.x":    {rules},
		"_INBOX_siem.>":           {"siem"},
		"_INBOX_log-ingest.>":     {ingest},
		"_INBOX_report-scorer.>":  {scorer},
		"$JS.API.STREAM.>":        nil,
		"$JS.EVENT.ADVISORY.>":    nil,
		"$JS.ACK.ALERTS.siem.>":   nil,
		"edr.alerts.high." + uuid: {"siem"},
	} {
		for _, user := range users {
			if got := accepted(t, conns[user], "Subscription", subject); got != slices.Contains(allowed, user) {
				t.Errorf("%s may subscribe to %s: %v", user, subject, got)
			}
		}
	}
	c.strangers(t)
}

// accepted asks for something and tells whether the server let it pass. It is
// told of a refusal before it is told of the end of a flush.
func accepted(t *testing.T, nc *nats.Conn, verb, subject string) bool {
	t.Helper()
	var err error
	if verb == "Publish" {
		err = nc.Publish(subject, nil)
	} else {
		var sub *nats.Subscription
		if sub, err = nc.SubscribeSync(subject); err == nil {
			defer func() { _ = sub.Unsubscribe() }() // gone already when it was refused
		}
	}
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	err = nc.LastError()
	return !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), fmt.Sprintf("%s to %q", verb, subject))
}

// strangers are those without a key, with a key that nobody knows, those who
// do not trust the server, and those who talk in the clear.
func (c *cluster) strangers(t *testing.T) {
	keys := t.TempDir()
	if out, err := exec.Command(filepath.Join(c.bin, "nats"), "keys", "--dir", keys).CombinedOutput(); err != nil {
		t.Fatalf("nats keys: %v\n%s", err, out)
	}
	another, err := nats.NkeyOptionFromSeed(filepath.Join(keys, "siem.nk"))
	if err != nil {
		t.Fatal(err)
	}
	known, err := nats.NkeyOptionFromSeed(c.conf("siem.nk"))
	if err != nil {
		t.Fatal(err)
	}
	trust := nats.RootCAs(c.conf("ca.pem"))
	for name, opts := range map[string][]nats.Option{
		"without a key":         {trust},
		"with another key":      {trust, another},
		"with a password":       {trust, nats.UserInfo("siem", "siem")},
		"without the authority": {known},
	} {
		if nc, err := nats.Connect(c.urls(), append(opts, nats.Timeout(5*time.Second))...); err == nil {
			nc.Close()
			t.Errorf("%s: connected", name)
		}
	}
	conn, err := net.DialTimeout("tcp", c.nats[0].addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := errors.Join(conn.SetDeadline(time.Now().Add(deadline)), second(fmt.Fprint(conn, "CONNECT {\"verbose\":true}\r\nPING\r\n"))); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); strings.Contains(string(answer), "PONG") || strings.Contains(string(answer), "+OK") || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("in the clear: %q, %v", answer, err)
	}
}

func second[T any](_ T, err error) error { return err }
