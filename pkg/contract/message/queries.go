package message

import (
	"encoding/json"
	"time"
)

// Requests to rule-engine.
const (
	RulesCount  = "edr.rules.count"
	RulesList   = "edr.rules.list"
	RulesAdd    = "edr.rules.add"
	RulesDelete = "edr.rules.delete"
	RulesReload = "edr.rules.reload"
	RulesSave   = "edr.rules.save"
	RulesAgent  = "edr.rules.agent"
)

// RulesAddRequest adds rules. Body is what the client sent: concatenated JSON
// objects, compressed by Compress. All are accepted or none.
type RulesAddRequest struct {
	Body   []byte `json:"body"`
	Update bool   `json:"update,omitempty"`
	// Actor is who asks, for the record.
	Actor string `json:"actor,omitempty"`
}

// RulesChangeReply answers a change of the rule set. Staged tells that it
// waits for a reload.
type RulesChangeReply struct {
	Staged   bool   `json:"staged"`
	Revision uint64 `json:"revision"`
}

// RulesListRequest asks for a page of rules, sorted by name, whose name the
// regular expression Name finds; empty finds all. After is the last name of
// the page before.
type RulesListRequest struct {
	Name  string `json:"name,omitempty"`
	After string `json:"after,omitempty"`
}

// RulesListReply is a page of rules as they are listed. Next is empty on the
// last page.
type RulesListReply struct {
	Rules []json.RawMessage `json:"rules"`
	Next  string            `json:"next,omitempty"`
}

// RulesDeleteRequest names a rule to delete, literally.
type RulesDeleteRequest struct {
	Name  string `json:"name"`
	Actor string `json:"actor,omitempty"`
}

// RulesCountReply tells how many rules are compiled.
type RulesCountReply struct {
	Count    int    `json:"count"`
	Revision uint64 `json:"revision"`
}

// RulesAgentRequest asks for the rules as agents get them, in gene v1 form or,
// if V2, in v2 form. Offset asks for the text from there on.
type RulesAgentRequest struct {
	V2     bool `json:"v2,omitempty"`
	Offset int  `json:"offset,omitempty"`
}

// RulesAgentReply carries a part of the rules' text, compressed by Compress,
// and what the whole is: its SHA-256 in hexadecimal, its size and the revision
// of the rule set it was made from.
type RulesAgentReply struct {
	Text     []byte `json:"text"`
	SHA256   string `json:"sha256"`
	Size     int    `json:"size"`
	Revision uint64 `json:"revision"`
}

// Verbs of log-ingest, under subject.Logs.
const (
	LogsQuery = "query"
)

// LogsRequest asks for a page of an endpoint's events or alerts by event
// time. Both bounds are exclusive; a zero bound is open.
type LogsRequest struct {
	Endpoint string    `json:"endpoint"`
	Alerts   bool      `json:"alerts,omitempty"`
	Start    time.Time `json:"start,omitzero"`
	Stop     time.Time `json:"stop,omitzero"`
	// Cursor is the Next of the page before, empty on the first page.
	Cursor string `json:"cursor,omitempty"`
	// Skip events from the first page on; Limit the events of this page, 0
	// for as many as a page holds.
	Skip  int `json:"skip,omitempty"`
	Limit int `json:"limit,omitempty"`
	// Paged tells that the answer may be a page as AppendPage makes it.
	Paged bool `json:"paged,omitempty"`
	// Removed is the revision of the bucket removed that the answer must
	// obey; so in the requests below.
	Removed uint64 `json:"removed,omitempty"`
}

// Headers of the answer to LogsQuery. Its data are the lines, each ended by a
// newline: a page of format FormatPage, or, without a format, compressed by
// Compress.
const (
	HeaderNext = "Nightjar-Next"
	FormatPage = "page"
)

// Requests to report-scorer.
const (
	ReportsGet   = "edr.reports.get"
	ReportsList  = "edr.reports.list"
	ReportsClear = "edr.reports.clear"
)

// ReportRequest names an endpoint.
type ReportRequest struct {
	UUID    string `json:"uuid"`
	Removed uint64 `json:"removed,omitempty"`
}

// ReportReply carries a report, null when there is none.
type ReportReply struct {
	Report   *Report `json:"report"`
	Revision uint64  `json:"revision,omitempty"`
}

// ReportsListRequest asks for the reports of these endpoints.
type ReportsListRequest struct {
	UUIDs   []string `json:"uuids"`
	Removed uint64   `json:"removed,omitempty"`
}

// ReportsListReply carries the reports that exist, by endpoint.
type ReportsListReply struct {
	Reports map[string]*Report `json:"reports"`
}

// Report is an endpoint's report as the admin API shows it. The formulas are
// those of gene's reducer, see docs/reports.md.
type Report struct {
	Identifier       string           `json:"identifier"`
	AlertCount       int64            `json:"alert-count"`
	CountBySignature map[string]int64 `json:"count-by-signature"`
	Signatures       []string         `json:"signatures"`
	Techniques       []string         `json:"techniques"`
	Tactics          []string         `json:"tactics"`
	SignatureCount   int64            `json:"signature-count"`
	SumAlert         int64            `json:"sum-alert-criticality"`
	AvgAlert         float64          `json:"avg-alert-criticality"`
	StdDevAlert      float64          `json:"std-dev-alert-criticality"`
	SumRule          int64            `json:"sum-rule-criticality"`
	AvgSignature     float64          `json:"avg-signature-criticality"`
	StdDevSignature  float64          `json:"std-dev-signature-criticality"`
	Diversity        float64          `json:"signature-diversity"`
	UniqSignatures   int64            `json:"count-uniq-signatures"`
	SignatureMetric  int64            `json:"signature-criticality-metric"`
	AlertMetric      int64            `json:"alert-criticality-metric"`
	Score            int64            `json:"score"`
	Start            time.Time        `json:"start-time"`
	Median           time.Time        `json:"median-time"`
	Stop             time.Time        `json:"stop-time"`
}

// Requests to command-dispatch.
const (
	CommandsQueue  = "edr.commands.queue"
	CommandsGet    = "edr.commands.get"
	CommandsList   = "edr.commands.list"
	CommandsNext   = "edr.commands.next"
	CommandsResult = "edr.commands.result"
	CommandsCancel = "edr.commands.cancel"
)
