package format

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/alert"
)

// cefHeader escapes a field of the header: \ and | get a \ before them, and a
// header has no line breaks.
var cefHeader = strings.NewReplacer(`\`, `\\`, `|`, `\|`, "\r\n", " ", "\n", " ", "\r", " ", "\x00", " ")

// cefValue escapes a value of the extension: \ and = get a \ before them, and
// line breaks are written as \n and \r.
var cefValue = strings.NewReplacer(`\`, `\\`, `=`, `\=`, "\n", `\n`, "\r", `\r`, "\x00", " ")

// cefLine is a line that is being written.
type cefLine struct {
	strings.Builder
	pairs int
}

// add adds a pair to the extension unless the value is empty.
func (l *cefLine) add(key, value string) {
	if value == "" {
		return
	}
	if l.pairs++; l.pairs > 1 {
		l.WriteByte(' ')
	}
	l.WriteString(key)
	l.WriteByte('=')
	l.WriteString(cefValue.Replace(strings.ToValidUTF8(value, "\uFFFD")))
}

func (l *cefLine) number(key string, n int64) {
	if n != 0 {
		l.add(key, strconv.FormatInt(n, 10))
	}
}

// labelled adds one of the custom strings with its label.
func (l *cefLine) labelled(key, label, value string) {
	if value != "" {
		l.add(key+"Label", label)
		l.add(key, value)
	}
}

// address adds an address: CEF has other keys for IPv6 than for IPv4.
func (l *cefLine) address(key4, key6, label6, address string) {
	if a, err := netip.ParseAddr(address); err != nil {
		return
	} else if a.Is4() {
		l.add(key4, address)
	} else {
		l.labelled(key6, label6, address)
	}
}

// cef writes an alert in the Common Event Format, version 0: seven fields and
// an extension with the keys of the format's dictionary. The severity is the
// criticality. rawEvent, the payload as it came, is the last pair.
func cef(a *alert.Alert, short bool) []byte {
	e, l := &a.Event, &cefLine{}
	class := "alert"
	if len(a.Signatures) > 0 {
		class = a.Signatures[0]
	}
	l.WriteString("CEF:0")
	for _, field := range []string{product, product, version, class, strings.Join(a.Signatures, ", "), strconv.Itoa(a.Criticality)} {
		l.WriteByte('|')
		l.WriteString(cefHeader.Replace(strings.ToValidUTF8(field, "\uFFFD")))
	}
	l.WriteByte('|')
	l.number("rt", a.Received.UnixMilli())
	l.number("start", a.Time.UnixMilli())
	l.add("externalId", a.Hash.String())
	l.add("deviceExternalId", a.Endpoint)
	l.add("dvchost", a.Host())
	l.address("dvc", "c6a1", "Device IPv6 Address", a.IP)
	l.add("cat", string(a.Severity))
	l.add("act", e.Action)
	l.add("outcome", e.Outcome)
	l.add("deviceEventCategory", e.Category)
	l.add("msg", a.Message())
	l.cefEvent(e)
	l.labelled("cs1", "signatures", strings.Join(a.Signatures, ","))
	var attack []string
	for _, t := range a.ATTACK {
		attack = append(attack, t.ID)
	}
	l.labelled("cs2", "attack", strings.Join(unique(attack...), ","))
	l.labelled("flexString1", "origin", string(a.Origin))
	if !short {
		l.add("rawEvent", string(a.Payload))
	}
	return []byte(l.String())
}

func (l *cefLine) cefEvent(e *alert.Event) {
	l.add("suser", e.User.Name)
	l.add("sntdom", e.User.Domain)
	l.add("suid", e.User.ID)
	l.add("sproc", e.Process.Path)
	l.number("spid", e.Process.PID)
	l.add("dproc", e.Target.Path)
	l.number("dpid", e.Target.PID)
	l.labelled("cs3", "commandLine", e.Process.CommandLine)
	l.labelled("cs4", "parentProcess", e.Parent.Path)
	l.labelled("cs5", "parentCommandLine", e.Parent.CommandLine)
	l.labelled("cs6", "registryPath", e.Registry.Path)
	l.labelled("flexString2", "registryData", e.Registry.Data)
	file := e.File
	if file.Path == "" {
		file = e.Library
	}
	l.add("fname", base(file.Path))
	l.add("filePath", file.Path)
	if file.Path == "" {
		file.Hashes = e.Process.Hashes
	}
	l.add("fileHash", file.Hashes.Best())
	l.address("src", "c6a2", "Source IPv6 Address", e.Source.IP)
	l.add("shost", e.Source.Host)
	l.number("spt", e.Source.Port)
	l.address("dst", "c6a3", "Destination IPv6 Address", e.Destination.IP)
	l.add("dhost", e.Destination.Host)
	l.number("dpt", e.Destination.Port)
	l.add("proto", strings.ToUpper(e.Transport))
	l.add("deviceDirection", map[string]string{"ingress": "0", "egress": "1"}[e.Direction])
	l.add("destinationDnsDomain", e.DNS.Question)
}
