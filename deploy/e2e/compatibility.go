package e2e

import (
	"fmt"
	"strconv"
	"strings"
)

// recordedUUID is the endpoint that the recorded manager was configured with.
const recordedUUID = "03e31275-2277-d8e0-bb5f-480fac7ee4ef"

// verdict says how Nightjar answers an exchange that was recorded with WHIDS.
type verdict string

const (
	// same is an answer that agrees in status, in every member of a JSON
	// body and in the whole of a text body.
	same verdict = "same"
	// different is an answer that differs on purpose.
	different verdict = "different"
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
	// want is what Nightjar answers where that is an intended difference.
	want answers
	// marked is what Nightjar answers when its own rules mark the events,
	// nil where that is all the same.
	marked *answers
}

// answers describes a whole answer. It is compared as a recorded one is, and
// written as if of the time of the recording.
type answers struct {
	// status is 0 for 200.
	status int
	// One of these gives the body: the body itself, the N of the recorded
	// events that are the data, an exchange whose recorded answer is taken
	// (as in "H. report (2)"), or nothing: the exchange's own recorded answer.
	body, events, like string
	// part is the path of the member of like that is the data, empty for all.
	part string
	// set changes members of that: the path of each and its value in JSON. A
	// name that begins with < is a new member before the others.
	set []string
}

// okay is the envelope around data.
func okay(data string) answers {
	return answers{body: `{"data":` + data + `,"message":"OK","error":""}`}
}

// said is the envelope of an action.
func said(message string) answers {
	return answers{body: `{"data":null,"message":"` + message + `","error":""}`}
}

// refused is the envelope of an error.
func refused(text string) answers {
	return answers{body: `{"data":null,"message":"NOK","error":` + strconv.Quote(text) + `}`}
}

// plainly is an answer in plain text.
func plainly(status int, text string) answers { return answers{status: status, body: text + "\n"} }

// markedWhy is the reason for all differences that marked describes.
const markedWhy = "The manager's own rules look at every event, and mark this one, too."

// recordedVerdict is the verdict on an exchange replayed as it was recorded,
// and the reason for it.
func (x exchange) recordedVerdict() (verdict, string) {
	if x.marked != nil && x.verdict == same {
		return different, markedWhy
	}
	return x.verdict, x.why
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
moved in time, so that they are as old as they were. Where an answer differs on purpose, the whole of what Nightjar
answers is compared just as strictly with what it should be.

WHIDS looks at no event itself, while Nightjar's rules look at every one, and one of them (HeurSpawnShell) marks the
recorded events beside what an agent marked. All exchanges are therefore replayed twice: as recorded, which is what the
table shows, and with the events on a channel that no rule covers, where that reason for a difference is gone.

What WHIDS's state had become by a behaviour that Nightjar does not share is brought about by other means before the
exchange: replaced commands are cancelled, rules that were put back by hand in WHIDS's folder are put back by requests.
The one request that nothing ever answers is sent with a wait-timeout of one second, so that it ends before the default.
The one range around the present is asked for with half an hour instead of five minutes, so that the events are in it
however long the replay takes.

The exchanges are named as in the recording; a number in brackets tells those of one name apart.
`

// compatibilityDocument returns docs/compatibility.md.
func compatibilityDocument() string {
	var b strings.Builder
	b.WriteString(compatibilityHead)
	count := map[verdict]int{}
	for _, s := range verdicts {
		for _, x := range s.exchanges {
			v, _ := x.recordedVerdict()
			count[v]++
		}
	}
	fmt.Fprintf(&b, "\n%d exchanges: %d the same, %d different on purpose.\n", count[same]+count[different], count[same], count[different])
	for _, s := range verdicts {
		fmt.Fprintf(&b, "\n## %s. %s\n\n| Exchange | Verdict | Why |\n|---|---|---|\n", s.letter, s.title)
		for i, name := range s.names() {
			x := s.exchanges[i]
			title := x.title
			v, why := x.recordedVerdict()
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
