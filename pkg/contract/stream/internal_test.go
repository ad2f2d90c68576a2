package stream

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
)

// The owner of a stream outlasts the moment in which the servers of a cluster
// have not heard of each other; any other refusal it is told at once.
func TestPlacementAwaitsServers(t *testing.T) {
	other := &jetstream.APIError{ErrorCode: 10074, Description: "replicas > 1 not supported in non-clustered mode"}
	for _, tc := range []struct {
		name    string
		answers []error
		want    error
	}{
		{"placed at once", []error{nil}, nil},
		{"servers come", []error{&jetstream.APIError{ErrorCode: noSuitablePeers}, &jetstream.APIError{ErrorCode: noSuitablePeers}, nil}, nil},
		{"no cluster", []error{other, nil}, other},
	} {
		asked := 0
		_, err := placed(t.Context(), func() (int, error) { asked++; return 0, tc.answers[asked-1] })
		if !errors.Is(err, tc.want) || tc.want == nil && asked != len(tc.answers) {
			t.Errorf("%s: %v after %d questions", tc.name, err, asked)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := placed(ctx, func() (int, error) { return 0, &jetstream.APIError{ErrorCode: noSuitablePeers} }); err == nil {
		t.Error("no error when the context ends")
	}
}

// A server that is slow is asked again; what it refuses, it refuses once, and
// nobody waits longer than its caller.
func TestSlowServerIsAskedAgain(t *testing.T) {
	refused := errors.New("refused")
	for _, tc := range []struct {
		name    string
		answers []error
		want    error
	}{
		{"in time", []error{nil}, nil},
		{"late twice", []error{context.DeadlineExceeded, fmt.Errorf("update: %w", context.DeadlineExceeded), nil}, nil},
		{"late, then refused", []error{context.DeadlineExceeded, refused}, refused},
	} {
		asked := 0
		_, err := patiently(t.Context(), func() (int, error) { asked++; return 0, tc.answers[asked-1] })
		if !errors.Is(err, tc.want) || asked != len(tc.answers) {
			t.Errorf("%s: %v after %d questions", tc.name, err, asked)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	_, err := patiently(ctx, func() (int, error) {
		asked++
		cancel()
		return 0, context.DeadlineExceeded
	})
	if !errors.Is(err, context.DeadlineExceeded) || asked != 1 {
		t.Errorf("%v after %d questions, when the context ends", err, asked)
	}
}

// What nats-server does not bring back after a kill is asked of it only where
// there is one copy, docs/adr/0020.
func TestReplicatedStreamsAreNeitherCompressedNorTakeBatches(t *testing.T) {
	for _, name := range []string{Events, Alerts} {
		for replicas, alone := range map[int]bool{0: true, 1: true, 3: false, 5: false} {
			cfg, err := definition(name, Limits{Replicas: replicas})
			if err != nil {
				t.Fatal(err)
			}
			if cfg.AllowAtomicPublish != alone || (cfg.Compression == jetstream.S2Compression) != alone {
				t.Errorf("%s with %d replicas: batches %t, compression %s", name, replicas, cfg.AllowAtomicPublish, cfg.Compression)
			}
		}
	}
}
