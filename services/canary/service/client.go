package canary

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/nightjar-edr/nightjar/pkg/tracing"
)

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 4 << 20

// failure is why a step has failed: a reason for the metric, and an error that
// says it in full.
type failure struct {
	reason string
	err    error
}

// Error implements error.
func (f *failure) Error() string { return f.err.Error() }

// Unwrap returns the error that the failure tells of.
func (f *failure) Unwrap() error { return f.err }

func failed(reason, format string, a ...any) error { return &failure{reason, fmt.Errorf(format, a...)} }

// client asks the two APIs.
type client struct {
	admin, agent string
	key, keyFile string
	hostname     string
	http         *http.Client
}

func newClient(cfg *Config) (*client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("api-ca: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("api-ca %s: no certificate in it", cfg.CAFile)
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	return &client{
		admin: strings.TrimSuffix(cfg.AdminURL, "/"), agent: strings.TrimSuffix(cfg.AgentURL, "/"),
		key: cfg.AdminKey, keyFile: cfg.AdminKeyFile, hostname: cfg.Hostname,
		http: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}, nil
}

// close ends connections that are kept open.
func (c *client) close() { c.http.CloseIdleConnections() }

// operator returns the operator's key.
func (c *client) operator() (string, error) {
	if c.key != "" {
		return c.key, nil
	}
	text, err := os.ReadFile(c.keyFile)
	if err != nil {
		return "", failed(reasonLocal, "key of the operator: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// ask asks the admin API as the operator and decodes the data of the answer.
func (c *client) ask(ctx context.Context, method, path, body string, into any) error {
	key, err := c.operator()
	if err != nil {
		return err
	}
	what := method + " " + path
	_, text, err := c.do(ctx, what, method, c.admin+path, body, http.Header{"Api-Key": {key}}, http.StatusOK)
	if err != nil {
		return err
	}
	var answer struct {
		Data  json.RawMessage `json:"data"`
		Error string          `json:"error"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return failed(reasonWrong, "%s: answer: %w", what, err)
	}
	if answer.Error != "" {
		return failed(reasonRefused, "%s: %s", what, answer.Error)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(answer.Data, into); err != nil {
		return failed(reasonWrong, "%s: data of the answer: %w", what, err)
	}
	return nil
}

// send asks the agent API as an endpoint. Any status but the wanted ones is an
// error.
func (c *client) send(ctx context.Context, e identity, method, path string, body []byte, want ...int) (int, []byte, error) {
	h := http.Header{"Uuid": {e.UUID}, "Api-Key": {e.Key}, "Hostname": {c.hostname}}
	return c.do(ctx, method+" "+path, method, c.agent+path, string(body), h, want...)
}

// do makes a request. what names it in errors.
func (c *client) do(ctx context.Context, what, method, url, body string, header http.Header, want ...int) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, failed(reasonLocal, "%s: %w", what, err)
	}
	req.Header = header
	if parent := tracing.Parent(ctx); parent != "" {
		req.Header.Set(tracing.Header, parent) // for gateways that trust it
	}
	res, err := c.http.Do(req)
	if err != nil {
		return 0, nil, failed(unanswered(err), "%s: %w", what, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return 0, nil, failed(unanswered(err), "%s: answer: %w", what, err)
	}
	for _, status := range want {
		if res.StatusCode == status {
			return status, text, nil
		}
	}
	return 0, nil, failed(reasonRefused, "%s: %s: %s", what, res.Status, bytes.TrimSpace(text[:min(len(text), 200)]))
}

// unanswered returns the reason for which no answer has come.
func unanswered(err error) string {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return reasonTimeout
	}
	return reasonUnreachable
}
