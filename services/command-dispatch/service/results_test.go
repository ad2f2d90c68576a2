package dispatch

import (
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	"github.com/nightjar-edr/nightjar/pkg/testlog"
)

// lines returns the lines of a log that hold a text.
func lines(log *testlog.Log, text string) (found []string) {
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

// TestIgnoredResults has results that come too early, too late, again or from
// another endpoint change nothing, and the log say why.
func TestIgnoredResults(t *testing.T) {
	srv := natstest.Start(t)
	clk := newClock()
	log := &testlog.Log{}
	s := start(t, srv, setup{clock: clk, log: slog.New(slog.NewTextHandler(log, nil))})
	c := client{t: t, b: srv.Bus(t, access.Gateway)}
	endpoint, other := newUUID(), newUUID()
	done, expired, waiting := c.queue(endpoint, message.CommandQueueRequest{}).UUID, c.queue(endpoint, message.CommandQueueRequest{}).UUID, c.queue(endpoint, message.CommandQueueRequest{}).UUID
	result := func(from, id, stdout string) message.CommandOutcome {
		t.Helper()
		return c.result(message.CommandResultRequest{Endpoint: from, UUID: id, Stdout: &message.CommandBlob{Data: []byte(stdout), Size: int64(len(stdout))}})
	}
	c.next(endpoint)
	if got := result(endpoint, done, "right"); got != message.ResultAccepted {
		t.Fatalf("result was %s", got)
	}
	c.next(endpoint)
	clk.advance(time.Hour)
	if err := s.expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		from, id string
		want     message.CommandOutcome
	}{
		{endpoint, done, message.ResultRepeated},
		{endpoint, expired, message.ResultLate},
		{endpoint, waiting, message.ResultEarly},
		{other, done, message.ResultForeign},
		{endpoint, newUUID(), message.ResultForeign},
	} {
		before := c.list(endpoint, 0)
		if got := result(tc.from, tc.id, "wrong"); got != tc.want {
			t.Errorf("result is %s, want %s", got, tc.want)
		}
		want := fmt.Sprintf("endpoint=%s command=%s reason=%s\n", tc.from, tc.id, tc.want)
		if lines := lines(log, "result ignored"); len(lines) == 0 || !strings.HasSuffix(lines[len(lines)-1], want) {
			t.Errorf("the log has %q, want the last to end in %q", lines, want)
		}
		if after := c.list(endpoint, 0); !reflect.DeepEqual(after, before) {
			t.Errorf("a result that is %s made %+v of %+v", tc.want, after, before)
		}
	}
	if got := c.get(endpoint, done); got.Stdout == nil || string(got.Stdout.Data) != "right" {
		t.Errorf("the accepted result became %+v", got.Stdout)
	}
}
