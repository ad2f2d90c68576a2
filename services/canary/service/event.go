package canary

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

// RuleName is the name of the canary's rule.
const RuleName = "NightjarCanary"

// rule marks the canary's events: no other program writes to this channel. Its
// criticality is the least that counts in a score.
const rule = `{"Name":"` + RuleName + `","Tags":["nightjar"],"Meta":{"EventIDs":[1],"Channels":["Nightjar-Canary/Operational"],"Computers":[],` +
	`"ATTACK":[],"Criticality":1,"Disable":false,"Filter":false},"Matches":["$a: Alarm = 'true'"],"Condition":"$a"}`

// sent is the event of a round.
type sent struct {
	line []byte
	time time.Time
	hash event.Hash
}

// newEvent makes the event of a round. nonce is in no other event.
func (s *Service) newEvent(nonce string) sent {
	at := time.Now().UTC().Truncate(time.Millisecond)
	line := fmt.Appendf(nil, `{"Event":{"EventData":{"Alarm":"true","Nonce":%q},"System":{"Channel":"Nightjar-Canary/Operational","Computer":%q,"EventID":"1","TimeCreated":{"SystemTime":%q}}}}`,
		nonce, s.cfg.Hostname, at.Format(time.RFC3339Nano))
	return sent{line: line, time: at, hash: event.HashOf(line)}
}

// install makes sure that the rule is there.
func (s *Service) install(ctx context.Context) error {
	var list []struct{ Name string }
	if err := s.api.ask(ctx, http.MethodGet, "/rules?name="+url.QueryEscape("^"+RuleName+"$"), "", &list); err != nil {
		return err
	}
	if len(list) > 0 {
		return nil
	}
	return s.api.ask(ctx, http.MethodPost, "/rules", rule, nil)
}

// post sends the event as the endpoint.
func (s *Service) post(ctx context.Context, e sent) error {
	_, _, err := s.api.send(ctx, s.me, http.MethodPost, "/logs", append(e.line, '\n'), http.StatusOK)
	return err
}

// listen subscribes to the alerts of the canary's endpoint, and to no others.
// When it returns nil every alert that is raised from then on comes in.
func (s *Service) listen(ctx context.Context) error {
	if own := subject.Alerts(subject.Low, s.me.UUID); s.sub == nil || s.sub.Subject != own {
		s.unlisten()
		sub, err := s.cfg.Bus.NC.ChanSubscribe(own, s.alerts)
		if err != nil {
			return failed(reasonUnreachable, "subscribe to %s: %w", own, err)
		}
		s.sub = sub
	}
	if err := s.cfg.Bus.Ready(); err != nil {
		return failed(reasonUnreachable, "%w", err)
	}
	if err := s.cfg.Bus.NC.FlushWithContext(ctx); err != nil {
		return failed(unanswered(err), "nats: %w", err)
	}
	return nil
}

func (s *Service) unlisten() {
	if s.sub == nil {
		return
	}
	if err := s.sub.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		s.cfg.Log.Debug("unsubscribe", "error", err)
	}
	s.sub = nil
}

// hear waits for the event's alert on NATS.
func (s *Service) hear(ctx context.Context, e sent) error {
	for {
		var m *nats.Msg
		select {
		case m = <-s.alerts:
		case <-ctx.Done():
			return failed(reasonTimeout, "no alert on %s", s.sub.Subject)
		}
		if m.Header.Get(nats.MsgIdHdr) != message.MsgID(s.me.UUID, message.GenerationOf(m.Header), e.hash) {
			continue // of another round
		}
		a, err := message.ParseAlert(m.Header, m.Data)
		if err != nil {
			return failed(reasonWrong, "alert: %w", err)
		}
		if !slices.Equal(a.Signatures, []string{RuleName}) || a.Origin != message.OriginManager || a.Hostname != s.cfg.Hostname {
			return failed(reasonWrong, "alert with signatures %q by %s, of %s", a.Signatures, a.Origin, a.Hostname)
		}
		return nil
	}
}

// query waits until the admin API shows the event among the alerts, once.
func (s *Service) query(ctx context.Context, e sent, nonce string) error {
	around := url.Values{"start": {e.time.Add(-time.Second).Format(time.RFC3339Nano)}, "stop": {e.time.Add(time.Second).Format(time.RFC3339Nano)}}
	path := "/endpoints/" + s.me.UUID + "/alerts?" + around.Encode()
	return s.poll(ctx, func(ctx context.Context) error {
		var list []json.RawMessage
		if err := s.api.ask(ctx, http.MethodGet, path, "", &list); err != nil {
			return err
		}
		found := slices.DeleteFunc(list, func(a json.RawMessage) bool { return !bytes.Contains(a, []byte(nonce)) })
		switch {
		case len(found) > 1:
			return failed(reasonWrong, "the alert is shown %d times", len(found))
		case len(found) == 0:
			return failed(reasonTimeout, "the alert is not shown among those of its endpoint")
		case !bytes.Contains(found[0], []byte(RuleName)):
			return failed(reasonWrong, "the alert is shown without its signature")
		}
		return nil
	})
}

// score waits until the report of the endpoint reaches to the event and says
// what it must.
func (s *Service) score(ctx context.Context, e sent) error {
	return s.poll(ctx, func(ctx context.Context) error {
		var report *struct {
			Counts map[string]int64 `json:"count-by-signature"`
			Score  int64            `json:"score"`
			Stop   time.Time        `json:"stop-time"`
		}
		if err := s.api.ask(ctx, http.MethodGet, "/endpoints/"+s.me.UUID+"/report", "", &report); err != nil {
			return err
		}
		switch {
		case report == nil || report.Stop.Before(e.time):
			return failed(reasonTimeout, "the report does not count the alert")
		case report.Counts[RuleName] < 1 || report.Score < 1:
			return failed(reasonWrong, "the report says %d alerts of the rule, score %d", report.Counts[RuleName], report.Score)
		}
		return nil
	})
}
