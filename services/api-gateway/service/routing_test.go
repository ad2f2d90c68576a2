package gateway

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

const (
	notFound   = "404 page not found\n"
	forbidden  = "Not Authorized\n"
	someUUID   = "00000000-1111-2222-3333-444444444444"
	otherUUID  = "03E31275-2277-D8E0-BB5F-480FAC7EE4EF"
	malformed  = "03e31275-2277-d8e0-bb5f-480fac7ee4e"
	emptyReply = ""
)

func count(n int) bus.Handler {
	return bus.JSON(func(context.Context, struct{}) (message.RulesCountReply, error) {
		return message.RulesCountReply{Count: n}, nil
	})
}

func TestRoutingAndAuthorization(t *testing.T) {
	r := newRig(t, nil)
	r.handle(message.RulesCount, count(133))
	r.endpoint()
	const stats = `{"data":{"endpoint-count":1,"rule-count":133},"message":"OK","error":""}`
	unknown := func(uuid string) string {
		return `{"data":null,"message":"NOK","error":"Unknown endpoint: ` + uuid + `"}`
	}
	key := map[string]string{"Api-Key": adminKey}
	for _, tc := range []struct {
		name, method, path string
		header             map[string]string
		code               int
		body, location     string
	}{
		{"no key", "GET", "/stats", nil, 403, forbidden, ""},
		{"wrong key", "GET", "/stats", map[string]string{"Api-Key": "nope"}, 403, forbidden, ""},
		{"empty key", "GET", "/stats", map[string]string{"Api-Key": ""}, 403, forbidden, ""},
		{"no default key", "GET", "/stats", map[string]string{"Api-Key": "admin"}, 403, forbidden, ""},
		{"key", "GET", "/stats", key, 200, stats, ""},
		{"lower-case header", "GET", "/stats", map[string]string{"api-key": adminKey}, 200, stats, ""},
		{"modern header", "GET", "/stats", map[string]string{"X-Api-Key": adminKey}, 200, stats, ""},
		{"unknown route", "GET", "/nothing", nil, 404, notFound, ""},
		{"wrong verb", "POST", "/stats", nil, 405, emptyReply, ""},
		{"unknown verb", "BREW", "/stats", nil, 405, emptyReply, ""},
		{"head", "HEAD", "/stats", key, 405, emptyReply, ""},
		{"options", "OPTIONS", "/stats", key, 405, emptyReply, ""},
		{"trailing slash", "GET", "/stats/", key, 404, notFound, ""},
		{"double slash", "GET", "//stats", key, 301, emptyReply, "/stats"},
		{"double slash with a query", "GET", "//rules?name=a%5Bb", key, 301, emptyReply, "/rules?name=a%5Bb"},
		{"dot segments", "GET", "/x/../stats", nil, 301, emptyReply, "/stats"},
		{"escaped dot segments", "GET", "/endpoints/..%2f..%2fstats", nil, 301, emptyReply, "/stats"},
		{"another host is not redirected to", "GET", "//evil.example/%2e%2e//stats/", nil, 301, emptyReply, "/stats/"},
		{"root", "GET", "/", nil, 404, notFound, ""},
		{"post to save", "POST", "/rules/save", nil, 405, emptyReply, ""},
		{"post endpoints", "POST", "/endpoints", key, 405, emptyReply, ""},
		{"malformed uuid", "GET", "/endpoints/zzz", key, 404, notFound, ""},
		{"malformed uuid, wrong verb", "POST", "/endpoints/zzz", key, 404, notFound, ""},
		{"short uuid", "GET", "/endpoints/" + malformed + "/logs", key, 404, notFound, ""},
		{"uuid in braces", "GET", "/endpoints/%7B" + someUUID + "%7D", key, 404, notFound, ""},
		{"unknown uuid", "GET", "/endpoints/" + someUUID, key, 200, unknown(someUUID), ""},
		{"escaped uuid", "GET", "/endpoints/%30" + someUUID[1:], key, 200, unknown(someUUID), ""},
		{"upper-case uuid", "GET", "/endpoints/" + otherUUID, key, 200, unknown(otherUUID), ""},
		{"delete unknown", "DELETE", "/endpoints/" + someUUID, key, 200, unknown(someUUID), ""},
		{"uuid, wrong verb", "POST", "/endpoints/" + someUUID, nil, 405, emptyReply, ""},
		{"reports is no uuid", "DELETE", "/endpoints/reports", key, 405, emptyReply, ""},
		{"logs of unknown", "GET", "/endpoints/" + someUUID + "/logs", key, 200, unknown(someUUID), ""},
		{"release of unknown", "DELETE", "/endpoints/" + someUUID + "/hostname", key, 200, unknown(someUUID), ""},
		{"report of unknown", "GET", "/endpoints/" + someUUID + "/report", key, 200, unknown(someUUID), ""},
		{"malformed query", "GET", "/rules?name=%zz", key, 200, `{"data":null,"message":"NOK","error":"Failed to parse query: invalid URL escape \"%zz\""}`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := r.do(tc.method, r.svc.AdminAddr(), tc.path, nil, tc.header)
			if a.code != tc.code || a.body != tc.body {
				t.Errorf("%d %q, want %d %q", a.code, a.body, tc.code, tc.body)
			}
			if got := a.header.Get("Location"); got != tc.location {
				t.Errorf("Location %q, want %q", got, tc.location)
			}
			if _, set := a.header["Allow"]; set {
				t.Error("Allow is set")
			}
			content, sniff := a.header.Get("Content-Type"), a.header.Get("X-Content-Type-Options")
			switch tc.code {
			case 200:
				if content != contentJSON {
					t.Errorf("Content-Type %q", content)
				}
			case 403, 404:
				if content != contentText || sniff != "nosniff" {
					t.Errorf("Content-Type %q, X-Content-Type-Options %q", content, sniff)
				}
			}
		})
	}
}

