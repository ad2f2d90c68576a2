package message

// LogsHeld is the subject on which each replica of log-ingest says what it
// holds: once a second, and whenever that changes.
const LogsHeld = "edr.ingest.held"

// Held is what a replica of log-ingest says on LogsHeld.
type Held struct {
	// Replica names the replica, by its store.
	Replica string `json:"replica"`
	// Partitions are those that the replica owns by its configuration, has
	// all of, and answers for. Ones that it only answers for until their
	// owner does are not among them.
	Partitions []int `json:"partitions"`
}
