package ruleengine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/detect"
	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/rules"
)

// Bounds of requests and answers.
const (
	// maxPattern bounds the regular expression of a listing.
	maxPattern = 4 << 10
	// pageBytes is the size of a page of a listing; a larger rule makes a
	// page of its own.
	pageBytes = 1 << 20
	// textBytes is how much of the text for agents one answer carries, before
	// compression.
	textBytes = 4 << 20
	// maxConflicts is how often a change is tried against those of other
	// replicas.
	maxConflicts = 20
)

// loadError begins the texts of all errors about rules that a client sent.
const loadError = "Error loading rule: "

// handlers returns what is answered, by subject. RulesReload is answered with a
// message.RulesCountReply, everything else as its request says.
func (s *Service) handlers() map[string]bus.Handler {
	return map[string]bus.Handler{
		message.RulesAdd:    bus.JSON(s.add),
		message.RulesDelete: bus.JSON(s.delete),
		message.RulesReload: bus.JSON(s.reload),
		message.RulesSave:   bus.JSON(s.save),
		message.RulesList:   bus.JSON(s.list),
		message.RulesCount:  bus.JSON(s.count),
		message.RulesAgent:  bus.JSON(s.agent),

		message.AlertsCleared: bus.JSON(s.cleared),
	}
}

// containerHandlers returns what is answered to changes of containers.
func (s *Service) containerHandlers() map[string]bus.Handler {
	return map[string]bus.Handler{
		message.ContainersPut:    bus.JSON(whileServing(s, s.putContainer)),
		message.ContainersDelete: bus.JSON(whileServing(s, s.deleteContainer)),
	}
}

// change replaces the rule set by what f makes of it, and returns when the
// result is in force here. f may be called several times, each time with the
// newest record; it tells whether it changed anything.
func (s *Service) change(ctx context.Context, actor string, f func(rec *record) (changed bool, err error)) (revision uint64, err error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	for attempt := range maxConflicts {
		var value []byte
		entry, err := s.kv.Get(ctx, message.RulesKey)
		switch {
		case err == nil:
			value, revision = entry.Value(), entry.Revision()
		case errors.Is(err, jetstream.ErrKeyNotFound):
			revision = 0
		default:
			return 0, fault.New(fault.Unavailable, "read the rule set: %v", err)
		}
		rec, err := decodeRecord(value)
		if err != nil {
			return 0, err
		}
		changed, err := f(&rec)
		if err != nil {
			return 0, err
		}
		if !changed {
			return revision, s.inForce(ctx, revision)
		}
		rec.Actor, rec.Time = actor, time.Now().UTC()
		if value, err = rec.encode(); err != nil {
			return 0, err
		}
		failpoint.Hit(failpoint.RulesBeforeWrite)
		if revision == 0 {
			revision, err = s.kv.Create(ctx, message.RulesKey, value)
		} else {
			revision, err = s.kv.Update(ctx, message.RulesKey, value, revision)
		}
		if conflict(err) {
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(attempt) * 5 * time.Millisecond):
			}
			continue
		}
		if err != nil {
			return 0, fault.New(fault.Unavailable, "write the rule set: %v", err)
		}
		failpoint.Hit(failpoint.RulesAfterWrite)
		return revision, s.inForce(ctx, revision)
	}
	return 0, fault.New(fault.Unavailable, "the rule set is being changed by others")
}

// inForce waits until the set of a revision, or a later one, is in force here.
func (s *Service) inForce(ctx context.Context, revision uint64) error {
	if err := s.rulesFold.Wait(ctx, revision); err != nil {
		return fault.New(fault.Unavailable, "the rule set is stored and not in force yet: %v", err)
	}
	return nil
}

// newest returns the rule set in force once it holds everything that was
// written before the call, by whatever replica.
func (s *Service) newest(ctx context.Context) (*snapshot, error) {
	status, err := s.kv.Status(ctx)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "look at the rule set: %v", err)
	}
	if b, ok := status.(*jetstream.KeyValueBucketStatus); ok {
		if err := s.rulesFold.Wait(ctx, b.StreamInfo().State.LastSeq); err != nil {
			return nil, fault.New(fault.Unavailable, "%v", err)
		}
	}
	return s.rules.current.Load(), nil
}

func (s *Service) add(ctx context.Context, q message.RulesAddRequest) (message.RulesChangeReply, error) {
	var reply message.RulesChangeReply
	body, err := message.Decompress(nil, q.Body)
	if err != nil {
		return reply, fault.New(fault.Invalid, loadError+"%v", err)
	}
	list, err := rules.Parse(body, nil)
	if err != nil {
		return reply, invalid(err)
	}
	if _, _, err := detect.Compile(list, s.rules.knownContainers()); err != nil {
		return reply, invalid(err)
	}
	for _, r := range list {
		for _, w := range r.Warnings {
			s.cfg.Log.Warn("rule is odd", "rule", r.Name, "warning", w)
		}
	}
	reply.Revision, err = s.change(ctx, q.Actor, func(rec *record) (bool, error) {
		reply.Staged, err = rec.add(list, q.Update)
		if err != nil {
			return false, invalid(err)
		}
		return true, nil
	})
	return reply, err
}