func TestAgentAuthorization(t *testing.T) {
	r := newRig(t, nil)
	e, deleted := r.endpoint(), r.endpoint()
	data[message.Endpoint](r, http.MethodDelete, "/endpoints/"+deleted.UUID, "")
	old := func(uuid, key, host string) map[string]string {
		return map[string]string{"UUID": uuid, "Api-Key": key, "Hostname": host}
	}
	modern := func(uuid, key, host string) map[string]string {
		return map[string]string{"X-Endpoint-Uuid": uuid, "X-Api-Key": key, "X-Endpoint-Hostname": host}
	}
	const ok = "TheServerKey"
	for _, tc := range []struct {
		name, method, path string
		header             map[string]string
		code               int
		body               string
	}{
		{"no headers", "GET", "/key", nil, 403, forbidden},
		{"empty headers", "GET", "/key", old("", "", ""), 403, forbidden},
		{"empty modern headers", "GET", "/key", modern("", "", ""), 403, forbidden},
		{"wrong key", "GET", "/key", old(e.UUID, "bad", "WS-01"), 403, forbidden},
		{"empty key", "GET", "/key", old(e.UUID, "", "WS-01"), 403, forbidden},
		{"unknown uuid", "GET", "/key", old(someUUID, e.Key, "WS-01"), 403, forbidden},
		{"upper-case uuid", "GET", "/key", old(strings.ToUpper(e.UUID), e.Key, "WS-01"), 403, forbidden},
		{"deleted endpoint", "GET", "/key", old(deleted.UUID, deleted.Key, "WS-01"), 403, forbidden},
		{"operator's key", "GET", "/key", map[string]string{"Api-Key": adminKey}, 403, forbidden},
		{"not bound yet, no hostname", "GET", "/key", old(e.UUID, e.Key, ""), 200, ok},
		{"first hostname", "GET", "/key", old(e.UUID, e.Key, "WS-01"), 200, ok},
		{"same hostname", "GET", "/key", old(e.UUID, e.Key, "WS-01"), 200, ok},
		{"modern headers", "GET", "/key", modern(e.UUID, e.Key, "WS-01"), 200, ok},
		{"other hostname", "GET", "/key", old(e.UUID, e.Key, "OTHER"), 403, forbidden},
		{"modern, other hostname", "GET", "/key", modern(e.UUID, e.Key, "OTHER"), 403, forbidden},
		{"no hostname once bound", "GET", "/key", old(e.UUID, e.Key, ""), 403, forbidden},
		{"unknown route", "GET", "/nothing", nil, 404, notFound},
		{"admin route", "GET", "/stats", nil, 404, notFound},
		{"wrong verb", "GET", "/logs", nil, 405, emptyReply},
		{"unknown verb", "BREW", "/key", nil, 405, emptyReply},
		{"head", "HEAD", "/key", old(e.UUID, e.Key, "WS-01"), 405, emptyReply},
		{"options", "OPTIONS", "/commands", old(e.UUID, e.Key, "WS-01"), 405, emptyReply},
		{"trailing slash", "GET", "/key/", old(e.UUID, e.Key, "WS-01"), 404, notFound},
		{"double slash", "GET", "//key", nil, 301, emptyReply},
		{"escaped dot segments", "GET", "/container/..%2fkey", nil, 301, emptyReply},
		{"escaped path", "GET", "/%6bey", old(e.UUID, e.Key, "WS-01"), 200, ok},
		{"containers", "GET", "/containers", old(e.UUID, e.Key, "WS-01"), 200, "[]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := r.do(tc.method, r.svc.AgentAddr(), tc.path, nil, tc.header)
			if a.code != tc.code || a.body != tc.body {
				t.Errorf("%d %q, want %d %q", a.code, a.body, tc.code, tc.body)
			}
		})
	}
	if r.registry.binds != 1 {
		t.Errorf("the registry was asked %d times to bind, want once", r.registry.binds)
	}

	t.Run("bound after a restart", func(t *testing.T) {
		r.restart()
		if a := r.do("GET", r.svc.AgentAddr(), "/key", nil, old(e.UUID, e.Key, "OTHER")); a.code != 403 {
			t.Errorf("%d %q, want 403", a.code, a.body)
		}
	})
	t.Run("released", func(t *testing.T) {
		if got := data[message.Endpoint](r, http.MethodDelete, "/endpoints/"+e.UUID+"/hostname", ""); got.UUID != e.UUID || got.Hostname != "" {
			t.Errorf("answer %+v", got)
		}
		if a := r.do("GET", r.svc.AgentAddr(), "/key", nil, old(e.UUID, e.Key, "OTHER")); a.code != 200 {
			t.Errorf("%d %q, want 200", a.code, a.body)
		}
		if a := r.do("GET", r.svc.AgentAddr(), "/key", nil, old(e.UUID, e.Key, "WS-01")); a.code != 403 {
			t.Errorf("%d %q, want 403", a.code, a.body)
		}
	})
}

func TestMatches(t *testing.T) {
	for _, tc := range []struct {
		pattern, path string
		want          bool
	}{
		{"/a", "/a", true}, {"/a", "/a/", false}, {"/a/b", "/a", false}, {"/a", "/a/b", false},
		{"/e/:uuid", "/e/" + someUUID, true}, {"/e/:uuid", "/e/x", false}, {"/e/:uuid/l", "/e/" + someUUID + "/l", true},
		{"/e/:name", "/e/x", true}, {"/e/:name", "/e/", false},
	} {
		if got := matches(tc.pattern, tc.path); got != tc.want {
			t.Errorf("matches(%q, %q) = %v, want %v", tc.pattern, tc.path, got, tc.want)
		}
	}
}
