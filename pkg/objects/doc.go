// Package objects works on JetStream object stores where the client's own
// functions promise too little.
//
// Content is written as a draft, which nobody sees, and gets its name with
// compare-and-set: a name never stands for a part of something, and of two who
// change one name at once one learns that it came too late. Reading needs no
// consumer and ends with an error when the content is not what its description
// says. Follow tells of all changes, as one where several come together. The
// format is that of every NATS client.
package objects
