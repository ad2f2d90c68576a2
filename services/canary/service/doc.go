// Package canary is a program that shows from outside whether a manager does
// its work.
//
// In each round it sends, as an endpoint of its own, an event that its own rule
// must mark, and waits for the alert on its NATS subject, among the alerts of
// the admin API and in the report; and it queues a command, fetches and answers
// it as that endpoint, and waits for the result. The command is executed by
// nobody: the canary alone has the endpoint's key. What each step took, when it
// last succeeded and why it failed are metrics, and the canary is ready when
// its last round has succeeded.
//
// It is a client like any other: it uses the two APIs with an operator's key,
// and NATS with rights to nothing but hearing alerts of its severity. It owns
// no record and has no view. Its folder holds the endpoint's key, nothing else.
package canary
