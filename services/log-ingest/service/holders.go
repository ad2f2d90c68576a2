package ingest

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

const (
	// sayEvery is how often a replica says what it holds.
	sayEvery = time.Second
	// heardFor is how long what another replica said counts.
	heardFor = 5 * time.Second
)

// holders knows which partitions other replicas hold, and tells them which
// this one does.
type holders struct {
	bus *bus.Bus
	log *slog.Logger
	// alone tells that there are no others.
	alone bool
	// name is that of the store, so that nothing which this replica said
	// before it was started again is taken for another's word.
	name string

	// said and saidAt are what was said last; only say uses them.
	said   partitionSet
	saidAt time.Time

	mu sync.Mutex
	// heard is when another replica last said that it holds a partition.
	heard [subject.Partitions]time.Time
}

func newHolders(b *bus.Bus, log *slog.Logger, name string, alone bool) *holders {
	return &holders{bus: b, log: log, name: name, alone: alone}
}

// listen hears what others say until stop is called.
func (h *holders) listen() (stop func(), err error) {
	if h.alone {
		return func() {}, nil
	}
	sub, err := h.bus.NC.Subscribe(message.LogsHeld, h.hear)
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", message.LogsHeld, err)
	}
	return func() {
		if err := sub.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
			h.log.Warn("unsubscribe", "subject", message.LogsHeld, "error", err)
		}
	}, nil
}

func (h *holders) hear(m *nats.Msg) {
	var held message.Held
	if err := json.Unmarshal(m.Data, &held); err != nil || held.Replica == "" {
		h.log.Warn("what a replica holds cannot be read", "subject", m.Subject, "error", err)
		return
	}
	if held.Replica == h.name {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range held.Partitions {
		if p >= 0 && p < len(h.heard) {
			h.heard[p] = time.Now()
		}
	}
}

// others returns the partitions that another replica holds.
func (h *holders) others() (set partitionSet) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p, at := range h.heard {
		set[p] = !at.IsZero() && time.Since(at) < heardFor
	}
	return set
}

// say tells the others what this replica holds, when that has changed or was
// not said for some time. What does not reach them they hear the next time.
func (h *holders) say(held partitionSet) {
	if h.alone || held == h.said && time.Since(h.saidAt) < sayEvery {
		return
	}
	h.said, h.saidAt = held, time.Now()
	data, err := json.Marshal(message.Held{Replica: h.name, Partitions: held.list()})
	if err == nil {
		err = h.bus.NC.Publish(message.LogsHeld, data)
	}
	if err != nil {
		h.log.Debug("other replicas were not told", "error", err)
	}
}
