// Package artifact takes the files that agents send because of an event into
// the object store artifacts.
//
// A file is written under a name of its own, piece by piece while it comes in,
// and gets its final name in one compare-and-set when it is complete. So a
// name never stands for a part of a file, and of two different files that are
// sent under one name at once one is refused. A file sent in parts is joined
// when all parts are there. Memory does not grow with the files. What remains
// of an upload that broke off is removed by log-ingest.
package artifact
