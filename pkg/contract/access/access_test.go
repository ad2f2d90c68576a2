package access_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

const (
	endpoint = "03e31275-2277-d8e0-bb5f-480fac7ee4ef"
	siem     = "siem"
)

// users are all who have a user in these tests.
var users = append(slices.Clone(access.Services), siem, "other-siem", access.Backup, access.Restore, access.Canary)

func permissions(t *testing.T, user string) access.Permissions {
	t.Helper()
	switch {
	case user == access.Backup:
		return access.ForBackup()
	case user == access.Restore:
		return access.ForRestore()
	case user == access.Canary:
		return access.ForCanary()
	case !slices.Contains(access.Services, user):
		return access.ForSIEM(user)
	}
	p, err := access.ForService(user)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// connect starts a server with the users and returns a connection for each.
func connect(t *testing.T) map[string]*nats.Conn {
	t.Helper()
	opts := &server.Options{DontListen: true, NoSigs: true, NoLog: true, MaxPayload: stream.MaxMessage}
	seeds := map[string][]byte{}
	for _, user := range users {
		kp, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		public, err := kp.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		if seeds[user], err = kp.Seed(); err != nil {
			t.Fatal(err)
		}
		p := permissions(t, user)
		u := &server.NkeyUser{Nkey: public, Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: p.Publish}, Subscribe: &server.SubjectPermission{Allow: p.Subscribe},
		}}
		if p.Respond {
			u.Permissions.Response = &server.ResponsePermission{MaxMsgs: 1, Expires: access.RespondWithin}
		}
		opts.Nkeys = append(opts.Nkeys, u)
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats server is not ready")
	}
	conns := map[string]*nats.Conn{}
	for _, user := range users {
		o, err := access.NKeyOption(seeds[user])
		if err != nil {
			t.Fatal(err)
		}
		nc, err := nats.Connect("", nats.InProcessServer(srv), o, nats.CustomInboxPrefix(access.InboxPrefix(user)),
			nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
		if err != nil {
			t.Fatalf("%s: %v", user, err)
		}
		t.Cleanup(nc.Close)
		conns[user] = nc
	}
	return conns
}

// denied tells whether the server has refused what nc just asked for on a
// subject. It is told so before it is told of the end of a flush.
func denied(t *testing.T, nc *nats.Conn, verb, subject string) bool {
	t.Helper()
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	err := nc.LastError()
	return errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), verb+` to "`+subject+`"`)
}

func mayPublish(t *testing.T, nc *nats.Conn, subject string) bool {
	t.Helper()
	if err := nc.Publish(subject, nil); err != nil {
		t.Fatal(err)
	}
	return !denied(t, nc, "Publish", subject)
}

func maySubscribe(t *testing.T, nc *nats.Conn, subject string) bool {
	t.Helper()
	sub, err := nc.SubscribeSync(subject)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }() // gone already when it was refused
	return !denied(t, nc, "Subscription", subject)
}

