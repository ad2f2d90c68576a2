package alert

import (
	"net/netip"
	"strings"
)

const (
	sysmon   = "Microsoft-Windows-Sysmon"
	security = "Microsoft-Windows-Security-Auditing"
)

// kind is what an event's code means: a word for it, and the category and type
// of the Elastic Common Schema.
type kind struct{ action, category, typ string }

// sysmonKinds are the events of Sysmon 15 by their id
// (https://learn.microsoft.com/sysinternals/downloads/sysmon#events).
var sysmonKinds = map[string]kind{
	"1":  {"process-created", "process", "start"},
	"2":  {"file-time-changed", "file", "change"},
	"3":  {"network-connection", "network", "connection"},
	"5":  {"process-terminated", "process", "end"},
	"6":  {"driver-loaded", "driver", "start"},
	"7":  {"image-loaded", "library", "start"},
	"8":  {"remote-thread-created", "process", "change"},
	"9":  {"raw-access-read", "file", "access"},
	"10": {"process-accessed", "process", "access"},
	"11": {"file-created", "file", "creation"},
	"12": {"registry-object-changed", "registry", "change"},
	"13": {"registry-value-set", "registry", "change"},
	"14": {"registry-object-renamed", "registry", "change"},
	"15": {"file-stream-created", "file", "creation"},
	"17": {"pipe-created", "file", "creation"},
	"18": {"pipe-connected", "file", "access"},
	"19": {"wmi-filter", "configuration", "change"},
	"20": {"wmi-consumer", "configuration", "change"},
	"21": {"wmi-binding", "configuration", "change"},
	"22": {"dns-query", "network", "protocol"},
	"23": {"file-deleted", "file", "deletion"},
	"25": {"process-tampered", "process", "change"},
	"26": {"file-deleted", "file", "deletion"},
	"27": {"file-executable-blocked", "file", "info"},
	"28": {"file-shredding-blocked", "file", "info"},
	"29": {"file-executable-created", "file", "creation"},
}

// securityKinds are events of the Windows security log.
var securityKinds = map[string]kind{
	"4624": {"logged-in", "authentication", "start"},
	"4625": {"logon-failed", "authentication", "start"},
	"4634": {"logged-out", "authentication", "end"},
	"4672": {"special-privileges-assigned", "iam", "admin"},
	"4688": {"process-created", "process", "start"},
	"4689": {"process-terminated", "process", "end"},
	"4697": {"service-installed", "configuration", "creation"},
	"4720": {"user-created", "iam", "creation"},
	"4728": {"added-to-global-group", "iam", "group"},
	"4732": {"added-to-local-group", "iam", "group"},
	"4756": {"added-to-universal-group", "iam", "group"},
	"5140": {"share-accessed", "file", "access"},
	"5145": {"share-object-checked", "file", "access"},
}

// windows reads an event of the Windows event log, given its Event object.
func windows(ev object) Event {
	system, data := ev.object("System"), ev.object("EventData")
	e := Event{
		OS: "windows", Provider: system.text("Provider", "Name"), Channel: system.text("Channel"),
		Code: system.text("EventID"), Computer: system.text("Computer"),
	}
	if e.Code == "" {
		e.Code = system.text("EventID", "Value") // with qualifiers
	}
	var k kind
	switch {
	case e.Provider == sysmon || e.Provider == "" && strings.Contains(e.Channel, "Sysmon"):
		k = sysmonKinds[e.Code]
		e.sysmon(data)
	case e.Provider == "Microsoft-Windows-Eventlog" && (e.Code == "1102" || e.Code == "104"):
		k = kind{"log-cleared", "configuration", "deletion"}
		by := ev.object("UserData", "LogFileCleared")
		e.User = User{Name: by.text("SubjectUserName"), Domain: by.text("SubjectDomainName"), ID: by.text("SubjectUserSid")}
	case e.Provider == security || e.Channel == "Security":
		k = securityKinds[e.Code]
		e.security(data)
	case e.Code == "7045":
		k = kind{"service-installed", "configuration", "creation"}
		e.File.Path = data.text("ImagePath")
	}
	e.Action, e.Category, e.Type = k.action, k.category, k.typ
	return e
}

