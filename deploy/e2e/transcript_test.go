//go:build recorded

package e2e

import (
	"fmt"
	"net/http"
	"net/textproto"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// recordedMessage is a recorded request or response.
type recordedMessage struct {
	// line is the request line or the status line.
	line   string
	header http.Header
	// body is what the receiver reads, after any gzip is undone.
	body string
	// packed is whether the body went over the wire as a gzip stream.
	packed bool
	// cut is the length of the whole body when only its beginning is
	// recorded, else 0.
	cut int
}

// roundTrip is a recorded request and its response.
type roundTrip struct {
	ask recordedMessage
	// answer is nil when the connection was closed without one.
	answer *recordedMessage
	// keyChecks is how often the client asked for the server key before.
	keyChecks int
}

// recordedExchange is what one heading of the transcript holds.
type recordedExchange struct {
	exchangeName
	trips []roundTrip
}

var (
	sectionHeading = regexp.MustCompile(`^## ([A-Z])\. (.*)$`)
	gzipNote       = regexp.MustCompile(`^<gzip stream of \d+ bytes, which decompresses to (\d+) bytes:>\n`)
	tookNote       = regexp.MustCompile(`\n\(took [\d.]+ s\)$`)
	cutNote        = regexp.MustCompile(`\n…<cut, (\d+) bytes in all>$`)
)

const (
	noResponse = "-> **no response**"
	keyCheck   = "(GET /key -> 200, as above)"
	fence      = "```"
)

// readTranscript returns the exchanges of the sections up to last, in order.
// Headings without recorded bytes are left out.
func readTranscript(t *testing.T, last string) []recordedExchange {
	t.Helper()
	base := os.Getenv("NIGHTJAR_TESTDATA")
	if base == "" {
		t.Fatal("NIGHTJAR_TESTDATA is not set: it names the folder of recorded data")
	}
	text, err := os.ReadFile(filepath.Join(base, "spec", "whids-transcripts.md"))
	if err != nil {
		t.Fatal(err)
	}
	list, err := parseTranscript(string(text), last)
	if err != nil {
		t.Fatalf("transcript: %v", err)
	}
	return list
}

func parseTranscript(text, last string) ([]recordedExchange, error) {
	var (
		list    []recordedExchange
		section string
		asked   *recordedMessage
		checks  int
		seen    = map[string]int{}
		lines   = strings.Split(text, "\n")
	)
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		switch heading := sectionHeading.FindStringSubmatch(line); {
		case heading != nil && heading[1] > last:
			return recordedOnly(list), nil
		case heading != nil:
			section = heading[1]
		case strings.HasPrefix(line, "### "):
			if asked != nil {
				return nil, fmt.Errorf("line %d: the request above has no response", i+1)
			}
			title := strings.TrimPrefix(line, "### ")
			key := section + title
			seen[key]++
			list = append(list, recordedExchange{exchangeName: exchangeName{section, title, seen[key]}})
			checks = 0
		case line == keyCheck:
			checks++
		case strings.HasPrefix(line, noResponse):
			if asked == nil {
				return nil, fmt.Errorf("line %d: no response to nothing", i+1)
			}
			x := &list[len(list)-1]
			x.trips, asked, checks = append(x.trips, roundTrip{*asked, nil, checks}), nil, 0
		case strings.HasPrefix(line, fence):
			end := slices.Index(lines[i+1:], fence)
			if end < 0 || len(list) == 0 {
				return nil, fmt.Errorf("line %d: a block that has no end or no heading", i+1)
			}
			m, err := parseMessage(strings.Join(lines[i+1:i+1+end], "\n"))
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
			i += end + 1
			if asked == nil {
				asked = m
				continue
			}
			x := &list[len(list)-1]
			x.trips, asked, checks = append(x.trips, roundTrip{*asked, m, checks}), nil, 0
		}
	}
	return nil, fmt.Errorf("no section after %s", last)
}

func recordedOnly(list []recordedExchange) []recordedExchange {
	return slices.DeleteFunc(list, func(x recordedExchange) bool { return len(x.trips) == 0 })
}

// parseMessage reads a block. The length of a request's body must be the
// recorded one, so a block that was read wrongly cannot go unnoticed.
func parseMessage(block string) (*recordedMessage, error) {
	head, body, _ := strings.Cut(tookNote.ReplaceAllString(block, ""), "\n\n")
	first, rest, _ := strings.Cut(head, "\n")
	m := &recordedMessage{line: first, header: http.Header{}, body: body}
	for line := range strings.SplitSeq(rest, "\n") {
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ": ")
		if !ok {
			return nil, fmt.Errorf("header %q", line)
		}
		m.header.Add(textproto.CanonicalMIMEHeaderKey(name), value)
	}
	length := -1
	if n, err := strconv.Atoi(m.header.Get("Content-Length")); err == nil {
		length = n
	}
	if note := gzipNote.FindStringSubmatch(m.body); note != nil {
		m.packed, m.body = true, m.body[len(note[0]):]
		length, _ = strconv.Atoi(note[1])
	}
	if note := cutNote.FindStringSubmatch(m.body); note != nil {
		m.cut, _ = strconv.Atoi(note[1])
		m.body = m.body[:len(m.body)-len(note[0])]
		return m, nil
	}
	if length == len(m.body)+1 {
		m.body += "\n"
	}
	// Some answers were shortened, such as those with a path of the recording
	// machine; requests never.
	if length >= 0 && length != len(m.body) && !strings.HasPrefix(m.line, "HTTP/") {
		return nil, fmt.Errorf("%s: a body of %d bytes where %d are recorded", m.line, len(m.body), length)
	}
	return m, nil
}
