package format

import (
	"net/netip"
	"strings"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"

	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/alert"
)

// ecsVersion is the version of the Elastic Common Schema whose fields are
// written (https://www.elastic.co/docs/reference/ecs).
const ecsVersion = "9.3.0"

// ecs writes an alert with the fields of the Elastic Common Schema. What the
// schema has no field for stands below nightjar, and event.original is the
// payload as it came.
func ecs(a *alert.Alert, short bool) ([]byte, error) {
	e, d := &a.Event, document{}
	d.set("@timestamp", a.Time.UTC().Format(time.RFC3339Nano))
	d.set("ecs.version", ecsVersion)
	d.set("message", a.Message())
	d.set("tags", []string{"nightjar"})

	d.set("event.kind", "alert")
	d.set("event.module", "nightjar")
	d.set("event.dataset", "nightjar.alert")
	d.set("event.id", a.ID)
	d.set("event.created", a.Received.UTC().Format(time.RFC3339Nano))
	d["event"].(document)["severity"] = a.Criticality // 0 says something
	d.set("event.code", e.Code)
	d.set("event.provider", e.Provider)
	d.set("event.action", e.Action)
	d.set("event.outcome", e.Outcome)
	d.set("event.category", unique(e.Category))
	d.set("event.type", unique(e.Type))
	if !short {
		d.set("event.original", string(a.Payload))
	}

	d.set("rule.name", a.Signatures)
	d.set("rule.ruleset", "gene")
	d.ecsThreat(a)
	d.set("observer.vendor", product)
	d.set("observer.product", product)
	d.set("observer.type", "edr")
	d.set("observer.version", version)
	d.set("agent.id", a.Endpoint)
	d.set("host.id", a.Endpoint)
	d.set("host.name", strings.ToLower(a.Host()))
	d.set("host.hostname", a.Host())
	d.set("host.ip", unique(ip(a.IP)))
	d.set("host.os.type", e.OS)

	d.ecsProcess("process", &e.Process)
	d.ecsProcess("process.parent", &e.Parent)
	d.ecsProcess("nightjar.target.process", &e.Target)
	d.ecsUser("user", e.User)
	d.ecsFile("file", e.File)
	d.ecsFile("dll", e.Library)
	d.ecsRegistry(e.Registry)
	d.ecsNetwork(e)

	d.set("nightjar.severity", string(a.Severity))
	d.set("nightjar.origin", string(a.Origin))
	d.set("nightjar.channel", e.Channel)
	d.set("related.user", unique(e.User.Name, e.Target.User.Name))
	d.set("related.ip", unique(append([]string{ip(a.IP), e.Source.IP, e.Destination.IP}, e.DNS.Addresses()...)...))
	d.set("related.hosts", unique(a.Host(), e.Source.Host, e.Destination.Host, e.DNS.Question))
	d.set("related.hash", unique(hashes(e.Process.Hashes, e.File.Hashes, e.Library.Hashes)...))
	return event.Marshal(d)
}

// ip returns s when it is an address: Elasticsearch refuses a document whose
// address is none.
func ip(s string) string {
	if _, err := netip.ParseAddr(s); err != nil {
		return ""
	}
	return s
}

func hashes(list ...alert.Hashes) []string {
	var out []string
	for _, h := range list {
		out = append(out, h.MD5, h.SHA1, h.SHA256, h.SHA512)
	}
	return out
}

func (d document) ecsThreat(a *alert.Alert) {
	var techniques, subs, references, tactics []string
	for _, t := range a.ATTACK {
		technique, _, sub := strings.Cut(t.ID, ".")
		techniques = append(techniques, technique)
		if sub {
			subs = append(subs, t.ID)
		}
		tactics, references = append(tactics, t.Tactic), append(references, t.Reference)
	}
	if len(a.ATTACK) == 0 {
		return
	}
	d.set("threat.framework", "MITRE ATT&CK")
	d.set("threat.technique.id", unique(techniques...))
	d.set("threat.technique.reference", unique(references...))
	d.set("threat.technique.subtechnique.id", unique(subs...))
	d.set("threat.tactic.name", unique(tactics...))
}

func (d document) ecsProcess(at string, p *alert.Process) {
	d.set(at+".executable", p.Path)
	d.set(at+".name", base(p.Path))
	d.set(at+".pid", p.PID)
	d.set(at+".entity_id", p.GUID)
	d.set(at+".command_line", p.CommandLine)
	d.set(at+".working_directory", p.Directory)
	d.ecsHashes(at, p.Hashes)
	if at != "process" { // the acting process runs as the top-level user
		d.set(at+".user.name", p.User.Name)
		d.set(at+".user.id", p.User.ID)
	}
}

func (d document) ecsUser(at string, u alert.User) {
	d.set(at+".name", u.Name)
	d.set(at+".domain", u.Domain)
	d.set(at+".id", u.ID)
}

func (d document) ecsHashes(at string, h alert.Hashes) {
	d.set(at+".hash.md5", h.MD5)
	d.set(at+".hash.sha1", h.SHA1)
	d.set(at+".hash.sha256", h.SHA256)
	d.set(at+".hash.sha512", h.SHA512)
	d.set(at+".pe.imphash", h.Imphash)
}

func (d document) ecsFile(at string, f alert.File) {
	d.set(at+".path", f.Path)
	d.set(at+".name", base(f.Path))
	d.ecsHashes(at, f.Hashes)
}

// hives are the roots of the registry as Sysmon abbreviates them, which are
// the schema's abbreviations as well.
var hives = []string{"HKLM", "HKU", "HKCR", "HKCU", "HKCC"}

func (d document) ecsRegistry(r alert.Registry) {
	d.set("registry.path", r.Path)
	hive, rest, ok := strings.Cut(r.Path, `\`)
	for _, h := range hives {
		if ok && h == hive {
			d.set("registry.hive", hive)
			d.set("registry.key", strings.TrimSuffix(rest, `\`+base(rest)))
			d.set("registry.value", base(rest))
		}
	}
	d.set("registry.data.strings", unique(r.Data))
}

func (d document) ecsNetwork(e *alert.Event) {
	d.ecsPeer("source", e.Source)
	d.ecsPeer("destination", e.Destination)
	d.set("network.transport", e.Transport)
	d.set("network.direction", e.Direction)
	if a, err := netip.ParseAddr(e.Destination.IP); err == nil {
		d.set("network.type", map[bool]string{true: "ipv4", false: "ipv6"}[a.Is4()])
	}
	d.set("dns.question.name", e.DNS.Question)
	var answers []document
	for _, s := range e.DNS.Answers {
		answers = append(answers, document{"data": s})
	}
	d.set("dns.answers", answers)
	d.set("dns.resolved_ip", e.DNS.Addresses())
}

func (d document) ecsPeer(at string, p alert.Peer) {
	address := p.IP
	if address == "" {
		address = p.Host
	}
	d.set(at+".address", address)
	d.set(at+".ip", p.IP)
	d.set(at+".port", p.Port)
	d.set(at+".domain", p.Host)
}
