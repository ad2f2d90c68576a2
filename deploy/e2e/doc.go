// Package e2e tests the product from outside: the real program as a process
// of its own, through its real doors (HTTP and NATS), on random ports of the
// loopback interface and folders that vanish with the test.
//
// Files with the build tag recorded need recorded events and rules, found
// through NIGHTJAR_TESTDATA; make test-recorded runs them.
package e2e
