// Package rules reads detection rules and says what is wrong with them.
//
// A rule comes in one of two forms. Gene v1 selects events with
// Meta.EventIDs and Meta.Channels, gene v2 with Meta.Events and a schema
// version. [Parse] recognises the form rule by rule, expands templates, checks
// every statement and every condition and keeps the rule in the form it came
// in. [Rule.TextAs] gives it in the other form.
//
// Gene decides what a rule means. This package is stricter than gene about
// what it accepts, because gene loads rules that later panic, rules of which a
// part is silently lost and conditions that make no sense:
//
//   - a condition follows a grammar: operands, "and", "or", "!" and balanced
//     parentheses. Blanks around tokens carry no meaning and are reduced to one
//     space, as gene misreads longer runs. Two operands side by side are
//     accepted, with a warning, because published rules contain them; gene
//     takes the value of the second one;
//   - an empty condition is accepted only in a rule without matches, which then
//     matches every event that its meta section selects. Gene panics when a
//     rule has matches and no condition;
//   - a match name is defined once in a rule, and a rule name once in a body;
//   - the regular expression of an extract statement compiles and has the group
//     that the statement names.
//
// The texts of errors that a WHIDS manager has too are the same as there, with
// the name of the rule added behind them.
//
// All functions are safe for concurrent use. Values of type [Rule] and
// [Templates] must not be modified once they are shared.
package rules
