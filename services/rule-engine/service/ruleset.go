package ruleengine

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/detect"
	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/rules"
)

// snapshot is a rule set in force. It does not change.
type snapshot struct {
	// revision is that of the record in the bucket, 0 before the first.
	revision uint64
	record   record
	// list are the live rules, sorted by name.
	list []*rules.Rule
	set  *detect.Set
	// failed counts rules that panicked and were set aside.
	failed *atomic.Int64
	// v1 and v2 make the text for agents when it is first asked for.
	v1, v2 func() agentText
}

// agentText is the rule set as agents fetch it.
type agentText struct {
	text   []byte
	sha256 string
}

// ruleSet holds the snapshot in force and replaces it.
type ruleSet struct {
	log     *slog.Logger
	current atomic.Pointer[snapshot]

	// mu serialises building; it is never held while a worker waits.
	mu         sync.Mutex
	containers map[string]detect.Lines
	// err is why the newest record is not in force.
	err error
}

func newRuleSet(log *slog.Logger) (*ruleSet, error) {
	s := &ruleSet{log: log}
	return s, s.apply(0, record{})
}

// apply puts a record into force. When it does not compile the snapshot before
// it stays in force, and Err says why.
func (s *ruleSet) apply(revision uint64, rec record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.build(revision, rec)
}

// refuse notes that the newest record cannot be read.
func (s *ruleSet) refuse(revision uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = fmt.Errorf("rule set of revision %d: %w", revision, err)
	s.log.Error("rule set not in force", "revision", revision, "error", err)
}

// setContainers replaces the containers and compiles the rules with them.
func (s *ruleSet) setContainers(containers map[string]detect.Lines) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers = containers
	cur := s.current.Load()
	return s.build(cur.revision, cur.record)
}

// knownContainers returns the containers that rules can refer to now.
func (s *ruleSet) knownContainers() map[string]detect.Lines {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.containers
}

// Err returns why the newest record is not in force, nil when it is.
func (s *ruleSet) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *ruleSet) build(revision uint64, rec record) error {
	next, err := s.compile(revision, rec)
	if err != nil {
		s.err = fmt.Errorf("rule set of revision %d: %w", revision, err)
		s.log.Error("rule set not in force", "revision", revision, "error", err)
		return s.err
	}
	failpoint.Hit(failpoint.SwapBefore)
	before := s.current.Swap(next)
	failpoint.Hit(failpoint.SwapAfter)
	s.err = nil
	s.report(before, next)
	return nil
}

func (s *ruleSet) compile(revision uint64, rec record) (*snapshot, error) {
	list, err := s.parse(rec)
	if err != nil {
		return nil, err
	}
	failed := &atomic.Int64{}
	set, _, err := detect.Compile(list, s.containers, detect.WithPanicHandler(func(rule string, value any) {
		failed.Add(1)
		s.log.Error("rule panicked and is set aside", "rule", rule, "panic", fmt.Sprint(value))
	}))
	if err != nil {
		return nil, err
	}
	n := &snapshot{revision: revision, record: rec, list: list, set: set, failed: failed}
	n.v1 = sync.OnceValue(func() agentText { return s.agentText(n, rules.FormV1) })
	n.v2 = sync.OnceValue(func() agentText { return s.agentText(n, rules.FormV2) })
	return n, nil
}

// parse reads the live rules, and takes those over that have not changed.
func (s *ruleSet) parse(rec record) ([]*rules.Rule, error) {
	known := map[string]*rules.Rule{}
	if cur := s.current.Load(); cur != nil {
		for _, r := range cur.list {
			known[r.Name] = r
		}
	}
	list := make([]*rules.Rule, 0, len(rec.Live))
	for _, stored := range rec.Live {
		if r := known[stored.Name]; r != nil && r.Text() == string(stored.Text) {
			list = append(list, r)
			continue
		}
		parsed, err := rules.Parse(stored.Text, nil)
		if err != nil {
			return nil, fmt.Errorf("stored rule %q: %w", stored.Name, err)
		}
		list = append(list, parsed...)
	}
	slices.SortFunc(list, func(a, b *rules.Rule) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// report logs what a new snapshot brings.
func (s *ruleSet) report(before, now *snapshot) {
	if before == nil {
		return
	}
	waited := map[string]bool{}
	for _, w := range before.set.Waiting() {
		waited[w.Rule] = true
	}
	for _, w := range now.set.Waiting() {
		if !waited[w.Rule] {
			s.log.Warn("rule waits for a container", "rule", w.Rule, "containers", w.Containers)
		}
	}
	if before.revision != now.revision {
		s.log.Info("rule set in force", "revision", now.revision, "rules", now.set.Count(), "waiting", len(now.set.Waiting()), "actor", now.record.Actor)
	}
}

// agentText makes the rules as agents of one form get them: one a line, sorted
// by name, without the disabled ones.
func (s *ruleSet) agentText(n *snapshot, form rules.Form) agentText {
	var (
		b     bytes.Buffer
		wider []string
	)
	for _, r := range n.list {
		if r.Disabled {
			continue
		}
		text, exact := r.TextAs(form)
		if !exact {
			wider = append(wider, r.Name)
		}
		b.WriteString(text)
		b.WriteByte('\n')
	}
	if len(wider) > 0 {
		s.log.Warn("rules select more events on agents than here, for their form cannot say it", "form", form.String(), "rules", wider)
	}
	sum := sha256.Sum256(b.Bytes())
	return agentText{text: b.Bytes(), sha256: hex.EncodeToString(sum[:])}
}
