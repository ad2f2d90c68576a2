package access

import (
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

// Names of the services.
const (
	Gateway  = "api-gateway"
	Rules    = "rule-engine"
	Registry = "endpoint-registry"
	Commands = "command-dispatch"
	Ingest   = "log-ingest"
	Scorer   = "report-scorer"
)

// Backup is the name of the user who reads streams to back them up, and
// Restore that of the one who brings them back; no service or SIEM has either.
const (
	Backup  = "backup"
	Restore = "restore"
)

// Canary is the name of the canary's user.
const Canary = "canary"

// Services are the names of all services that have a user.
var Services = []string{Gateway, Rules, Registry, Commands, Ingest, Scorer}

// Users returns the names of all users where services run apart: the services,
// Backup, Restore, Canary and these SIEMs.
func Users(siems []string) []string {
	return slices.Concat(Services, []string{Backup, Restore, Canary}, siems)
}

// For returns the permissions of a user. A name that is neither that of a
// service nor Backup, Restore or Canary is that of a SIEM.
func For(user string) Permissions {
	switch user {
	case Backup:
		return ForBackup()
	case Restore:
		return ForRestore()
	case Canary:
		return ForCanary()
	}
	if p, err := ForService(user); err == nil {
		return p
	}
	return ForSIEM(user)
}

// InboxPrefix returns the prefix of a user's private inbox. No user can read
// another one's answers.
func InboxPrefix(user string) string { return "_INBOX_" + user }

// NKeyOption makes a connection option of an NKey seed.
func NKeyOption(seed []byte) (nats.Option, error) {
	kp, err := nkeys.FromSeed(seed)
	if err != nil {
		return nil, fmt.Errorf("nkey seed: %w", err)
	}
	public, err := kp.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("nkey seed: %w", err)
	}
	return nats.Nkey(public, kp.Sign), nil
}

// RespondWithin is how long a service may take to answer a request; the server
// lets no answer through that comes later.
const RespondWithin = 2 * time.Minute

// Permissions are the subjects that a user may publish to and subscribe to.
// Respond allows one answer to each request that the user received, within
// RespondWithin.
type Permissions struct {
	Publish, Subscribe []string
	Respond            bool
}

type builder struct{ p Permissions }

func (b *builder) pub(subjects ...string) *builder {
	b.p.Publish = append(b.p.Publish, subjects...)
	return b
}

// owns lets the user create and change a stream, write to subjects of it and
// read it.
func (b *builder) owns(name string, subjects ...string) *builder {
	b.pub("$JS.API.STREAM.CREATE."+name, "$JS.API.STREAM.UPDATE."+name, "$JS.API.STREAM.PURGE."+name, "$JS.API.STREAM.MSG.DELETE."+name)
	b.pub(subjects...)
	return b.reads(name)
}

// reads lets the user read a stream through consumers of its own.
func (b *builder) reads(name string) *builder {
	return b.pub(
		"$JS.API.STREAM.INFO."+name,
		"$JS.API.STREAM.MSG.GET."+name,
		"$JS.API.DIRECT.GET."+name, "$JS.API.DIRECT.GET."+name+".>",
		"$JS.API.CONSUMER.CREATE."+name, "$JS.API.CONSUMER.CREATE."+name+".>",
		"$JS.API.CONSUMER.INFO."+name+".*",
		"$JS.API.CONSUMER.DELETE."+name+".*",
		"$JS.API.CONSUMER.MSG.NEXT."+name+".*",
		"$JS.ACK."+name+".>", "$JS.ACK.*.*."+name+".>",
		"$JS.FC."+name+".>", "$JS.FC.*.*."+name+".>",
	)
}

// ends lets the user ask where streams end.
func (b *builder) ends(names ...string) *builder {
	for _, name := range names {
		b.pub("$JS.API.STREAM.INFO." + name)
	}
	return b
}

func (b *builder) kv(bucket string) *builder {
	return b.owns("KV_"+bucket, "$KV."+bucket+".>")
}

func (b *builder) objects(name string) *builder {
	return b.owns("OBJ_"+name, "$O."+name+".>")
}

// hears lets the user subscribe to subjects without answering.
func (b *builder) hears(subjects ...string) *builder {
	b.p.Subscribe = append(b.p.Subscribe, subjects...)
	return b
}

// answers lets the user answer on subjects of the micro framework.
func (b *builder) answers(subjects ...string) *builder {
	b.p.Subscribe = append(append(b.p.Subscribe, subjects...), "$SRV.>")
	b.p.Respond = true
	return b
}

