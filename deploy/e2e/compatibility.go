package e2e

import (
	"fmt"
	"strings"
)

// verdict says how Nightjar answers an exchange that was recorded with WHIDS.
type verdict string

const (
	// same is an answer that agrees in status, in every member of a JSON
	// body and in the whole of a text body.
	same verdict = "same"
	// different is an answer that differs on purpose.
	different verdict = "different"
	// notYet is an answer that differs because something is missing.
	notYet verdict = "not yet"
)

// exchangeName identifies a recorded exchange: the letter of its section, its
// title, and which of several with that title it is, from 1.
type exchangeName struct {
	section, title string
	nth            int
}

// String returns the name as the document shows it.
func (n exchangeName) String() string {
	if n.nth > 1 {
		return fmt.Sprintf("%s. %s (%d)", n.section, n.title, n.nth)
	}
	return n.section + ". " + n.title
}

// exchange is a line of the table of verdicts.
type exchange struct {
	title   string
	verdict verdict
	// why is the reason for a difference, in one sentence.
	why string
	// shows is a part of Nightjar's answer (status, a space, body) by which
	// an intended difference is told from any other.
	shows string
}

// section is a part of the recording.
type section struct {
	letter, title string
	exchanges     []exchange
}

// names returns the name of each exchange of a section.
func (s section) names() []exchangeName {
	seen := map[string]int{}
	names := make([]exchangeName, 0, len(s.exchanges))
	for _, x := range s.exchanges {
		seen[x.title]++
		names = append(names, exchangeName{s.letter, x.title, seen[x.title]})
	}
	return names
}

const compatibilityHead = `# Compatibility with WHIDS

<!-- Generated from the table that the test of the recorded exchanges runs: go test ./deploy/e2e -run TestCompatibilityDocument -update -->

Exchanges between a WHIDS manager (commit 3345019, gene v1), its clients and its agents were recorded, and are replayed
in order against a fresh Nightjar that has taken over the WHIDS manager's configuration with ` + "`--import-whids`" + `. Each
answer is compared: the status, the headers that mean something, every member of a JSON body, the whole of a text body.
Not compared is what cannot be the same: times of the exchange itself, generated identifiers and keys (one recorded
value must always stand for the same new one), the order of sets, the number of rules that were there at the start, and
the content type of the admin API, which WHIDS leaves to chance and Nightjar sets to JSON. The recorded events are
moved in time, so that they are as old as they were, and put on a channel that no rule covers: WHIDS looks at no event
itself, while Nightjar's rules look at every one and would mark some that no agent marked.

What WHIDS's state had become by a behaviour that Nightjar does not share is brought about by other means before the
exchange: replaced commands are cancelled, rules that were put back by hand in WHIDS's folder are put back by requests.

The exchanges are named as in the recording; a number in brackets tells those of one name apart.
`

// compatibilityDocument returns docs/compatibility.md.
func compatibilityDocument() string {
	var b strings.Builder
	b.WriteString(compatibilityHead)
	count := map[verdict]int{}
	for _, s := range verdicts {
		for _, x := range s.exchanges {
			count[x.verdict]++
		}
	}
	fmt.Fprintf(&b, "\n%d exchanges: %d the same, %d different on purpose", count[same]+count[different]+count[notYet],
		count[same], count[different])
	if n := count[notYet]; n > 0 {
		fmt.Fprintf(&b, ", %d not yet", n)
	}
	b.WriteString(".\n")
	for _, s := range verdicts {
		fmt.Fprintf(&b, "\n## %s. %s\n\n| Exchange | Verdict | Why |\n|---|---|---|\n", s.letter, s.title)
		for i, name := range s.names() {
			x := s.exchanges[i]
			title, v, why := x.title, x.verdict, x.why
			if name.nth > 1 {
				title = fmt.Sprintf("%s (%d)", title, name.nth)
			}
			fmt.Fprintf(&b, "| %s | %s | %s |\n", cell(title), v, cell(why))
		}
	}
	return b.String()
}

func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "*", `\*`, "_", `\_`).Replace(s)
}
