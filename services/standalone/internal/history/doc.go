// Package history imports what a WHIDS manager has kept of its endpoints into
// a running Nightjar: the events in its day files and the files in its dump
// folder. It is a client of the admin API and knows nothing of the manager's
// stores, so that what it brings passes through the same door as what agents
// send: it is acknowledged when it is on stable storage, refused when there
// is no room, and stored once however often it is brought.
//
// The WHIDS manager (3345019) keeps events under its log folder as
// <uuid>/<year-month-day>/logs.gz, and those that are alerts once more in
// alerts.gz beside it. Its later pre-releases keep them as
// events/<uuid>/<yearmonthday>/<hour>/<file> and under detections/ likewise,
// each line with its time in nanoseconds and a colon before it and with the
// member EdrData added, beside index files that are not needed. Dumps are
// <uuid>/{<process guid>}/<event hash>/<file> under the dump folder.
package history
