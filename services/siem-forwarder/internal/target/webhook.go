package target

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	// maxAnswer bounds what is read of an answer.
	maxAnswer = 32 << 20
	// maxWait bounds how long a target may ask to wait.
	maxWait = 10 * time.Minute
)

// protocol is what differs between HTTP endpoints.
type protocol interface {
	// body makes one request's body of records.
	body(records []Record) ([]byte, error)
	// request completes the request.
	request(r *http.Request)
	// answer reads the answer to a request of n records: their results, or
	// nil where the status says it all.
	answer(ctx context.Context, status int, body []byte, n int) []error
}

// webhook posts records to an HTTP endpoint. A request whose status is 200 to
// 299 is taken unless its answer says otherwise. Of those whose status is 400,
// 413 or 422, halves are tried until a single record remains, which is
// refused. Everything else is sent again.
type webhook struct {
	url    string
	client *http.Client
	o      Options
	scheme string
	proto  protocol
}

func newWebhook(u *url.URL, config *tls.Config, o Options) (*webhook, error) {
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
	}
	w := &webhook{url: u.String(), o: o, scheme: "Bearer", client: &http.Client{
		Transport: t, Timeout: o.Timeout,
		// A redirected POST becomes a GET, and its token goes elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if o.TokenFile != "" {
		if _, err := w.authorization(); err != nil {
			return nil, err
		}
		if host := net.ParseIP(u.Hostname()); u.Scheme == "http" && !host.IsLoopback() && u.Hostname() != "localhost" {
			return nil, fmt.Errorf("output %q: a token is sent over https only", o.Output)
		}
	}
	switch o.Webhook {
	case Plain:
		w.proto = plain{json: o.Format.JSON()}
	case Splunk:
		w.scheme, w.proto = "Splunk", newSplunk(w)
	case Elastic:
		if !o.Format.JSON() {
			return nil, errors.New("format cef is no JSON, which Elasticsearch takes alone: use ecs")
		}
		if o.Index == "" {
			return nil, errors.New("index: Elasticsearch needs the name of an index or a data stream")
		}
		w.url = u.JoinPath("_bulk").String()
		w.scheme, w.proto = "ApiKey", elastic{index: o.Index}
	default:
		return nil, fmt.Errorf("webhook %q: want %s, %s or %s", o.Webhook, Splunk, Elastic, Plain)
	}
	return w, nil
}

// Send posts all records in one request, or in several where the endpoint
// refuses some.
func (w *webhook) Send(ctx context.Context, records []Record) []error {
	body, err := w.proto.body(records)
	if err != nil {
		return all(len(records), err)
	}
	resp, answer, err := w.post(ctx, w.url, body)
	if err != nil {
		return all(len(records), err)
	}
	if results := w.proto.answer(ctx, resp.StatusCode, answer, len(records)); results != nil {
		return results
	}
	reason := fmt.Sprintf("%s: %s", resp.Status, excerpt(answer))
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		if len(records) == 1 {
			return []error{&Refused{Reason: reason}}
		}
		half := len(records) / 2
		return append(w.Send(ctx, records[:half]), w.Send(ctx, records[half:])...)
	}
	return all(len(records), &Later{After: retryAfter(resp.Header), Err: errors.New(reason)})
}

// post makes a request and reads its answer.
func (w *webhook) post(ctx context.Context, address string, body []byte) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("User-Agent", "nightjar-siem-forwarder")
	if w.o.TokenFile != "" {
		value, err := w.authorization()
		if err != nil {
			return nil, nil, err
		}
		req.Header.Set("Authorization", value)
	}
	w.proto.request(req)
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, nil, fmt.Errorf("read the answer: %w", err)
	}
	return resp, answer, nil
}

// authorization is the header's value: what the token file holds, behind the
// endpoint's scheme unless it names one itself.
func (w *webhook) authorization() (string, error) {
	text, err := os.ReadFile(w.o.TokenFile)
	if err != nil {
		return "", fmt.Errorf("token-file: %w", err)
	}
	token := strings.TrimSpace(string(text))
	switch {
	case token == "" || strings.ContainsAny(token, "\r\n"):
		return "", fmt.Errorf("token-file %s: want one line", w.o.TokenFile)
	case strings.Contains(token, " "):
		return token, nil
	}
	return w.scheme + " " + token, nil
}

// Close ends idle connections.
func (w *webhook) Close() error {
	w.client.CloseIdleConnections()
	return nil
}

// retryAfter reads the header Retry-After, in seconds or as a date.
func retryAfter(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	d := time.Duration(0)
	if n, err := strconv.Atoi(value); err == nil {
		d = time.Duration(min(n, int(maxWait/time.Second))) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		d = time.Until(at)
	}
	return max(0, min(d, maxWait))
}

// excerpt is the beginning of an answer, for the log.
func excerpt(answer []byte) string {
	return strings.ToValidUTF8(string(answer[:min(len(answer), 300)]), "")
}

// plain posts lines.
type plain struct{ json bool }

func (p plain) body(records []Record) ([]byte, error) { return lines(records), nil }

func (p plain) request(r *http.Request) {
	r.Header.Set("Content-Type", "text/plain; charset=utf-8")
	if p.json {
		r.Header.Set("Content-Type", "application/x-ndjson")
	}
}

func (p plain) answer(_ context.Context, status int, _ []byte, n int) []error {
	if status/100 == 2 {
		return all(n, nil)
	}
	return nil
}