// invalid makes the error of rules that a client sent.
func invalid(err error) error {
	kind := fault.Invalid
	switch {
	case errors.Is(err, rules.ErrTooLarge):
		kind = fault.TooLarge
	case errors.Is(err, rules.ErrExists):
		kind = fault.Conflict
	}
	return fault.New(kind, "%s%v", loadError, err)
}

func (s *Service) delete(ctx context.Context, q message.RulesDeleteRequest) (reply message.RulesChangeReply, err error) {
	reply.Staged = true
	reply.Revision, err = s.change(ctx, q.Actor, func(rec *record) (bool, error) {
		exists, changed := rec.remove(q.Name)
		if !exists {
			return false, fault.New(fault.NotFound, "No such rule %q, doing nothing", q.Name)
		}
		return changed, nil
	})
	return reply, err
}

// actorRequest is what RulesReload and RulesSave may carry.
type actorRequest struct {
	Actor string `json:"actor,omitempty"`
}

func (s *Service) reload(ctx context.Context, q actorRequest) (reply message.RulesCountReply, err error) {
	_, err = s.change(ctx, q.Actor, func(rec *record) (bool, error) {
		if !rec.isStaged() {
			return false, nil
		}
		rec.activate()
		return true, nil
	})
	if err != nil {
		return reply, err
	}
	failpoint.Hit(failpoint.ReloadBeforeReply)
	cur := s.rules.current.Load()
	return message.RulesCountReply{Count: cur.set.Count(), Revision: cur.revision}, nil
}

// save has nothing to do: what was accepted is on stable storage.
func (s *Service) save(ctx context.Context, _ actorRequest) (reply message.RulesChangeReply, err error) {
	cur, err := s.newest(ctx)
	if err != nil {
		return reply, err
	}
	return message.RulesChangeReply{Staged: cur.record.isStaged(), Revision: cur.revision}, nil
}

func (s *Service) count(ctx context.Context, _ struct{}) (reply message.RulesCountReply, err error) {
	cur, err := s.newest(ctx)
	if err != nil {
		return reply, err
	}
	return message.RulesCountReply{Count: cur.set.Count(), Revision: cur.revision}, nil
}

func (s *Service) list(ctx context.Context, q message.RulesListRequest) (message.RulesListReply, error) {
	reply := message.RulesListReply{Rules: []json.RawMessage{}}
	if len(q.Name) > maxPattern {
		return reply, fault.New(fault.Invalid, "Invalid regular expression in name: longer than %d bytes", maxPattern)
	}
	pattern, err := regexp.Compile(q.Name)
	if err != nil {
		return reply, fault.New(fault.Invalid, "Invalid regular expression %q in name: %v", q.Name, err)
	}
	cur, err := s.newest(ctx)
	if err != nil {
		return reply, err
	}
	first := 0
	if q.After != "" {
		i, found := slices.BinarySearchFunc(cur.list, q.After, func(r *rules.Rule, name string) int { return strings.Compare(r.Name, name) })
		if first = i; found {
			first++
		}
	}
	size, last := 0, ""
	for _, r := range cur.list[first:] {
		if !pattern.MatchString(r.Name) {
			continue
		}
		raw := r.Raw()
		if len(reply.Rules) > 0 && size+len(raw) > pageBytes {
			reply.Next = last
			break
		}
		reply.Rules = append(reply.Rules, raw)
		size, last = size+len(raw), r.Name
	}
	return reply, nil
}

func (s *Service) agent(ctx context.Context, q message.RulesAgentRequest) (reply message.RulesAgentReply, err error) {
	cur, err := s.newest(ctx)
	if err != nil {
		return reply, err
	}
	text := cur.v1
	if q.V2 {
		text = cur.v2
	}
	t := text()
	if q.Offset < 0 || q.Offset > len(t.text) {
		return reply, fault.New(fault.Invalid, "offset %d is outside of the %d bytes of the rules", q.Offset, len(t.text))
	}
	part := t.text[q.Offset:]
	part = part[:min(len(part), textBytes)]
	return message.RulesAgentReply{Text: message.Compress(nil, part), SHA256: t.sha256, Size: len(t.text), Revision: cur.revision}, nil
}

// importRules takes over what is new or changed in the folders of rules since
// they were last imported.
func (s *Service) importRules(ctx context.Context) error {
	if s.imported == nil {
		return nil
	}
	var sum importSummary
	_, err := s.change(ctx, "rules-dir", func(rec *record) (bool, error) {
		sum = s.imported.mergeInto(rec)
		if len(rec.Live) > rules.MaxRules {
			return false, fmt.Errorf("rules-dir %s: %w: more than %d rules", strings.Join(s.imported.dirs, ", "), rules.ErrTooLarge, rules.MaxRules)
		}
		return sum.added+sum.updated > 0, nil
	})
	if err != nil {
		return err
	}
	s.cfg.Log.Info("rules folder imported", "dirs", s.imported.dirs, "added", sum.added, "updated", sum.updated, "unchanged", sum.unchanged)
	if len(sum.gone) > 0 {
		s.cfg.Log.Info("rules imported before are no longer in the folder and stay", "dirs", s.imported.dirs, "rules", sum.gone)
	}
	return nil
}
