package message

// RulesKey is the only key of bucket rules. Its value is the whole rule set,
// so that a change of several rules is one write; its form is the
// rule-engine's own. Whoever watches the bucket learns of a change and asks
// the rule-engine for what it needs.
const RulesKey = "set"
