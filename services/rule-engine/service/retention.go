package ruleengine

import (
	"context"
	"slices"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/retention"
)

// keeper returns what keeps ALERTS within its bounds. What this replica has not
// folded is not removed, as it would be raised again. A SIEM that has not come
// to an alert does not hold it, for it may be away for ever; it is counted.
func (s *Service) keeper() (k *retention.Keeper, err error) {
	s.clock, err = retention.NewClock(s.db, s.cfg.Metrics, subsystem, s.cfg.Log, retention.Patience)
	if err != nil {
		return nil, err
	}
	return retention.New(retention.Config{
		JS: s.cfg.Bus.JS, Stream: stream.Alerts, Limits: s.alertLimits(), Clock: s.clock,
		Floor:    func(context.Context) (uint64, error) { return s.raisedFold.Position(), nil },
		Removing: s.countUnread,
		Metrics:  retention.NewMetrics(s.cfg.Metrics, subsystem), Log: s.cfg.Log,
	}), nil
}

// alertLimits are the bounds of the stream ALERTS.
func (s *Service) alertLimits() stream.Limits {
	return stream.Limits{MaxAge: s.cfg.RetentionAlerts, KeepBytes: s.cfg.RetentionAlertBytes, MaxBytes: s.cfg.MaxAlertBytes, Replicas: s.cfg.Replicas}
}

// countUnread counts and logs the alerts that a SIEM has not acknowledged when
// they are removed.
func (s *Service) countUnread(ctx context.Context, seqs []uint64) {
	for _, name := range s.cfg.SIEMs {
		floor, err := retention.AckFloor(s.cfg.Bus.JS, stream.Alerts, name)(ctx)
		if err != nil {
			s.cfg.Log.Warn("not known how many alerts are removed that a SIEM has not acknowledged", "siem", name, "error", err)
			continue
		}
		from, _ := slices.BinarySearch(seqs, floor+1)
		if unread := seqs[from:]; len(unread) > 0 {
			s.metrics.unread.WithLabelValues(name).Add(float64(len(unread)))
			s.cfg.Log.Warn("alerts are removed that a SIEM has not acknowledged", "siem", name, "messages", len(unread), "from", unread[0], "to", unread[len(unread)-1])
		}
	}
}

// dropRaised forgets alerts that retention has removed. Their events, sent
// again, raise them again.
func (s *Service) dropRaised(ctx context.Context, below uint64) error {
	// Those in hand are not folded afterwards.
	err := s.raisedFold.Exclusive(func() error { s.raisedBelow = max(s.raisedBelow, below); return nil })
	if err != nil {
		return err
	}
	return retention.Drop(ctx, s.db, prefixRaised, below, retention.SeqOf)
}
