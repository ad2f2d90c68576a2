package history

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

const (
	// patience is how long requests are repeated without success.
	patience = 5 * time.Minute
	// firstPause is how long is waited before the first repetition when the
	// manager does not say, maxPause at most in any case.
	firstPause = time.Second
	maxPause   = time.Minute
	// answerTimeout is how long the manager may take to answer once it has
	// the whole request.
	answerTimeout = 5 * time.Minute
	// maxAnswer bounds what is read of an answer that says no more than
	// whether it worked.
	maxAnswer = 64 << 10
)

// Answers to a file that repeating does not change.
var (
	errConflict = errors.New("the manager has another file of that name")
	errRefused  = errors.New("refused")
)

// api is the admin API of a running manager.
type api struct {
	base, key string
	http      *http.Client
	// pause waits, or returns the context's error.
	pause func(context.Context, time.Duration) error
	say   func(format string, args ...any)
}

// newAPI returns the API at a URL, of which scheme and host count. trusted, if
// not nil, are the certificates to trust in place of the system's.
func newAPI(at *url.URL, key string, trusted []*x509.Certificate) *api {
	return &api{base: at.Scheme + "://" + at.Host, key: key, pause: lifecycle.Sleep, http: &http.Client{
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: trust(trusted, at.Hostname()),
			ResponseHeaderTimeout: answerTimeout, TLSHandshakeTimeout: 30 * time.Second},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// trust accepts what the trusted certificates have signed for the host, a name
// or an address, and the trusted certificates themselves whatever the host: that
// of a WHIDS manager often names none.
func trust(trusted []*x509.Certificate, host string) *tls.Config {
	if trusted == nil {
		return &tls.Config{MinVersion: tls.VersionTLS12}
	}
	roots := x509.NewCertPool()
	for _, c := range trusted {
		roots.AddCert(c)
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection verifies
		VerifyConnection: func(s tls.ConnectionState) error {
			leaf := s.PeerCertificates[0]
			if slices.ContainsFunc(trusted, leaf.Equal) {
				return nil
			}
			opts := x509.VerifyOptions{Roots: roots, DNSName: host, Intermediates: x509.NewCertPool()}
			for _, c := range s.PeerCertificates[1:] {
				opts.Intermediates.AddCert(c)
			}
			_, err := leaf.Verify(opts)
			return err
		},
	}
}

// do sends one request with the operator's key.
func (a *api) do(ctx context.Context, method, path string, body io.Reader, gzipped bool) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Api-Key", a.key)
	if gzipped {
		req.Header.Set("Content-Encoding", "gzip")
	}
	return a.http.Do(req)
}

// post sends a body until the manager has stored it. body makes it anew for
// each attempt.
func (a *api) post(ctx context.Context, path string, gzipped bool, body func() (io.ReadCloser, error)) error {
	var waited time.Duration
	next := firstPause
	for {
		again, err := a.attempt(ctx, path, gzipped, body)
		if err == nil || ctx.Err() != nil || again < 0 {
			return errors.Join(err, ctx.Err())
		}
		if again == 0 {
			again, next = next, min(2*next, maxPause)
		}
		if waited += again; waited > patience {
			return fmt.Errorf("the manager has stored nothing for %v: %w", patience, err)
		}
		a.say("waiting %v: %v", again, err)
		if err := a.pause(ctx, again); err != nil {
			return err
		}
	}
}

// attempt sends a body once. again is how long to wait before the next
// attempt, 0 where the manager has not said, negative where it is no use.
func (a *api) attempt(ctx context.Context, path string, gzipped bool, body func() (io.ReadCloser, error)) (again time.Duration, err error) {
	b, err := body()
	if err != nil {
		return -1, err
	}
	defer b.Close()
	resp, err := a.do(ctx, http.MethodPost, path, b, gzipped)
	if err != nil {
		var reading *sourceError
		if errors.As(err, &reading) {
			return -1, reading
		}
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, err
	}
	said := strings.TrimSpace(string(text))
	switch resp.StatusCode {
	case http.StatusOK:
		var answer struct{ Message, Error string }
		if err := json.Unmarshal(text, &answer); err != nil {
			return -1, fmt.Errorf("%s does not answer as a manager's admin API", a.base)
		}
		if answer.Message == "NOK" {
			return -1, errors.New(answer.Error)
		}
		return 0, nil
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return retryAfter(resp), errors.New(said)
	case http.StatusConflict:
		return -1, errConflict
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		return -1, fmt.Errorf("%w: %s", errRefused, said)
	}
	return -1, fmt.Errorf("%s: %s", resp.Status, said)
}

func retryAfter(resp *http.Response) time.Duration {
	s, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || s < 0 {
		return 0
	}
	return min(time.Duration(s)*time.Second, maxPause)
}

// list calls each with every element of a route's data.
func list[T any](ctx context.Context, a *api, path string, each func(T)) error {
	resp, err := a.do(ctx, http.MethodGet, path, nil, false)
	if err != nil {
		return fmt.Errorf("%w (is the manager running, and --url its admin API?)", err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusForbidden:
		return errors.New("the manager does not know the operator's key: give --admin-key")
	default:
		return fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	if err := elements(json.NewDecoder(resp.Body), each); err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	return nil
}

// elements reads an envelope whose data is an array, element by element.
func elements[T any](d *json.Decoder, each func(T)) error {
	for _, want := range []any{json.Delim('{'), "data"} {
		if t, err := d.Token(); err != nil {
			return err
		} else if t != want {
			return errors.New("not an answer of a manager's admin API")
		}
	}
	t, err := d.Token()
	if err != nil {
		return err
	}
	for t == json.Delim('[') && d.More() {
		var v T
		if err := d.Decode(&v); err != nil {
			return err
		}
		each(v)
	}
	if t == json.Delim('[') {
		if _, err := d.Token(); err != nil {
			return err
		}
	}
	var failure string
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return err
		}
		var value string
		if err := d.Decode(&value); err != nil {
			return err
		}
		if name == "error" {
			failure = value
		}
	}
	if _, err := d.Token(); err != nil { // an answer that breaks off has no end
		return err
	}
	if failure != "" {
		return errors.New(failure)
	}
	return nil
}
