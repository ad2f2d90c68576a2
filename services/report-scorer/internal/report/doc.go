// Package report is the arithmetic of reports: statistics of an endpoint's
// alerts that grow with none of them, and the numbers made from them.
//
// The formulas are those of gene's reducer, described in docs/reports.md.
// Where the reducer keeps lists of criticalities, Stats keeps how often each
// occurs, which is enough for their standard deviation and exact.
package report
