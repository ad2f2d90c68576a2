package format

import (
	"strings"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"

	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/alert"
)

// Numbers of OCSF: class Detection Finding of the category Findings, activity
// Create (https://schema.ocsf.io/1.5.0/classes/detection_finding).
const (
	ocsfVersion  = "1.5.0"
	ocsfCategory = 2
	ocsfClass    = 2004
	ocsfCreate   = 1
)

// ocsfSeverity are the severity_id and its caption.
var ocsfSeverity = map[subject.Severity]struct {
	id      int
	caption string
}{
	subject.Info:     {1, "Informational"},
	subject.Low:      {2, "Low"},
	subject.Medium:   {3, "Medium"},
	subject.High:     {4, "High"},
	subject.Critical: {5, "Critical"},
}

// ocsf writes an alert as a Detection Finding. Its time is when the finding
// came to be, its start and end are the event's. raw_data is the payload as it
// came.
func ocsf(a *alert.Alert, short bool) ([]byte, error) {
	e := &a.Event
	severity := ocsfSeverity[a.Severity]
	d := document{
		"category_uid": ocsfCategory, "category_name": "Findings", "class_uid": ocsfClass, "class_name": "Detection Finding",
		"activity_id": ocsfCreate, "activity_name": "Create", "type_uid": ocsfClass*100 + ocsfCreate, "type_name": "Detection Finding: Create",
		"severity_id": severity.id, "severity": severity.caption, "status_id": 1, "status": "New", "is_alert": true,
		"time": a.Received.UnixMilli(), "start_time": a.Time.UnixMilli(), "end_time": a.Time.UnixMilli(),
	}
	d.set("message", a.Message())
	if !short {
		d.set("raw_data", string(a.Payload))
	}
	d.set("metadata", document{
		"version": ocsfVersion, "uid": a.ID, "logged_time": a.Received.UnixMilli(),
		"product": document{"name": product, "vendor_name": product, "version": version},
	})
	d.set("metadata.log_name", e.Channel)
	d.set("metadata.log_provider", e.Provider)
	d.set("metadata.event_code", e.Code)
	if a.Timed {
		d.set("metadata.original_time", a.Time.Format(time.RFC3339Nano))
	}
	d.ocsfFinding(a)
	d.set("device", document{"type_id": 0, "uid": a.Endpoint, "hostname": a.Host()})
	d.set("device.ip", ip(a.IP))
	if os, ok := map[string]document{
		"windows": {"name": "Windows", "type": "Windows", "type_id": 100}, "linux": {"name": "Linux", "type": "Linux", "type_id": 200},
	}[e.OS]; ok {
		d.set("device.os", os)
	}
	if evidence := ocsfEvidence(e); len(evidence) > 0 {
		d.set("evidences", []document{evidence})
	}
	d.set("unmapped", document{"criticality": a.Criticality, "origin": string(a.Origin), "action": e.Action})
	return event.Marshal(d)
}

func (d document) ocsfFinding(a *alert.Alert) {
	d.set("finding_info", document{
		"uid": a.ID, "title": strings.Join(a.Signatures, ", "), "created_time": a.Received.UnixMilli(), "first_seen_time": a.Time.UnixMilli(),
	})
	var rules []document
	for _, s := range a.Signatures {
		rules = append(rules, document{"type_id": 1, "type": "Rule", "name": s, "uid": s})
	}
	if len(rules) > 0 {
		d.set("finding_info.analytic", rules[0])
		d.set("finding_info.related_analytics", rules[1:])
	}
	var attacks []document
	for _, t := range a.ATTACK {
		technique, _, sub := strings.Cut(t.ID, ".")
		attack := document{}
		attack.set("technique.uid", technique)
		if sub {
			attack.set("sub_technique.uid", t.ID)
			attack.set("sub_technique.src_url", t.Reference)
		} else {
			attack.set("technique.src_url", t.Reference)
		}
		attack.set("tactic.name", t.Tactic)
		if technique != "" || t.Tactic != "" {
			attacks = append(attacks, attack)
		}
	}
	d.set("finding_info.attacks", attacks)
}

// ocsfEvidence is what the event shows, as one evidence artifact.
func ocsfEvidence(e *alert.Event) document {
	d := document{}
	process := ocsfProcess(&e.Process)
	process.set("user", ocsfUser(e.User))
	if e.Parent.Known() {
		process.set("parent_process", ocsfProcess(&e.Parent))
	}
	// Who acted is the actor: the process that accessed another one, and the
	// parent where a process was created.
	switch {
	case e.Target.Known():
		d.set("actor.process", process)
		d.set("process", ocsfProcess(&e.Target))
	case e.Category == "process" && e.Type == "start" && e.Parent.Known():
		d.set("actor.process", ocsfProcess(&e.Parent))
		d.set("process", process)
	case e.Process.Known():
		d.set("actor.process", process)
	}
	d.set("actor.user", ocsfUser(e.User))
	d.set("file", ocsfFile(e.File))
	if e.File.Path == "" {
		d.set("file", ocsfFile(e.Library))
	}
	d.set("src_endpoint", ocsfPeer(e.Source))
	d.set("dst_endpoint", ocsfPeer(e.Destination))
	if e.Transport != "" || e.Direction != "" {
		direction := map[string]int{"ingress": 1, "egress": 2}[e.Direction]
		d.set("connection_info", document{"direction_id": direction})
		d.set("connection_info.protocol_name", e.Transport)
	}
	if e.DNS.Question != "" {
		d.set("query", document{"hostname": e.DNS.Question})
	}
	// The core schema has no registry; the extension for Windows has.
	if e.Registry.Path != "" {
		d.set("data.registry.path", e.Registry.Path)
		d.set("data.registry.data", e.Registry.Data)
	}
	d.set("data.dns_answers", e.DNS.Answers)
	return d
}

func ocsfProcess(p *alert.Process) document {
	d := document{}
	d.set("pid", p.PID)
	d.set("uid", p.GUID)
	d.set("name", base(p.Path))
	d.set("cmd_line", p.CommandLine)
	d.set("file", ocsfFile(alert.File{Path: p.Path, Hashes: p.Hashes}))
	d.set("user", ocsfUser(p.User))
	return d
}

func ocsfUser(u alert.User) document {
	d := document{}
	d.set("name", u.Name)
	d.set("domain", u.Domain)
	d.set("uid", u.ID)
	return d
}

func ocsfFile(f alert.File) document {
	if f.Path == "" {
		return nil
	}
	d := document{"name": base(f.Path), "path": f.Path, "type_id": 1, "type": "Regular File"}
	var list []document
	for i, h := range []struct{ name, value string }{{"MD5", f.Hashes.MD5}, {"SHA-1", f.Hashes.SHA1}, {"SHA-256", f.Hashes.SHA256}, {"SHA-512", f.Hashes.SHA512}} {
		if h.value != "" {
			list = append(list, document{"algorithm_id": i + 1, "algorithm": h.name, "value": h.value})
		}
	}
	d.set("hashes", list)
	return d
}

func ocsfPeer(p alert.Peer) document {
	d := document{}
	d.set("ip", p.IP)
	d.set("port", p.Port)
	d.set("hostname", p.Host)
	return d
}
