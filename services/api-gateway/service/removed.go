package gateway

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/pkg/removal"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// newRemovals returns the removals: what comes in of an endpoint has the
// generation of its last one, and the streams EVENTS and DEADLETTER are cleared
// of what was removed, and INTAKE, by intake.
func newRemovals(db *store.DB, cfg view.Config, intake func(context.Context, removal.Removal) error) (*removal.Removals, error) {
	cfg.DB = db
	return removal.New(removal.Config{View: cfg, Clear: map[string]func(context.Context, removal.Removal) error{
		stream.Intake:      intake,
		stream.Events:      removal.Stream(cfg.JS, stream.Events, subject.Events),
		stream.DeadLetters: removal.Stream(cfg.JS, stream.DeadLetters, subject.AllDeadLettersOf),
	}})
}

// removed returns the revision of the bucket removed that this gateway acts by.
// Answers to its questions are to obey it.
func (s *Service) removed() uint64 { return s.removals.View().Position() }

// stored tells how much an endpoint has stored.
type stored struct {
	Events      int64 `json:"events"`
	Alerts      int64 `json:"alerts"`
	DeadLetters int64 `json:"dead-letters"`
	Artifacts   int64 `json:"artifacts"`
	Reports     int64 `json:"reports"`
}

// removeStored removes for good what an endpoint, which may be deleted, has
// stored, and answers with how much that was. It is counted before, so of what
// comes at the same time more may be removed. Once the removal is recorded it is
// brought to its end whatever happens.
func (s *Service) removeStored(ctx context.Context, q *call) (result, error) {
	if err := s.remembered(ctx, q.uuid()); err != nil {
		return result{}, err
	}
	before, err := s.countStored(ctx, q.uuid())
	if err != nil {
		return result{}, err
	}
	reply, err := ask[message.RemoveReply](ctx, s, message.RegistryRemove, message.RemoveRequest{UUID: q.uuid(), Operator: q.operator})
	if err != nil {
		return result{}, err
	}
	if err := s.removedEverywhere(ctx, q.uuid(), reply.Revision); err != nil {
		return result{}, fault.New(fault.Unavailable, "the removal is recorded and goes on, but it is not complete yet: %v", err)
	}
	return result{data: before}, nil
}

// removedEverywhere returns when every gateway acts by a removal and the streams
// are cleared. Whoever asks this gateway, or another one, from then on is
// answered by services that obey it.
func (s *Service) removedEverywhere(ctx context.Context, uuid string, revision uint64) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := s.peers.await(ctx); err != nil {
		return err
	}
	failpoint.Hit(failpoint.RemovalBeforeReply)
	if err := s.removals.Cleared(ctx, uuid, revision); err != nil {
		return err
	}
	for _, on := range []string{message.AlertsCleared, message.ArtifactsCleared} {
		if _, err := ask[struct{}](ctx, s, on, message.ClearedRequest{Endpoint: uuid, Revision: revision}); err != nil {
			return err
		}
	}
	return nil
}

// countStored tells how much an endpoint has stored now.
func (s *Service) countStored(ctx context.Context, uuid string) (n stored, err error) {
	on := subject.Logs(subject.PartitionOf(uuid), message.LogsCount)
	lines, err := ask[message.LogsCountReply](ctx, s, on, message.LogsCountRequest{Endpoint: uuid, Removed: s.removed()})
	if err != nil {
		return n, err
	}
	n.Events, n.Alerts, n.Artifacts = lines.Events, lines.Alerts, lines.Artifacts
	report, err := ask[message.ReportReply](ctx, s, message.ReportsGet, message.ReportRequest{UUID: uuid, Removed: s.removed()})
	if err != nil {
		return n, err
	}
	if report.Report != nil {
		n.Reports = 1
	}
	letters, err := s.cfg.Bus.JS.Stream(ctx, stream.DeadLetters)
	var info *jetstream.StreamInfo
	if err == nil {
		info, err = letters.Info(ctx, jetstream.WithSubjectFilter(subject.AllDeadLettersOf(uuid)))
	}
	if err != nil {
		return n, fault.New(fault.Unavailable, "dead letters cannot be counted: %v", err)
	}
	for _, count := range info.State.Subjects {
		n.DeadLetters += int64(count)
	}
	return n, nil
}
