package failpoint

// Point names a place, <service>/<when>.
type Point string

// The way of events to the SIEM.
const (
	// EventsBeforePublish: a batch of lines was read and not yet handed to JetStream.
	EventsBeforePublish Point = "api-gateway/events-before-publish"
	// EventsAfterPublish: a batch is handed over and not yet acknowledged, others of its body may follow.
	EventsAfterPublish Point = "api-gateway/events-after-publish"
	// EventsBeforeReply: all of a body is acknowledged, the agent does not know yet.
	EventsBeforeReply Point = "api-gateway/events-before-reply"
	// IntakeBeforeWrite: batches wait together and are not handed to JetStream.
	IntakeBeforeWrite Point = "api-gateway/intake-before-write"
	// IntakeAfterWrite: batches are stored together, no agent knows yet.
	IntakeAfterWrite Point = "api-gateway/intake-after-write"
	// IntakeBeforeMove: batches are acknowledged and not sorted by endpoint.
	IntakeBeforeMove Point = "api-gateway/intake-before-move"
	// IntakeAfterMove: batches are sorted by endpoint and also still where they were taken in.
	IntakeAfterMove Point = "api-gateway/intake-after-move"
	// IntakeBeforeAdopt: what an earlier gateway took in and did not sort is found.
	IntakeBeforeAdopt Point = "api-gateway/intake-before-adopt"
	// LetterBeforePublish: a line is no event and not yet a dead letter.
	LetterBeforePublish Point = "api-gateway/letter-before-publish"
	// AlertsBeforePublish: a batch is worked on, none of its alerts is written.
	AlertsBeforePublish Point = "rule-engine/alerts-before-publish"
	// AlertsMidPublish: some of a batch's alerts are handed over.
	AlertsMidPublish Point = "rule-engine/alerts-mid-publish"
	// AlertsBeforeAck: all alerts of a batch are stored, the batch is not acknowledged.
	AlertsBeforeAck Point = "rule-engine/alerts-before-ack"
	// BatchAfterAck: a batch is acknowledged, not yet counted.
	BatchAfterAck Point = "rule-engine/batch-after-ack"
)

// Every view. HitIn is given the view's name.
const (
	// ViewBeforeCommit: messages are folded into a transaction that is not committed.
	ViewBeforeCommit Point = "view/before-commit"
	// ViewAfterCommit: the transaction is committed, memory and readers do not know yet.
	ViewAfterCommit Point = "view/after-commit"
)

// Every object store. HitIn is given the store's name.
const (
	// ObjectMidWrite: a part of a content is in the object store.
	ObjectMidWrite Point = "objects/mid-write"
)

// Rules.
const (
	// RulesBeforeWrite: a changed rule set compiles and is not stored.
	RulesBeforeWrite Point = "rule-engine/rules-before-write"
	// RulesAfterWrite: a changed rule set is stored and not in force.
	RulesAfterWrite Point = "rule-engine/rules-after-write"
	// ReloadBeforeReply: what was staged is in force, the operator does not know yet.
	ReloadBeforeReply Point = "rule-engine/reload-before-reply"
	// SwapBefore: a rule set is compiled, workers still use the one before.
	SwapBefore Point = "rule-engine/swap-before"
	// SwapAfter: workers take the new rule set for their next batch.
	SwapAfter Point = "rule-engine/swap-after"
)

// Commands.
const (
	// CommandBeforeQueue: a command's files are stored and it is not queued.
	CommandBeforeQueue Point = "api-gateway/command-before-queue"
	// CommandBeforeDeliver: a command is marked as sent, nothing of it has gone out.
	CommandBeforeDeliver Point = "api-gateway/command-before-deliver"
	// ResultBeforeRecord: a result's files are stored, the result is not.
	ResultBeforeRecord Point = "api-gateway/result-before-record"
	// QueueBeforeWrite: a command is accepted and not stored.
	QueueBeforeWrite Point = "command-dispatch/queue-before-write"
	// QueueAfterWrite: a command is stored, nobody knows yet.
	QueueAfterWrite Point = "command-dispatch/queue-after-write"
	// NextBeforeMark: a command is chosen and not marked as sent.
	NextBeforeMark Point = "command-dispatch/next-before-mark"
	// NextAfterMark: a command is marked as sent and not handed out.
	NextAfterMark Point = "command-dispatch/next-after-mark"
	// ResultAfterWrite: a command is completed, what it replaces is not removed.
	ResultAfterWrite Point = "command-dispatch/result-after-write"
	// CancelAfterWrite: a command is cancelled, nobody knows yet.
	CancelAfterWrite Point = "command-dispatch/cancel-after-write"
)

// Endpoints.
const (
	// EndpointBeforeWrite: a change of an endpoint is not stored.
	EndpointBeforeWrite Point = "endpoint-registry/before-write"
	// EndpointAfterWrite: a change of an endpoint is stored and not in the view.
	EndpointAfterWrite Point = "endpoint-registry/after-write"
	// EndpointAfterDelete: an endpoint's record is deleted, the view does not know yet.
	EndpointAfterDelete Point = "endpoint-registry/after-delete"
	// EndpointBeforeForget: an endpoint is deleted, its commands are not.
	EndpointBeforeForget Point = "api-gateway/endpoint-before-forget"
)

