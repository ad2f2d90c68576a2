// Package e2e tests the product from outside: the real program as a process
// of its own, through its real doors (HTTP and NATS), on random ports of the
// loopback interface and folders that vanish with the test.
//
// TestServicesApart and the files with the build tag cluster run the services
// apart, beside nats-server with the configuration of deploy/nats; make
// test-cluster runs the latter, which kill and cut off servers and replicas.
//
// Files with the build tag recorded need recorded events and rules, found
// through NIGHTJAR_TESTDATA; make test-recorded runs them.
package e2e
