// Package certs makes and loads the certificate that standalone serves: with
// --tls auto a certificate authority and a server certificate of its own,
// made at the first start and kept.
package certs