// Artifacts and reports.
const (
	// ArtifactBeforeName: all of a content is stored, it has no name.
	ArtifactBeforeName Point = "api-gateway/artifact-before-name"
	// ArtifactAfterName: a content has its name, the agent does not know yet.
	ArtifactAfterName Point = "api-gateway/artifact-after-name"
	// ArtifactMidClean: a file is joined, some of its parts are removed.
	ArtifactMidClean Point = "api-gateway/artifact-mid-clean"
	// ClearBeforeWrite: a report that is to be cleared is computed, the clear is not stored.
	ClearBeforeWrite Point = "report-scorer/clear-before-write"
	// ClearAfterWrite: a clear is stored and not in the view.
	ClearAfterWrite Point = "report-scorer/clear-after-write"
)

// Merging of chunks. HitIn is given the kind of their lines.
const (
	// MergeBeforeCommit: a merged chunk is not in the store, those that it was made of are.
	MergeBeforeCommit Point = "log-ingest/merge-before-commit"
	// MergeAfterCommit: a merged chunk is in the store, the writer does not know yet.
	MergeAfterCommit Point = "log-ingest/merge-after-commit"
)

// The removal of what an endpoint has stored.
const (
	// RemovalBeforeWrite: a removal is asked for and not recorded.
	RemovalBeforeWrite Point = "endpoint-registry/removal-before-write"
	// RemovalAfterWrite: a removal is recorded, nobody knows yet.
	RemovalAfterWrite Point = "endpoint-registry/removal-after-write"
	// RemovalBeforeClear: a removal is obeyed, a stream is not cleared. HitIn is given the stream's name.
	RemovalBeforeClear Point = "removal/before-clear"
	// RemovalAfterClear: a stream is cleared, which is not noted. HitIn is given the stream's name.
	RemovalAfterClear Point = "removal/after-clear"
	// RemovalMidForget: some of the lines of a removal are deleted. HitIn is given their kind.
	RemovalMidForget Point = "log-ingest/removal-mid-forget"
	// RemovalBeforeReply: all gateways act by a removal, its streams may not be cleared.
	RemovalBeforeReply Point = "api-gateway/removal-before-reply"
)

// Requests of operators, start and stop.
const (
	// AdminBeforeAudit: a change is made and not on record.
	AdminBeforeAudit Point = "api-gateway/admin-before-audit"
	// AdminBeforeReply: a change is made and on record, the operator does not know yet.
	AdminBeforeReply Point = "api-gateway/admin-before-reply"
	// StartAfterNATS: the embedded NATS runs, no store is open.
	StartAfterNATS Point = "standalone/start-after-nats"
	// StartBeforeServices: all stores are open, nothing works yet.
	StartBeforeServices Point = "standalone/start-before-services"
	// StopAfterGateway: the last request is answered, the services still work.
	StopAfterGateway Point = "standalone/stop-after-gateway"
	// StopBeforeNATS: all stores are closed, NATS is not.
	StopBeforeNATS Point = "standalone/stop-before-nats"
)

// views are the parts of ViewBeforeCommit and ViewAfterCommit: the names of
// the views that the services have.
var views = []string{"access", "endpoints", "rules", "raised", "commands", "events", "alerts", "artifacts", "reports", "removals"}

// cleared are the parts of RemovalBeforeClear and RemovalAfterClear: the streams
// that are cleared of what was removed.
var cleared = []string{"INTAKE", "EVENTS", "DEADLETTER", "ALERTS", "OBJ_artifacts"}

// stores are the parts of ObjectMidWrite: the object stores that are written
// by way of pkg/objects under the load of the crash tests.
var stores = []string{"artifacts", "files"}

// List returns every point as NIGHTJAR_FAILPOINTS names it.
func List() []string {
	list := []string{}
	for _, p := range []Point{
		EventsBeforePublish, EventsAfterPublish, EventsBeforeReply, LetterBeforePublish,
		IntakeBeforeWrite, IntakeAfterWrite, IntakeBeforeMove, IntakeAfterMove, IntakeBeforeAdopt,
		AlertsBeforePublish, AlertsMidPublish, AlertsBeforeAck, BatchAfterAck,
		RulesBeforeWrite, RulesAfterWrite, ReloadBeforeReply, SwapBefore, SwapAfter,
		CommandBeforeQueue, CommandBeforeDeliver, ResultBeforeRecord,
		QueueBeforeWrite, QueueAfterWrite, NextBeforeMark, NextAfterMark, ResultAfterWrite, CancelAfterWrite,
		EndpointBeforeWrite, EndpointAfterWrite, EndpointAfterDelete, EndpointBeforeForget,
		ArtifactBeforeName, ArtifactAfterName, ArtifactMidClean, ClearBeforeWrite, ClearAfterWrite,
		RemovalBeforeWrite, RemovalAfterWrite, RemovalBeforeReply,
		AdminBeforeAudit, AdminBeforeReply, StartAfterNATS, StartBeforeServices, StopAfterGateway, StopBeforeNATS,
	} {
		list = append(list, string(p))
	}
	for _, name := range stores {
		list = append(list, part(ObjectMidWrite, name))
	}
	for _, name := range cleared {
		list = append(list, part(RemovalBeforeClear, name), part(RemovalAfterClear, name))
	}
	for _, kind := range []string{"event", "alert"} {
		list = append(list, part(RemovalMidForget, kind), part(MergeBeforeCommit, kind), part(MergeAfterCommit, kind))
	}
	for _, v := range views {
		list = append(list, part(ViewBeforeCommit, v), part(ViewAfterCommit, v))
	}
	return list
}

func part(p Point, name string) string { return string(p) + ":" + name }
