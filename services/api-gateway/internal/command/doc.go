// Package command turns commands between their three forms: what an operator
// posts, the record that command-dispatch keeps, and the object that the admin
// API shows and agents get and send back.
//
// Values over message.MaxInlineBlob, such as the files that an endpoint sends,
// never stand in memory as a whole. They go to the object store while they are
// read, and come from there while they are written.
package command
