package gateway

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// maxHostname is the longest hostname in bytes that the registry binds.
const maxHostname = 1024

const (
	// maxBinding is how many hostnames the registry is asked to bind at once.
	maxBinding = 64
	// bindTimeout bounds how long a first request waits until its endpoint is
	// bound, when many others are to be.
	bindTimeout = time.Minute
)

// agentRoutes is the route table of the agent API. As with the admin API,
// each topic has a function of its own that returns its routes; a new one is
// added here and nowhere else. s.agent makes a handler that is called for
// authorised agents only.
func (s *Service) agentRoutes() []route {
	return slices.Concat(
		[]route{{http.MethodGet, "/key", s.agent(s.getServerKey)}},
		s.agentRuleRoutes(),
		s.agentContainerRoutes(),
		[]route{{http.MethodPost, "/logs", s.agent(s.postLogs)}},
		s.agentCommandRoutes(),
		s.agentArtifactRoutes(),
	)
}

// agent is an endpoint's agent as it presents itself.
type agent struct {
	uuid, key, hostname string
	// ip is the address that the agent states, if it is a valid one,
	// otherwise that of its connection.
	ip string
	// modern agents speak the headers of WHIDS v1.8 and read rules in v2
	// form.
	modern bool
}

// agentOf reads who a request says it comes from.
func agentOf(r *http.Request) agent {
	h := r.Header
	if uuid := h.Get("X-Endpoint-Uuid"); uuid != "" {
		a := agent{uuid: uuid, key: h.Get("X-Api-Key"), hostname: h.Get("X-Endpoint-Hostname"), ip: address(h.Get("X-Endpoint-Ip")), modern: true}
		if a.ip == "" {
			a.ip = peer(r)
		}
		return a
	}
	return agent{uuid: h.Get("Uuid"), key: h.Get("Api-Key"), hostname: h.Get("Hostname"), ip: peer(r)}
}

// address returns a valid address without zone, or nothing.
func address(s string) string {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return ""
	}
	return a.WithZone("").Unmap().String()
}

// agentHandler answers a request of an authorised agent.
type agentHandler func(c *gin.Context, a agent)

func (s *Service) agent(h agentHandler) gin.HandlerFunc {
	return func(c *gin.Context) {
		a := agentOf(c.Request)
		allowed, err := s.authorizeAgent(c.Request.Context(), a)
		switch {
		case err != nil:
			plainError(c.Writer, err)
		case !allowed:
			plain(c.Writer, http.StatusForbidden, "Not Authorized")
		default:
			s.cfg.Bus.Trace.Endpoint(c.Request.Context(), a.uuid)
			s.seen.touch(a.uuid, a.ip, time.Now().UTC())
			h(c, a)
		}
	}
}

// authorizeAgent tells whether an agent is who it says. The first hostname
// that an endpoint presents is bound to it. A gateway that may have missed the
// end of an endpoint tells of none.
func (s *Service) authorizeAgent(ctx context.Context, a agent) (bool, error) {
	if err := s.peers.current(); err != nil {
		return false, err
	}
	cred, ok := s.credentials.check(a.uuid, a.key)
	switch {
	case !ok:
		return false, nil
	case cred.Hostname == a.hostname:
		return true, nil
	case cred.Hostname != "" || len(a.hostname) > maxHostname:
		return false, nil
	}
	return s.bind(ctx, a)
}

// bind binds an endpoint to its hostname and waits until this gateway has
// learned of it. Many requests of an endpoint that come at once make one. Where
// many endpoints come for the first time, they wait for each other: each binding
// takes a sync in JetStream.
func (s *Service) bind(ctx context.Context, a agent) (bool, error) {
	done := s.binds.DoChan(a.uuid, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), bindTimeout)
		defer cancel()
		if err := s.binding.Acquire(ctx, 1); err != nil {
			return "", err
		}
		defer s.binding.Release(1)
		asking, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		reply, err := ask[message.EndpointReply](asking, s, message.RegistryBind, message.EndpointRequest{UUID: a.uuid, Hostname: a.hostname})
		if err != nil {
			return "", err
		}
		if err := s.credentials.view.Wait(asking, reply.Revision); err != nil {
			return "", fault.New(fault.Unavailable, "hostname is bound, but this gateway has not learned of it yet: %v", err)
		}
		return reply.Endpoint.Hostname, nil
	})
	select {
	case <-ctx.Done():
		return false, fault.New(fault.Unavailable, "the client is gone")
	case r := <-done:
		switch {
		case fault.Is(r.Err, fault.NotFound), fault.Is(r.Err, fault.Conflict), fault.Is(r.Err, fault.Invalid):
			return false, nil
		case r.Err != nil:
			s.cfg.Log.Warn("hostname not bound", "endpoint", a.uuid, "error", r.Err)
			return false, fault.New(fault.Unavailable, "the hostname cannot be bound at the moment")
		}
		return r.Val.(string) == a.hostname, nil
	}
}

func (s *Service) getServerKey(c *gin.Context, _ agent) {
	writeText(c.Writer, []byte(s.operators.key()))
}

// writeText answers with bytes as plain text.
func writeText(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Type", contentText)
	// A client that is gone needs no answer.
	_, _ = w.Write(body)
}
