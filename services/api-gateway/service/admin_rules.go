package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// maxRules bounds the body of POST /rules, inflated.
const maxRules = 64 << 20

// What is answered to changes of the rules, misspelt as clients know it.
const (
	rulesAdded   = "Rules added successfully, please save rules for persistence"
	rulesUpdated = "Rules updated succesfully, engine needs to be reloaded"
	rulesSaved   = "Rules saved succesfully on disk"
)

func (s *Service) ruleRoutes() []route {
	return []route{
		{http.MethodGet, "/stats", s.read(s.getStats)},
		{http.MethodGet, "/rules", s.read(s.listRules)},
		{http.MethodPost, "/rules", s.change("rules.add", s.addRules)},
		{http.MethodDelete, "/rules", s.change("rules.delete", s.deleteRule)},
		{http.MethodGet, "/rules/save", s.change("rules.save", s.saveRules)},
		{http.MethodGet, "/rules/reload", s.change("rules.reload", s.reloadRules)},
	}
}

type stats struct {
	Endpoints int `json:"endpoint-count"`
	Rules     int `json:"rule-count"`
}

func (s *Service) getStats(ctx context.Context, _ *call) (result, error) {
	count, err := ask[message.RulesCountReply](ctx, s, message.RulesCount, struct{}{})
	if err != nil {
		return result{}, err
	}
	return result{data: stats{Endpoints: s.credentials.count(), Rules: count.Count}}, nil
}

func (s *Service) listRules(_ context.Context, q *call) (result, error) {
	req := message.RulesListRequest{Name: q.query.Get("name")}
	return result{list: array(func(ctx context.Context) ([]byte, bool, error) {
		reply, err := ask[message.RulesListReply](ctx, s, message.RulesList, req)
		if err != nil {
			return nil, false, err
		}
		req.After = reply.Next
		var b bytes.Buffer
		for i, rule := range reply.Rules {
			if i > 0 {
				b.WriteByte(',')
			}
			json.HTMLEscape(&b, rule)
		}
		return b.Bytes(), reply.Next != "", nil
	})}, nil
}

func (s *Service) addRules(ctx context.Context, q *call) (result, error) {
	update, err := q.flag("update")
	if err != nil {
		return result{}, err
	}
	body, err := readBody(q.http, maxRules)
	if err != nil {
		return result{}, err
	}
	req := message.RulesAddRequest{Body: message.Compress(nil, body), Update: update, Actor: q.operator}
	if len(req.Body) > stream.MaxMessage/2 {
		return result{}, fault.New(fault.TooLarge, "too many rules for one request")
	}
	reply, err := ask[message.RulesChangeReply](ctx, s, message.RulesAdd, req)
	if err != nil {
		return result{}, err
	}
	if reply.Staged {
		return result{message: rulesUpdated}, nil
	}
	s.rules.await(ctx, reply.Revision)
	return result{message: rulesAdded}, nil
}

func (s *Service) deleteRule(ctx context.Context, q *call) (result, error) {
	q.target = q.query.Get("name")
	_, err := ask[message.RulesChangeReply](ctx, s, message.RulesDelete, message.RulesDeleteRequest{Name: q.target, Actor: q.operator})
	return result{message: rulesUpdated}, err
}

// actorRequest says who asks, where nothing else is to be said.
type actorRequest struct {
	Actor string `json:"actor"`
}

func (s *Service) saveRules(ctx context.Context, q *call) (result, error) {
	_, err := ask[message.RulesChangeReply](ctx, s, message.RulesSave, actorRequest{q.operator})
	return result{message: rulesSaved}, err
}

func (s *Service) reloadRules(ctx context.Context, q *call) (result, error) {
	reply, err := ask[message.RulesCountReply](ctx, s, message.RulesReload, actorRequest{q.operator})
	if err != nil {
		return result{}, err
	}
	s.rules.await(ctx, reply.Revision)
	return s.getStats(ctx, q)
}

// ask asks another service and waits for its answer, requestTimeout at most.
func ask[A any](ctx context.Context, s *Service, subject string, q any) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return bus.Call[A](ctx, s.cfg.Bus, subject, q)
}
