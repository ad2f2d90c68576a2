package subject

import (
	"fmt"
	"hash/fnv"
	"regexp"
	"strconv"
	"strings"
)

// Partitions is the number of partitions that endpoints are spread over. It
// is fixed for a deployment: changing it would move endpoints.
const Partitions = 32

// Wildcards over whole families of subjects.
const (
	AllIntake      = "edr.intake.*"
	AllEvents      = "edr.events.*.*"
	AllAlerts      = "edr.alerts.*.*"
	AllAudit       = "edr.audit.>"
	AllDeadLetters = "edr.deadletter.>"
)

// Severity is the word for a range of criticalities within alert subjects.
type Severity string

// The severities, from 0 to 10: info 0, low 1-3, medium 4-6, high 7-8,
// critical 9-10.
const (
	Info     Severity = "info"
	Low      Severity = "low"
	Medium   Severity = "medium"
	High     Severity = "high"
	Critical Severity = "critical"
)

// SeverityOf returns the severity of a criticality.
func SeverityOf(criticality int) Severity {
	switch {
	case criticality <= 0:
		return Info
	case criticality <= 3:
		return Low
	case criticality <= 6:
		return Medium
	case criticality <= 8:
		return High
	}
	return Critical
}

var uuidPattern = regexp.MustCompile(`^[[:xdigit:]]{8}-[[:xdigit:]]{4}-[[:xdigit:]]{4}-[[:xdigit:]]{4}-[[:xdigit:]]{12}$`)

// IsUUID tells whether s has the form of an endpoint's UUID: hex digits as
// 8-4-4-4-12, either case, no version bits demanded.
func IsUUID(s string) bool { return uuidPattern.MatchString(s) }

// PartitionOf returns the partition of an endpoint, from 0 to Partitions-1:
// FNV-1a (32 bit) of its UUID, modulo Partitions.
func PartitionOf(endpoint string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(endpoint)) // never fails
	return int(h.Sum32() % Partitions)
}

// Events returns the subject of an endpoint's event batches.
func Events(endpoint string) string {
	return fmt.Sprintf("edr.events.%d.%s", PartitionOf(endpoint), endpoint)
}

// Intake returns the subject of what a gateway takes in before it sorts it by
// endpoint. Gateway is one token, which no other gateway has.
func Intake(gateway string) string { return "edr.intake." + gateway }

// Alerts returns the subject of an endpoint's alerts of one severity.
func Alerts(s Severity, endpoint string) string {
	return "edr.alerts." + string(s) + "." + endpoint
}

// DeadLetter returns the subject of an endpoint's dead letters of one reason.
func DeadLetter(reason, endpoint string) string {
	return "edr.deadletter." + reason + "." + endpoint
}

// AllAlertsOf returns the wildcard over an endpoint's alerts.
func AllAlertsOf(endpoint string) string { return "edr.alerts.*." + endpoint }

// AllDeadLettersOf returns the wildcard over an endpoint's dead letters.
func AllDeadLettersOf(endpoint string) string { return "edr.deadletter.*." + endpoint }

// Logs returns the subject on which the owner of a partition answers verb.
func Logs(partition int, verb string) string {
	return "edr.logs." + strconv.Itoa(partition) + "." + verb
}

// Endpoint returns the last token of a subject, which is the endpoint's UUID
// in events, alerts and dead letters.
func Endpoint(s string) string { return s[strings.LastIndexByte(s, '.')+1:] }