// sysmon reads the members that events of Sysmon share; each event has some of
// them.
func (e *Event) sysmon(d object) {
	e.User = account(d.first("User", "SourceUser"))
	e.Process = Process{
		Path: d.first("Image", "SourceImage"), CommandLine: d.text("CommandLine"), Directory: d.text("CurrentDirectory"),
		GUID: d.first("ProcessGuid", "SourceProcessGUID", "SourceProcessGuid"), PID: max(d.number("ProcessId"), d.number("SourceProcessId")),
		User: e.User,
	}
	e.Parent = Process{
		Path: d.text("ParentImage"), CommandLine: d.text("ParentCommandLine"), GUID: d.text("ParentProcessGuid"),
		PID: d.number("ParentProcessId"), User: account(d.text("ParentUser")),
	}
	e.Target = Process{
		Path: d.text("TargetImage"), GUID: d.first("TargetProcessGUID", "TargetProcessGuid"), PID: d.number("TargetProcessId"),
		User: account(d.text("TargetUser")),
	}
	e.File.Path = d.first("TargetFilename", "PipeName", "Device")
	e.Library.Path = d.text("ImageLoaded")
	e.Registry = Registry{Path: d.text("TargetObject"), Data: d.text("Details")}
	switch hashes := windowsHashes(d.first("Hashes", "Hash")); {
	case e.Library.Path != "":
		e.Library.Hashes = hashes
	case e.File.Path != "":
		e.File.Hashes = hashes
	default:
		e.Process.Hashes = hashes
	}
	e.Source = Peer{IP: d.ip("SourceIp"), Host: d.text("SourceHostname"), Port: d.port("SourcePort")}
	e.Destination = Peer{IP: d.ip("DestinationIp"), Host: d.text("DestinationHostname"), Port: d.port("DestinationPort")}
	e.Transport = strings.ToLower(d.text("Protocol"))
	switch d.text("Initiated") {
	case "true":
		e.Direction = "egress"
	case "false":
		e.Direction = "ingress"
	}
	e.DNS.Question = d.text("QueryName")
	for answer := range strings.SplitSeq(d.text("QueryResults"), ";") {
		if answer = strings.TrimSpace(answer); answer != "" {
			e.DNS.Answers = append(e.DNS.Answers, strings.TrimPrefix(answer, "::ffff:"))
		}
	}
}

// security reads events of the Windows security log.
func (e *Event) security(d object) {
	subject := User{Name: d.text("SubjectUserName"), Domain: d.text("SubjectDomainName"), ID: d.text("SubjectUserSid")}
	target := User{Name: d.text("TargetUserName"), Domain: d.text("TargetDomainName"), ID: d.text("TargetUserSid")}
	e.User = subject
	switch e.Code {
	case "4624", "4625", "4634":
		e.User = target
		e.Outcome = "success"
		if e.Code == "4625" {
			e.Outcome = "failure"
		}
	}
	e.Process = Process{Path: d.text("ProcessName"), PID: d.number("ProcessId")}
	if e.Code == "4688" {
		e.Process = Process{Path: d.text("NewProcessName"), CommandLine: d.text("CommandLine"), PID: d.number("NewProcessId"), User: subject}
		e.Parent = Process{Path: d.text("ParentProcessName"), PID: d.number("ProcessId")}
	}
	e.Source = Peer{IP: d.ip("IpAddress"), Host: d.text("WorkstationName"), Port: d.port("IpPort")}
	e.File.Path = d.first("RelativeTargetName", "ServiceFileName")
}

// account splits DOMAIN\name.
func account(s string) User {
	if domain, name, ok := strings.Cut(s, `\`); ok {
		return User{Name: name, Domain: domain}
	}
	return User{Name: s}
}

// windowsHashes reads what Sysmon writes, such as MD5=...,SHA256=....
func windowsHashes(s string) Hashes {
	var h Hashes
	for pair := range strings.SplitSeq(s, ",") {
		name, value, _ := strings.Cut(pair, "=")
		value = strings.ToLower(strings.TrimSpace(value))
		switch strings.ToUpper(strings.TrimSpace(name)) {
		case "MD5":
			h.MD5 = value
		case "SHA1":
			h.SHA1 = value
		case "SHA256":
			h.SHA256 = value
		case "IMPHASH":
			h.Imphash = value
		}
	}
	return h
}

// Addresses returns the answers that are addresses.
func (d DNS) Addresses() []string {
	var list []string
	for _, a := range d.Answers {
		if ip, err := netip.ParseAddr(a); err == nil {
			list = append(list, ip.String())
		}
	}
	return list
}