// ForService returns the permissions of a service's user.
func ForService(name string) (Permissions, error) {
	b := &builder{p: Permissions{Subscribe: []string{InboxPrefix(name) + ".>"}}}
	b.pub("$JS.API.INFO")
	switch name {
	case Gateway:
		b.owns(stream.Intake, "edr.intake.*").owns(stream.Events, "edr.events.*.*").owns(stream.DeadLetters, "edr.deadletter.>").owns(stream.Audit, "edr.audit.>").
			kv(stream.Access).reads("KV_"+stream.Endpoints).reads("KV_"+stream.Removed).reads("KV_"+stream.Rules).reads("KV_"+stream.Commands).
			reads("OBJ_"+stream.Files).reads("OBJ_"+stream.Artifacts).reads("OBJ_"+stream.Containers).
			pub("edr.registry.>", "edr.rules.>", "edr.containers.>", "edr.commands.>", "edr.logs.>", "edr.artifacts.>", "edr.reports.>").
			pub("$O."+stream.Files+".>", "$O."+stream.Artifacts+".>", "$O."+stream.Containers+".>").
			// An upload that breaks off is taken back.
			pub("$JS.API.STREAM.PURGE.OBJ_"+stream.Files, "$JS.API.STREAM.PURGE.OBJ_"+stream.Artifacts, "$JS.API.STREAM.PURGE.OBJ_"+stream.Containers).
			hears(message.GatewayAlive).pub(message.GatewayAlive)
	case Registry:
		b.kv(stream.Endpoints).kv(stream.Removed).ends(stream.Events, stream.Alerts, stream.DeadLetters, "OBJ_"+stream.Artifacts).answers("edr.registry.>")
	case Rules:
		b.kv(stream.Rules).objects(stream.Containers).reads("KV_"+stream.Removed).owns(stream.Alerts, "edr.alerts.*.*").reads(stream.Events).
			pub("edr.deadletter.>", "$JS.API.CONSUMER.DURABLE.CREATE."+stream.Events+".*").answers("edr.rules.>", "edr.containers.>")
	case Commands:
		b.kv(stream.Commands).objects(stream.Files).answers("edr.commands.>")
	case Ingest:
		b.objects(stream.Artifacts).reads("KV_"+stream.Removed).reads(stream.Events).reads(stream.Alerts).answers("edr.logs.>", "edr.artifacts.>").
			hears(message.LogsHeld).pub(message.LogsHeld)
	case Scorer:
		b.kv(stream.Reports).reads("KV_" + stream.Removed).reads(stream.Alerts).answers("edr.reports.>")
	default:
		return Permissions{}, fmt.Errorf("no service %q", name)
	}
	return b.p, nil
}

// CanaryAlerts is the subject of the alerts that the canary may hear: those of
// its severity.
const CanaryAlerts = "edr.alerts." + string(subject.Low) + ".*"

// ForSIEM returns the permissions of a SIEM's user: alerts as they come, and
// its own durable consumer on the stream ALERTS.
func ForSIEM(name string) Permissions {
	return Permissions{
		Subscribe: []string{"edr.alerts.>", InboxPrefix(name) + ".>"},
		Publish: []string{
			"$JS.API.CONSUMER.INFO." + stream.Alerts + "." + name,
			"$JS.API.CONSUMER.MSG.NEXT." + stream.Alerts + "." + name,
			"$JS.ACK." + stream.Alerts + "." + name + ".>",
			"$JS.ACK.*.*." + stream.Alerts + "." + name + ".>",
		},
	}
}

// ForCanary returns the permissions of the canary's user: to hear the alerts
// that its rule raises, and to say nothing to anybody. Its endpoint is made by
// the manager, later than this is written down, so it hears all alerts of its
// severity.
func ForCanary() Permissions {
	return Permissions{
		Subscribe: []string{CanaryAlerts},
		// A server takes an empty list for everything. Nobody listens here.
		Publish: []string{InboxPrefix(Canary)},
	}
}

// ForBackup returns the permissions of the user who backs streams up: to look
// at any stream and read it, and to change nothing.
func ForBackup() Permissions {
	return Permissions{
		Subscribe: []string{InboxPrefix(Backup) + ".>"},
		Publish:   []string{"$JS.API.STREAM.INFO.*", "$JS.API.STREAM.SNAPSHOT.*", "$JS.API.STREAM.MSG.GET.*", "$JS.API.DIRECT.GET.*", "$JS.SNAPSHOT.ACK.>"},
	}
}

// ForRestore returns the permissions of the user who brings streams back from
// a backup: to make the streams of the record, with what they held. The server
// refuses a stream that exists, so where the services have started once the
// user can change nothing.
func ForRestore() Permissions {
	p := Permissions{Subscribe: []string{InboxPrefix(Restore) + ".>"}}
	for _, name := range stream.Record() {
		p.Publish = append(p.Publish, "$JS.API.STREAM.INFO."+name, "$JS.API.STREAM.RESTORE."+name, "$JS.SNAPSHOT.RESTORE."+name+".*")
	}
	return p
}