// Those who are named may publish, and nobody else.
func TestPublish(t *testing.T) {
	conns := connect(t)
	const gateway, rules, registry, commands, ingest, scorer = access.Gateway, access.Rules, access.Registry, access.Commands, access.Ingest, access.Scorer
	allowed := map[string][]string{
		// Facts.
		subject.Events(endpoint):                                  {gateway},
		subject.DeadLetter("not-json", endpoint):                  {gateway, rules},
		subject.Alerts(subject.Critical, endpoint):                {rules},
		"edr.audit." + message.SubjectToken("admin"):              {gateway},
		"$KV." + stream.Access + ".operator.admin":                {gateway},
		"$KV." + stream.Endpoints + "." + endpoint:                {registry},
		"$KV." + stream.Rules + ".name":                           {rules},
		"$KV." + stream.Commands + "." + endpoint:                 {commands},
		"$KV." + stream.Reports + "." + endpoint:                  {scorer},
		"$O." + stream.Files + ".C.chunk":                         {gateway, commands},
		"$O." + stream.Containers + ".C.chunk":                    {gateway, rules},
		"$O." + stream.Artifacts + ".C.chunk":                     {gateway, ingest},
		message.GatewayAlive:                                      {gateway},
		message.LogsHeld:                                          {ingest},
		"edr.unknown":                                             nil,
		"edr":                                                     nil,
		"$JS.API.STREAM.RESTORE.OTHER":                            nil,
		"$JS.SNAPSHOT.RESTORE.OTHER.id":                           nil,
		subject.Logs(subject.PartitionOf(endpoint), "query"):      {gateway},
		access.InboxPrefix(gateway) + ".answer":                   nil,
		"$JS.API.INFO":                                            access.Services,
		"$JS.API.STREAM.LIST":                                     nil,
		"$JS.API.STREAM.NAMES":                                    nil,
		"$JS.API.CONSUMER.DURABLE.CREATE." + stream.Events + ".x": {rules},
		"$SYS.REQ.SERVER.PING":                                    nil,
	}
	// Questions: the gateway asks them all.
	for _, q := range questions() {
		allowed[q.subject] = []string{gateway}
	}
	// Streams, buckets and object stores: the owner makes and changes them,
	// and nobody deletes one. Others read.
	uploads := []string{"OBJ_" + stream.Files, "OBJ_" + stream.Artifacts, "OBJ_" + stream.Containers} // which the gateway takes back when they break off
	for _, s := range []struct {
		name, owner string
		readers     []string
	}{
		{stream.Events, gateway, []string{rules, ingest}},
		{stream.Alerts, rules, []string{ingest, scorer}},
		{stream.Audit, gateway, nil},
		{stream.DeadLetters, gateway, nil},
		{"KV_" + stream.Access, gateway, nil},
		{"KV_" + stream.Endpoints, registry, []string{gateway}},
		{"KV_" + stream.Removed, registry, []string{gateway, rules, ingest, scorer}},
		{"KV_" + stream.Rules, rules, []string{gateway}},
		{"KV_" + stream.Commands, commands, []string{gateway}},
		{"KV_" + stream.Reports, scorer, nil},
		{"OBJ_" + stream.Containers, rules, []string{gateway}},
		{"OBJ_" + stream.Files, commands, []string{gateway}},
		{"OBJ_" + stream.Artifacts, ingest, []string{gateway}},
	} {
		owner, readers := []string{s.owner}, append([]string{s.owner}, s.readers...)
		for _, verb := range []string{"CREATE", "UPDATE", "MSG.DELETE"} {
			allowed["$JS.API.STREAM."+verb+"."+s.name] = owner
		}
		allowed["$JS.API.STREAM.PURGE."+s.name] = owner
		if slices.Contains(uploads, s.name) {
			allowed["$JS.API.STREAM.PURGE."+s.name] = []string{s.owner, gateway}
		}
		for _, verb := range []string{"STREAM.DELETE", "CONSUMER.LIST"} {
			allowed["$JS.API."+verb+"."+s.name] = nil
		}
		allowed["$JS.API.STREAM.SNAPSHOT."+s.name] = []string{access.Backup}
		allowed["$JS.SNAPSHOT.ACK."+s.name+".id.1.2"] = []string{access.Backup}
		allowed["$JS.API.STREAM.RESTORE."+s.name] = []string{access.Restore}
		allowed["$JS.SNAPSHOT.RESTORE."+s.name+".id"] = []string{access.Restore}
		allowed["$JS.API.STREAM.INFO."+s.name] = append(slices.Clone(readers), access.Backup, access.Restore)
		allowed["$JS.API.STREAM.MSG.GET."+s.name] = append(slices.Clone(readers), access.Backup)
		allowed["$JS.API.DIRECT.GET."+s.name] = append(slices.Clone(readers), access.Backup)
		allowed["$JS.API.CONSUMER.CREATE."+s.name] = readers
		for _, read := range []string{
			"$JS.API.CONSUMER.CREATE.%.name.filter", "$JS.API.CONSUMER.INFO.%.name", "$JS.API.CONSUMER.MSG.NEXT.%.name",
			"$JS.API.CONSUMER.DELETE.%.name", "$JS.API.DIRECT.GET.%.key", "$JS.ACK.%.name.1.2.3.4.5", "$JS.ACK.domain.hash.%.name.1.2.3.4.5",
		} {
			allowed[strings.ReplaceAll(read, "%", s.name)] = readers
		}
	}
	// A removal says where the streams end.
	for _, name := range []string{stream.Events, stream.Alerts, stream.DeadLetters, "OBJ_" + stream.Artifacts} {
		s := "$JS.API.STREAM.INFO." + name
		allowed[s] = append(allowed[s], registry)
	}
	// A SIEM has its own consumer and nothing else.
	for _, verb := range []string{"$JS.API.CONSUMER.INFO.%", "$JS.API.CONSUMER.MSG.NEXT.%", "$JS.ACK.%.1.2.3.4.5", "$JS.ACK.domain.hash.%.1.2.3.4.5"} {
		allowed[strings.ReplaceAll(verb, "%", stream.Alerts+"."+siem)] = []string{rules, ingest, scorer, siem}
	}
	for _, verb := range []string{"CREATE", "DELETE"} {
		allowed["$JS.API.CONSUMER."+verb+"."+stream.Alerts+"."+siem] = []string{rules, ingest, scorer}
	}
	for s, want := range allowed {
		for user, nc := range conns {
			if got := mayPublish(t, nc, s); got != slices.Contains(want, user) {
				t.Errorf("%s may publish to %s: %v", user, s, got)
			}
		}
	}
}

