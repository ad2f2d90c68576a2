// Package format writes alerts as SIEMs read them: the payload as it is, the
// Elastic Common Schema, OCSF Detection Finding, and CEF.
//
// Every format carries the alert's id and, unless it is asked for its short
// form, the event as it came, so that nothing a format has no field for is
// lost.
package format
