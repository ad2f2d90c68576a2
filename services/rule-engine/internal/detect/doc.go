// Package detect finds the rules that match an event.
//
// [Compile] makes an immutable [Set] of rules. Any number of goroutines use one
// set at a time, each through a [Worker] of its own. Rules or containers change
// by compiling a new set and letting the workers of the old one go.
//
// Gene decides what a rule means: for every rule and every event the result is
// that of gene's Engine.MatchOrFilter on the event decoded into gene's generic
// event, and tests compare the two. Gene itself runs only while a set is
// compiled. Detection avoids the work that gene does for each rule and event:
//
//   - An event is never decoded. One pass over its bytes notes where the fields
//     are that some rule reads; a field is unescaped when a rule asks for it.
//   - Rules are indexed by channel and event id.
//   - A match that several rules share is evaluated once per event.
//   - The condition of a rule is a decision graph derived from gene's parsed
//     condition by following gene's evaluation order, odd as it is.
//   - A regular expression that is a list of words, anchored or not, is compared
//     as such. Others run only on values that hold a word which the expression
//     requires.
//   - Most rules can match only if one of a few words is in a certain field. All
//     such words of all rules for one channel and event id are searched in one
//     pass over the field, and the rules whose words are missing cost nothing.
//
// What gene has and this package does not use: the default actions and the
// trace mode. Values of a container are compared in lower case, as in gene.
package detect