type question struct{ subject, owner string }

// questions are the requests between services, with who answers them.
func questions() (list []question) {
	for owner, subjects := range map[string][]string{
		access.Registry: {message.RegistryCreate, message.RegistryDelete, message.RegistryGet, message.RegistryList,
			message.RegistryBind, message.RegistryRelease, message.RegistrySeen, message.RegistryImport, message.RegistryRemove},
		access.Rules: {message.RulesCount, message.RulesList, message.RulesAdd, message.RulesDelete, message.RulesReload,
			message.RulesSave, message.RulesAgent, message.ContainersPut, message.ContainersDelete, message.AlertsCleared},
		access.Commands: {message.CommandsQueue, message.CommandsGet, message.CommandsList, message.CommandsNext,
			message.CommandsResult, message.CommandsCancel, message.CommandsForget},
		access.Ingest: {subject.Logs(0, message.LogsQuery), subject.Logs(subject.Partitions-1, message.LogsQuery), subject.Logs(0, message.LogsCount),
			message.ArtifactsCleared},
		access.Scorer: {message.ReportsGet, message.ReportsList, message.ReportsClear},
	} {
		for _, s := range subjects {
			list = append(list, question{s, owner})
		}
	}
	return list
}

// Those who are named may subscribe, and nobody else.
func TestSubscribe(t *testing.T) {
	conns := connect(t)
	var answering []string
	for _, name := range access.Services {
		if name != access.Gateway { // it answers over HTTP
			answering = append(answering, name)
		}
	}
	allowed := map[string][]string{
		"$SRV.PING":             answering,
		"edr.alerts.>":          {siem, "other-siem"},
		"edr.alerts.critical.*": {siem, "other-siem"},
		subject.Alerts(subject.Critical, endpoint): {siem, "other-siem"},
		subject.Alerts(subject.Low, endpoint):      {siem, "other-siem", access.Canary},
		message.GatewayAlive:                       {access.Gateway},
		message.LogsHeld:                           {access.Ingest},
		subject.AllEvents:                          nil,
		subject.AllDeadLetters:                     nil,
		subject.AllAudit:                           nil,
		"edr.>":                                    nil,
		">":                                        nil,
		"_INBOX.>":                                 nil,
		"$KV.>":                                    nil,
		"$O.>":                                     nil,
		"$JS.>":                                    nil,
		"$SYS.>":                                   nil,
	}
	for _, q := range questions() {
		allowed[q.subject] = []string{q.owner}
	}
	// No user reads what another is answered.
	for _, user := range users {
		own := []string{user}
		if user == access.Canary { // it asks nothing
			own = nil
		}
		allowed[access.InboxPrefix(user)+".>"] = own
		allowed[access.InboxPrefix(user)+".x.y"] = own
	}
	for s, want := range allowed {
		for user, nc := range conns {
			if got := maySubscribe(t, nc, s); got != slices.Contains(want, user) {
				t.Errorf("%s may subscribe to %s: %v", user, s, got)
			}
		}
	}
}

// A service answers those who ask it, once, and nobody unasked.
func TestRespond(t *testing.T) {
	conns := connect(t)
	for _, q := range questions() {
		owner := conns[q.owner]
		second := make(chan error, 1)
		sub, err := owner.Subscribe(q.subject, func(m *nats.Msg) {
			second <- errors.Join(m.Respond([]byte("one")), m.Respond([]byte("two")))
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := owner.Flush(); err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		m, err := conns[access.Gateway].RequestWithContext(ctx, q.subject, nil)
		if err != nil || string(m.Data) != "one" {
			t.Fatalf("%s: %v", q.subject, err)
		}
		if err := <-second; err != nil {
			t.Errorf("%s: %v", q.subject, err)
		}
		if !denied(t, owner, "Publish", m.Subject) {
			t.Errorf("%s: %s could answer twice", q.subject, q.owner)
		}
		if err := sub.Unsubscribe(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNoSuchService(t *testing.T) {
	for _, name := range []string{"", "siem", "rules", "API-GATEWAY"} {
		if p, err := access.ForService(name); err == nil || p.Publish != nil || p.Subscribe != nil {
			t.Errorf("%q: %+v, %v", name, p, err)
		}
	}
}

func TestNKeyOption(t *testing.T) {
	for _, seed := range []string{"", "not a seed", "SUAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"} {
		if _, err := access.NKeyOption([]byte(seed)); err == nil || seed != "" && strings.Contains(err.Error(), seed) {
			t.Errorf("%q: %v", seed, err)
		}
	}
}
