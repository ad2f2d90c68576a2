package gateway

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
)

// requestTimeout is how long another service may take to answer.
const requestTimeout = 20 * time.Second

// adminRoutes is the route table of the admin API. Each topic has a function
// of its own that returns its routes; a new one is added here and nowhere
// else. s.read makes a handler of what only looks, s.change of what changes
// something: the latter leaves an audit record under the given action.
func (s *Service) adminRoutes() []route {
	return slices.Concat(
		s.ruleRoutes(),
		s.endpointRoutes(),
		s.logRoutes(),
		s.reportRoutes(),
		s.commandRoutes(),
		s.artifactRoutes(),
		s.historyRoutes(),
		s.containerRoutes(),
	)
}

// call is one authorised request of the admin API.
type call struct {
	http *http.Request
	gin  *gin.Context
	// operator is the identifier of who asks.
	operator string
	query    url.Values
	// target is what the audit record says was changed; a handler may set it.
	target string
}

// uuid returns the path parameter of that name, which has the form of a UUID.
func (q *call) uuid() string { return q.gin.Param("uuid") }

// adminHandler answers a request of the admin API.
type adminHandler func(ctx context.Context, q *call) (result, error)

// read makes a handler of a route that changes nothing.
func (s *Service) read(h adminHandler) gin.HandlerFunc { return s.admin("", h) }

// change makes a handler of a route that changes something. What was asked
// for, by whom, and what came of it is on record before the answer goes out.
func (s *Service) change(action string, h adminHandler) gin.HandlerFunc { return s.admin(action, h) }

func (s *Service) admin(action string, h adminHandler) gin.HandlerFunc {
	return func(c *gin.Context) {
		q, ok := s.authorizeOperator(c)
		if !ok {
			plain(c.Writer, http.StatusForbidden, "Not Authorized")
			return
		}
		ctx := c.Request.Context()
		res, err := s.handle(ctx, q, h)
		if body := (*bodyError)(nil); errors.As(err, &body) {
			plainError(c.Writer, body.error)
			return
		}
		if action != "" {
			failpoint.Hit(failpoint.AdminBeforeAudit)
			s.audit(q, action, err)
			failpoint.Hit(failpoint.AdminBeforeReply)
		}
		s.respond(ctx, c.Writer, res, err)
	}
}

// handle parses the query and calls the handler.
func (s *Service) handle(ctx context.Context, q *call, h adminHandler) (result, error) {
	var err error
	if q.query, err = url.ParseQuery(q.http.URL.RawQuery); err != nil {
		return result{}, fault.New(fault.Invalid, "Failed to parse query: %v", err)
	}
	return h(ctx, q)
}

// authorizeOperator identifies the operator by the header Api-Key or
// X-Api-Key.
func (s *Service) authorizeOperator(c *gin.Context) (*call, bool) {
	key := c.Request.Header.Get("Api-Key")
	if key == "" {
		key = c.Request.Header.Get("X-Api-Key")
	}
	operator, ok := s.operators.identify(key)
	return &call{http: c.Request, gin: c, operator: operator, target: c.Param("uuid")}, ok
}

// audit puts a change on record. If the stream does not take the record it
// stands in the log: the change has been made and is answered.
func (s *Service) audit(q *call, action string, failure error) {
	a := message.Audit{Time: time.Now().UTC(), Operator: q.operator, Remote: peer(q.http), Action: action, Target: q.target, Outcome: message.AuditOK}
	if failure != nil {
		a.Outcome = fault.From(failure).Message
	}
	// The record is written even when the client is gone.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(q.http.Context()), requestTimeout)
	defer cancel()
	m, err := a.Msg()
	if err == nil {
		_, err = s.cfg.Bus.JS.PublishMsg(ctx, m)
	}
	if err != nil {
		s.metrics.unaudit.Inc()
		s.cfg.Log.Error("audit record not stored", "error", err, "operator", a.Operator, "remote", a.Remote,
			"action", a.Action, "target", a.Target, "outcome", a.Outcome)
	}
}

// flag reads a boolean parameter, false when it is not given.
func (q *call) flag(name string) (bool, error) {
	if !q.query.Has(name) {
		return false, nil
	}
	v, err := strconv.ParseBool(q.query.Get(name))
	if err != nil {
		return false, fault.New(fault.Invalid, "Failed to parse %s parameter, it must be a boolean", name)
	}
	return v, nil
}

// number reads a parameter that is a number and not negative, or gives def.
func (q *call) number(name string, def int) (int, error) {
	if !q.query.Has(name) {
		return def, nil
	}
	n, err := strconv.Atoi(q.query.Get(name))
	if err != nil || n < 0 {
		return 0, fault.New(fault.Invalid, "Failed to parse %s parameter, it must be a number that is not negative", name)
	}
	return n, nil
}
