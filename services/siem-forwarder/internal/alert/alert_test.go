package alert_test

import (
	"reflect"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/alert"
	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/alerttest"
)

func read(t *testing.T, m *nats.Msg) *alert.Alert {
	t.Helper()
	a, err := alert.Read(m.Header, m.Data)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestSamples reads every sample alert and pins what is found in some.
func TestSamples(t *testing.T) {
	byRule := map[string]*alert.Alert{}
	for _, m := range alerttest.Samples(t) {
		a := read(t, m)
		if a.ID != m.Header.Get(nats.MsgIdHdr) || a.Endpoint != alerttest.Endpoint || len(a.Signatures) == 0 || a.Event.Provider == "" || a.Event.Code == "" {
			t.Errorf("%s: %+v", m.Subject, a.Event)
		}
		byRule[a.Signatures[0]] = a
	}
	for rule, check := range map[string]func(e *alert.Event) bool{
		"OfficeAppStartsShell": func(e *alert.Event) bool {
			return e.Category == "process" && e.Type == "start" && e.Process.PID > 0 && e.Process.CommandLine != "" && len(e.Process.Hashes.SHA256) == 64 &&
				e.Parent.PID > 0 && e.Parent.Path != "" && e.User.Domain == "CORP" && e.User.Name == "clerk01"
		},
		"DynamicDnsLookup": func(e *alert.Event) bool {
			return e.Action == "dns-query" && e.DNS.Question != "" && len(e.DNS.Addresses()) > 0
		},
		"ScriptHostUnusualPort": func(e *alert.Event) bool {
			return e.Destination.IP != "" && e.Destination.Port > 0 && e.Source.IP != "" && e.Transport == "tcp" && e.Direction == "egress"
		},
		"AutorunFromUserFolder": func(e *alert.Event) bool {
			return e.Category == "registry" && e.Registry.Path != "" && e.Registry.Data != ""
		},
		"AgentPolicy:ForeignHandleToLsass": func(e *alert.Event) bool {
			return e.Process.PID > 0 && e.Target.PID > 0 && e.Target.Path == `C:\Windows\System32\lsass.exe` && e.Process.Path != e.Target.Path
		},
		"Builtin:CanaryModified": func(e *alert.Event) bool { return e.File.Path != "" && e.Category == "file" },
		"RemoteDesktopLogon": func(e *alert.Event) bool {
			return e.Category == "authentication" && e.Outcome == "success" && e.User.Name != "" && e.User.ID != "" && e.Source.IP != ""
		},
		"ServiceFromSuspiciousPath": func(e *alert.Event) bool { return e.Action == "service-installed" && e.File.Path != "" },
		"EventLogCleared":           func(e *alert.Event) bool { return e.Action == "log-cleared" },
		"linux.exec_from_shared_memory": func(e *alert.Event) bool {
			return e.OS == "linux" && e.Action == "process-created" && e.Process.PID > 0 && e.Process.Path != "" && len(e.Process.Hashes.SHA512) == 128 && e.Parent.Path != ""
		},
	} {
		switch a := byRule[rule]; {
		case a == nil:
			t.Errorf("no sample for %s", rule)
		case !check(&a.Event):
			t.Errorf("%s: %+v", rule, a.Event)
		}
	}
}

// TestKunaiForms reads both forms that Kunai has for an executable, and its
// network events.
func TestKunaiForms(t *testing.T) {
	for _, c := range []struct{ name, line string }{
		{"path", `{"data":{"exe":"/usr/bin/curl","command_line":"curl x","query":"x.example","proto":"udp","response":"192.0.2.1;192.0.2.2","dns_server":{"ip":"127.0.0.53","port":53}},"info":{"event":{"id":61,"name":"dns_query","source":"kunai"},"host":{"hostname":"h"},"task":{"pid":8,"tgid":7,"uid":0},"parent_task":{"tgid":1},"utc_time":"2024-07-06T05:27:19.9Z"}}`},
		{"object", `{"data":{"exe":{"path":"/usr/bin/curl"},"command_line":"curl x","query":"x.example","proto":"udp","response":"192.0.2.1;192.0.2.2","dns_server":{"ip":"127.0.0.53","port":53}},"info":{"event":{"id":61,"name":"dns_query","source":"kunai"},"host":{"name":"h"},"task":{"pid":8,"tgid":7,"uid":0,"user":"?"},"parent_task":{"tgid":1},"utc_time":"2024-07-06T05:27:19.9Z"}}`},
		{"file", `{"data":{"exe":{"file":"/usr/bin/curl"},"command_line":"curl x","query":"x.example","proto":"udp","response":"192.0.2.1;192.0.2.2","dns_server":{"ip":"127.0.0.53","port":53}},"info":{"event":{"id":61,"name":"dns_query","source":"kunai"},"host":{"name":"h"},"task":{"pid":8,"tgid":7,"uid":0},"parent_task":{"tgid":1},"utc_time":"2024-07-06T05:27:19.9Z"}}`},
	} {
		e := read(t, alerttest.Message(t, "", c.line, []string{"r"}, 3, message.OriginManager)).Event
		want := alert.Event{
			OS: "linux", Provider: "kunai", Code: "61", Action: "dns-query", Category: "network", Type: "protocol", Computer: "h",
			Process: alert.Process{Path: "/usr/bin/curl", CommandLine: "curl x", PID: 7, User: alert.User{ID: "0"}}, Parent: alert.Process{PID: 1},
			User: alert.User{ID: "0"}, Destination: alert.Peer{IP: "127.0.0.53", Port: 53}, Transport: "udp",
			DNS: alert.DNS{Question: "x.example", Answers: []string{"192.0.2.1", "192.0.2.2"}},
		}
		if !reflect.DeepEqual(e, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", c.name, e, want)
		}
	}
	connect := `{"data":{"exe":{"path":"/bin/x"},"socket":{"proto":"TCP"},"dst":{"hostname":"?","ip":"2001:db8::1","port":443},"connected":true},"detection":{"rules":["r"],"severity":4,"attack":["T1071","TA0011"]},"info":{"event":{"id":60,"name":"connect"},"task":{"tgid":7},"utc_time":"2024-07-06T05:27:19.9Z"}}`
	a := read(t, alerttest.Message(t, "", connect, []string{"r"}, 4, message.OriginAgent))
	if e := a.Event; e.Transport != "tcp" || e.Direction != "egress" || e.Destination != (alert.Peer{IP: "2001:db8::1", Port: 443}) {
		t.Errorf("connect: %+v", e)
	}
	if len(a.ATTACK) != 1 || a.ATTACK[0].ID != "T1071" {
		t.Errorf("connect: %+v", a.ATTACK)
	}
}

// TestOddShapes reads alerts whose members have other types than expected:
// what is there of the alert stays, and nothing is invented.
func TestOddShapes(t *testing.T) {
	for _, line := range []string{
		`{"a":1}`, `{"Event":null}`, `{"Event":{"System":[],"EventData":7}}`,
		`{"Event":{"System":{"EventID":{"Value":1},"Channel":{},"Provider":"x"},"EventData":{"Image":["a"],"ProcessId":"x","Hashes":{}}}}`,
		`{"Event":{"System":{"EventID":3,"Provider":{"Name":"Microsoft-Windows-Sysmon"}},"EventData":{"SourceIp":"none","SourcePort":"70000","DestinationIp":7}}}`,
		`{"info":{"event":7},"data":[]}`, `{"info":{"event":{"name":{}}},"data":{"exe":{"path":3},"dst":"x"}}`,
	} {
		a := read(t, alerttest.Message(t, "", line, []string{"r"}, 3, message.OriginManager))
		if len(a.Signatures) != 1 || a.Host() == "" || a.Event.Source.IP != "" || a.Event.Source.Port != 0 || a.Event.Destination != (alert.Peer{}) {
			t.Errorf("%s: %+v", line, a)
		}
	}
}

func TestUnreadable(t *testing.T) {
	m := alerttest.Samples(t)[0]
	if _, err := alert.Read(nats.Header{}, m.Data); err == nil {
		t.Error("no headers, and no error")
	}
	if _, err := alert.Read(m.Header, m.Data[:len(m.Data)/2]); err == nil {
		t.Error("half a message, and no error")
	}
}
