package ingest

import (
	"context"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// compareRetention says in the log where lines are to be kept for longer than
// their stream keeps them: a partition that moves, like a store that is built
// again, has only what the stream still holds.
func (s *Service) compareRetention(ctx context.Context) {
	for _, k := range []struct {
		stream string
		keep   time.Duration
	}{{stream.Events, s.cfg.RetentionEvents}, {stream.Alerts, s.cfg.RetentionAlerts}} {
		st, err := stream.Await(ctx, s.cfg.Bus.JS, k.stream)
		if err != nil {
			return // at the end of ctx, or the views say it
		}
		if age := st.CachedInfo().Config.MaxAge; age > 0 && (k.keep <= 0 || k.keep > age) {
			s.cfg.Log.Warn("lines are to be kept for longer than their stream keeps them; those that the stream has no more are lost when a partition moves",
				"stream", k.stream, "retention", k.keep, "stream_retention", age)
		}
	}
}
