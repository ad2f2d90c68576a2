// Package certs makes and loads the certificates that Nightjar's own doors
// show: a certificate authority and a server certificate, made once and kept.
// standalone does so with --tls auto, and the preparation of services apart
// for those who have no other authority.
package certs
