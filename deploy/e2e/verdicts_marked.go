package e2e

// These are the members in which recorded reports change when the manager's
// own rule, of criticality 5, marks the recorded events, too. The formulas are
// in docs/reports.md.

// firstMarked are those after three events, of which the agent marked two.
func firstMarked(at string) []string {
	return under(at,
		"alert-count", "3",
		"count-by-signature", `{"AddUser":1,"HeurSpawnShell":3,"HighlyPolymorphicCode":2}`,
		"signatures", `["AddUser","HeurSpawnShell","HighlyPolymorphicCode"]`,
		"signature-count", "6",
		"sum-alert-criticality", "25",
		"avg-alert-criticality", "8.33",
		"std-dev-alert-criticality", "2.35",
		"sum-rule-criticality", "45",
		"avg-signature-criticality", "7.5",
		"std-dev-signature-criticality", "2.5",
		"count-uniq-signatures", "3",
		"signature-criticality-metric", "24",
		"alert-criticality-metric", "833",
		"score", "857",
		"start-time", `"2026-11-23T20:12:18.832191538Z"`,
		"median-time", `"2026-11-23T20:12:28.832191538Z"`,
	)
}

// secondMarked are those after ten such events, of which the agent marked
// three.
var secondMarked = under("data/",
	"alert-count", "10",
	"count-by-signature", `{"AddUser":1,"HeurSpawnShell":10,"HighlyPolymorphicCode":2,"NotAManagerRule":1}`,
	"signatures", `["AddUser","HeurSpawnShell","HighlyPolymorphicCode","NotAManagerRule"]`,
	"signature-count", "14",
	"sum-alert-criticality", "60",
	"avg-alert-criticality", "6",
	"std-dev-alert-criticality", "2",
	"sum-rule-criticality", "80",
	"avg-signature-criticality", "5.71",
	"std-dev-signature-criticality", "2.1",
	"count-uniq-signatures", "4",
	"alert-criticality-metric", "600",
	"score", "624",
	"start-time", `"2026-11-23T20:12:18.832191538Z"`,
	"median-time", `"2026-11-23T20:12:32.882191538Z"`,
)

// unknownMarked are those after one event that the agent marked by a rule
// which the manager does not have.
func unknownMarked(at string) []string {
	return under(at,
		"count-by-signature", `{"HeurSpawnShell":1,"NotAManagerRule":1}`,
		"signatures", `["HeurSpawnShell","NotAManagerRule"]`,
		"signature-count", "2",
		"sum-alert-criticality", "5",
		"avg-alert-criticality", "5",
		"sum-rule-criticality", "5",
		"avg-signature-criticality", "2.5",
		"std-dev-signature-criticality", "0",
		"signature-diversity", "50",
		"count-uniq-signatures", "2",
		"signature-criticality-metric", "6",
		"alert-criticality-metric", "250",
		"score", "256",
	)
}

// emptyMarked are those after one event with an empty Signature.
var emptyMarked = under("data/",
	"count-by-signature", `{"HeurSpawnShell":1}`,
	"signatures", `["HeurSpawnShell"]`,
	"signature-count", "1",
	"sum-alert-criticality", "5",
	"avg-alert-criticality", "5",
	"sum-rule-criticality", "5",
	"avg-signature-criticality", "5",
	"std-dev-signature-criticality", "0",
	"signature-diversity", "25",
	"count-uniq-signatures", "1",
	"signature-criticality-metric", "5",
	"alert-criticality-metric", "125",
	"score", "130",
)

// gravesMarked are those after four events of rules of different criticality.
var gravesMarked = under("data/",
	"count-by-signature/HeurSpawnShell", "4",
	"signature-count", "9",
	"sum-alert-criticality", "38",
	"avg-alert-criticality", "9.5",
	"std-dev-alert-criticality", "0.5",
	"sum-rule-criticality", "52",
	"avg-signature-criticality", "5.77",
	"std-dev-signature-criticality", "2.29",
	"alert-criticality-metric", "570",
	"score", "588",
)

// againMarked are those after one event of a rule of criticality 10.
var againMarked = under("data/",
	"count-by-signature", `{"HeurSpawnShell":1,"HighlyPolymorphicCode":1}`,
	"signatures", `["HeurSpawnShell","HighlyPolymorphicCode"]`,
	"signature-count", "2",
	"sum-rule-criticality", "15",
	"avg-signature-criticality", "7.5",
	"std-dev-signature-criticality", "2.5",
	"signature-diversity", "40",
	"count-uniq-signatures", "2",
	"signature-criticality-metric", "16",
	"alert-criticality-metric", "400",
	"score", "416",
)

// under puts the names of pairs below a path.
func under(at string, pairs ...string) []string {
	for i := 0; i < len(pairs); i += 2 {
		pairs[i] = at + pairs[i]
	}
	return pairs
}
