package message

import (
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
)

// RemovalRecord is the value of key <uuid> in bucket removed: everything that
// an endpoint had stored was removed for good.
//
// Batches, alerts and dead letters carry the generation of the last removal
// that the gateway which took them in knew. Those of the endpoint with a lower
// one than Generation are removed, wherever they stand and whenever they come.
// Artifacts are removed whose description stands at Ends or before.
type RemovalRecord struct {
	// Generation grows with each removal. It is the time of the removal in
	// milliseconds since 1970 or, where the one before is not less, one more
	// than that: so it grows, too, when a restored backup does not know of the
	// last removal.
	Generation uint64    `json:"generation"`
	Time       time.Time `json:"time"`
	Operator   string    `json:"operator"`
	// Ends are the last sequences of streams, by name, at a moment before the
	// removal was recorded: up to there everything of the endpoint is removed.
	Ends map[string]uint64 `json:"ends"`
	// Settled are the last sequences of streams at a later moment, when all
	// that was on its way had come. Between Ends and there the streams may
	// hold something of both generations. It is not set before that moment.
	Settled map[string]uint64 `json:"settled,omitempty"`
}

// RegistryRemove is the subject on which endpoint-registry records a removal.
// It takes a RemoveRequest and answers a RemoveReply.
const RegistryRemove = "edr.registry.remove"

// RemoveRequest asks to remove what an endpoint has stored.
type RemoveRequest struct {
	UUID     string `json:"uuid"`
	Operator string `json:"operator"`
}

// RemoveReply tells that a removal is recorded, at a revision of bucket removed.
type RemoveReply struct {
	Generation uint64 `json:"generation"`
	Revision   uint64 `json:"revision"`
}

// Subjects on which the owner of streams answers when what was removed is gone
// from them: rule-engine from ALERTS, log-ingest from the object store
// artifacts. They take a ClearedRequest.
const (
	AlertsCleared    = "edr.rules.cleared"
	ArtifactsCleared = "edr.artifacts.cleared"
)

// ClearedRequest names a removal by its endpoint and its revision.
type ClearedRequest struct {
	Endpoint string `json:"endpoint"`
	Revision uint64 `json:"revision"`
}

// LogsCount is the verb of log-ingest, under subject.Logs, that counts what an
// endpoint has stored. It takes a LogsCountRequest and answers a LogsCountReply.
const LogsCount = "count"

// LogsCountRequest names an endpoint.
type LogsCountRequest struct {
	Endpoint string `json:"endpoint"`
	Removed  uint64 `json:"removed,omitempty"`
}

// LogsCountReply tells how much an endpoint has stored.
type LogsCountReply struct {
	Events    int64 `json:"events"`
	Alerts    int64 `json:"alerts"`
	Artifacts int64 `json:"artifacts"`
}

// GenerationOf returns the generation that a message was written in.
func GenerationOf(h nats.Header) uint64 {
	n, err := strconv.ParseUint(h.Get(HeaderGeneration), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func setGeneration(h nats.Header, generation uint64) {
	if generation > 0 {
		h.Set(HeaderGeneration, strconv.FormatUint(generation, 10))
	}
}
