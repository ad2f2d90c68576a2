package ops

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// maxState bounds what is read of an answer, in bytes.
const maxState = 64 << 10

// Health asks the process that listens on an ops address for its readiness. It
// returns nil when the process is ready, and otherwise an error that says why
// not. An address without a host, or with one that stands for every address of
// the machine, is asked for on the loopback interface.
func Health(ctx context.Context, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("ops-addr %s: %w", addr, err)
	}
	switch ip := net.ParseIP(host); {
	case host == "" || ip.Equal(net.IPv4zero):
		host = "127.0.0.1"
	case ip.Equal(net.IPv6unspecified):
		host = "::1"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return fmt.Errorf("ops-addr %s: %w", addr, err)
	}
	// The process is asked itself, never through a proxy.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	defer res.Body.Close()
	state, err := io.ReadAll(io.LimitReader(res.Body, maxState))
	if err != nil {
		return fmt.Errorf("no whole answer from %s: %w", addr, err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s", strings.TrimSpace(string(state)))
	}
	return nil
}
