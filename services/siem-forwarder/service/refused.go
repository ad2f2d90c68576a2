package forwarder

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/target"
)

// refusedAlert is a line of the file of refused alerts.
type refusedAlert struct {
	ID      string      `json:"id"`
	Subject string      `json:"subject"`
	Reason  string      `json:"reason"`
	Header  nats.Header `json:"header"`
	// Alert is the message's body, a string where it is no JSON.
	Alert any `json:"alert"`
}

// refuse puts those of the alerts in hand that are refused on stable storage.
func (s *Service) refuse(ctx context.Context, inHand []*held) error {
	var list []*held
	for _, h := range inHand {
		if h.refused != nil {
			list = append(list, h)
		}
	}
	if len(list) == 0 {
		return nil
	}
	if s.refused == nil {
		if err := os.MkdirAll(s.cfg.DataDir, 0o700); err != nil {
			return fmt.Errorf("folder of refused alerts: %w", err)
		}
		file, err := target.Open(target.Options{Output: s.cfg.refusedFile()})
		if err != nil {
			return fmt.Errorf("file of refused alerts: %w", err)
		}
		s.refused = file
	}
	records := make([]target.Record, len(list))
	for i, h := range list {
		line := refusedAlert{ID: h.record.ID, Subject: h.msg.Subject(), Reason: h.refused.Reason, Header: h.msg.Headers(), Alert: string(h.msg.Data())}
		if json.Valid(h.msg.Data()) {
			line.Alert = json.RawMessage(h.msg.Data())
		}
		body, err := event.Marshal(line)
		if err != nil {
			return fmt.Errorf("refused alert: %w", err)
		}
		records[i].Body = body
	}
	for _, err := range s.refused.Send(ctx, records) {
		if err != nil {
			return fmt.Errorf("file of refused alerts: %w", err)
		}
	}
	for _, h := range list {
		s.metrics.refused.Inc()
		s.cfg.Log.Error("the target refused an alert; it is in the file of refused alerts", "id", h.record.ID, "reason", h.refused.Reason, "file", s.cfg.refusedFile())
	}
	return nil
}
