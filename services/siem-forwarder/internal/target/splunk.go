package target

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
)

// ackEvery is how often Splunk is asked whether it has indexed a request.
const ackEvery = time.Second

// splunk speaks the HTTP Event Collector. Its 200 means that Splunk has the
// events in memory. Where the token has indexer acknowledgement switched on,
// taken means that Splunk has confirmed it.
type splunk struct {
	w       *webhook
	channel string
	json    bool
}

func newSplunk(w *webhook) *splunk {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return &splunk{w: w, channel: fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]), json: w.o.Format.JSON()}
}

func (s *splunk) body(records []Record) ([]byte, error) {
	type envelope struct {
		Time       json.Number       `json:"time"`
		Host       string            `json:"host"`
		Source     string            `json:"source"`
		Sourcetype string            `json:"sourcetype"`
		Event      any               `json:"event"`
		Fields     map[string]string `json:"fields"`
	}
	var b bytes.Buffer
	for i := range records {
		r := &records[i]
		milli := r.Time.UnixMilli()
		e := envelope{
			Time: json.Number(strconv.FormatFloat(float64(milli)/1000, 'f', 3, 64)), Host: r.Host, Source: "nightjar",
			Sourcetype: "nightjar:" + string(s.w.o.Format), Event: string(r.Body),
			Fields: map[string]string{"nightjar_id": r.ID, "nightjar_severity": r.Severity},
		}
		if s.json {
			e.Event = json.RawMessage(r.Body)
		}
		line, err := event.Marshal(e)
		if err != nil {
			return nil, err
		}
		b.Write(line)
		b.WriteByte('\n')
	}
	return b.Bytes(), nil
}

func (s *splunk) request(r *http.Request) {
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Splunk-Request-Channel", s.channel)
}

// Codes of answers with status 400 that blame an event, not the request
// (Splunk, "Troubleshoot HTTP Event Collector": possible error codes).
const (
	codeInvalidFormat   = 6
	codeEventMissing    = 12
	codeEventBlank      = 13
	codeBadIndexedField = 15
)

func (s *splunk) answer(ctx context.Context, status int, body []byte, n int) []error {
	var answer struct {
		Code  int
		AckID *int64 `json:"ackId"`
	}
	err := json.Unmarshal(body, &answer)
	switch {
	case status == http.StatusOK && err != nil:
		return all(n, fmt.Errorf("answer of the event collector: %w", err))
	case status == http.StatusOK && answer.AckID != nil:
		return all(n, s.indexed(ctx, *answer.AckID))
	case status == http.StatusOK:
		return all(n, nil)
	case status == http.StatusBadRequest:
		switch answer.Code {
		case codeInvalidFormat, codeEventMissing, codeEventBlank, codeBadIndexedField:
			return nil // halves find the event
		}
		return all(n, &Later{Err: fmt.Errorf("400: %s", excerpt(body))})
	}
	return nil
}

// indexed waits until Splunk confirms a request. One that it does not confirm
// in time is sent again, which may index it twice.
func (s *splunk) indexed(ctx context.Context, id int64) error {
	u, err := url.Parse(s.w.url)
	if err != nil {
		return err
	}
	u.Path = "/services/collector/ack"
	u.RawQuery = url.Values{"channel": {s.channel}}.Encode()
	question := fmt.Appendf(nil, `{"acks":[%d]}`, id)
	for end := time.Now().Add(s.w.o.Timeout); time.Now().Before(end); {
		resp, body, err := s.w.post(ctx, u.String(), question)
		if err != nil {
			return err
		}
		var answer struct{ Acks map[string]bool }
		if err := json.Unmarshal(body, &answer); err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("ask for acknowledgement: %s: %s", resp.Status, excerpt(body))
		}
		if answer.Acks[strconv.FormatInt(id, 10)] {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(ackEvery):
		}
	}
	return errors.New("the events were not acknowledged in time")
}
