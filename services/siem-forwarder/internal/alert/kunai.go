package alert

import (
	"strings"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
)

// kunaiKinds are events of Kunai by their name
// (https://why.kunai.rocks/docs/category/kunai---events).
var kunaiKinds = map[string]kind{
	"execve":            {"process-created", "process", "start"},
	"execve_script":     {"process-created", "process", "start"},
	"clone":             {"process-forked", "process", "start"},
	"exit":              {"process-terminated", "process", "end"},
	"exit_group":        {"process-terminated", "process", "end"},
	"prctl":             {"process-attributes-changed", "process", "change"},
	"kill":              {"signal-sent", "process", "change"},
	"ptrace":            {"process-traced", "process", "access"},
	"mprotect_exec":     {"memory-made-executable", "process", "change"},
	"mmap_exec":         {"image-loaded", "library", "start"},
	"init_module":       {"driver-loaded", "driver", "start"},
	"bpf_prog_load":     {"bpf-program-loaded", "driver", "start"},
	"bpf_socket_filter": {"socket-filter-attached", "network", "info"},
	"connect":           {"network-connection", "network", "connection"},
	"send_data":         {"network-data-sent", "network", "connection"},
	"dns_query":         {"dns-query", "network", "protocol"},
	"read":              {"file-read", "file", "access"},
	"read_config":       {"file-read", "file", "access"},
	"write":             {"file-written", "file", "change"},
	"write_config":      {"file-written", "file", "change"},
	"write_close":       {"file-written", "file", "change"},
	"file_create":       {"file-created", "file", "creation"},
	"file_rename":       {"file-renamed", "file", "change"},
	"file_unlink":       {"file-deleted", "file", "deletion"},
}

// kunai reads an event of Kunai, whose members changed their form between
// versions: an executable is a path, or an object with its path as file or as
// path.
func kunai(doc object) Event {
	info, data := doc.object("info"), doc.object("data")
	e := Event{
		OS: "linux", Provider: "kunai", Code: info.text("event", "id"), Action: info.text("event", "name"),
		Computer: info.object("host").first("name", "hostname"),
	}
	name := e.Action
	if k, ok := kunaiKinds[name]; ok {
		e.Action, e.Category, e.Type = k.action, k.category, k.typ
	}
	task, parent := info.object("task"), info.object("parent_task")
	e.Process = kunaiTask(task)
	exe := kunaiFile(data, "exe")
	e.Process.Path, e.Process.Hashes, e.Process.CommandLine = exe.Path, exe.Hashes, data.text("command_line")
	e.User = e.Process.User
	e.Parent = kunaiTask(parent)
	e.Parent.Path, e.Parent.CommandLine = data.text("parent_exe"), data.text("parent_command_line")
	if target := data.object("target"); target != nil {
		e.Target = kunaiTask(target.object("task"))
		e.Target.Path, e.Target.CommandLine = kunaiFile(target, "exe").Path, target.text("command_line")
	}
	e.Library = kunaiFile(data, "mapped")
	e.File.Path = data.first("path", "new_name", "new")
	e.Source = kunaiPeer(data.object("src"))
	e.Destination = kunaiPeer(data.object("dst"))
	e.Transport = strings.ToLower(data.first("proto"))
	switch data.text("socket", "proto") {
	case "TCP", "tcp":
		e.Transport = "tcp"
	case "UDP", "udp":
		e.Transport = "udp"
	}
	switch name {
	case "connect", "send_data":
		e.Direction = "egress"
	case "dns_query":
		e.Destination = kunaiPeer(data.object("dns_server"))
		e.DNS.Question = data.text("query")
		for answer := range strings.SplitSeq(data.text("response"), ";") {
			if answer != "" {
				e.DNS.Answers = append(e.DNS.Answers, answer)
			}
		}
	}
	return e
}

// kunaiTask reads a task. The id of the process is the thread group's.
func kunaiTask(t object) Process {
	p := Process{GUID: t.text("guuid"), PID: t.number("tgid"), User: User{Name: t.text("user"), ID: t.text("uid")}}
	if p.User.Name == "?" {
		p.User.Name = ""
	}
	return p
}

func kunaiFile(data object, name string) File {
	o := data.object(name)
	if o == nil {
		return File{Path: data.text(name)}
	}
	return File{Path: o.first("path", "file"), Hashes: Hashes{
		MD5: o.text("md5"), SHA1: o.text("sha1"), SHA256: o.text("sha256"), SHA512: o.text("sha512"),
	}}
}

func kunaiPeer(o object) Peer {
	p := Peer{IP: o.ip("ip"), Host: o.text("hostname"), Port: o.port("port")}
	if p.Host == "?" {
		p.Host = ""
	}
	return p
}

// kunaiAttack reads the references that Kunai puts beside its detection: ids of
// techniques and tactics.
func kunaiAttack(doc object) []event.Attack {
	list, _ := doc.at("detection", "attack").([]any)
	var out []event.Attack
	for _, v := range list {
		if id, ok := v.(string); ok && strings.HasPrefix(id, "T") && !strings.HasPrefix(id, "TA") {
			out = append(out, event.Attack{ID: id})
		}
	}
	return out
}
