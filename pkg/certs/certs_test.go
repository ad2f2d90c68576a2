package certs_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/certs"
)

var hosts = []string{"localhost", "127.0.0.1", "::1", "edr.example.org"}

func load(t *testing.T, setting, dir string, hosts ...string) *certs.Served {
	t.Helper()
	s, err := certs.Load(setting, dir, hosts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// shake connects to a listener with s as a client that trusts caFile and asks
// for host. It returns the certificate that it was shown.
func shake(t *testing.T, s *certs.Served, caFile, host string) (*x509.Certificate, error) {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(read(t, caFile))) {
		t.Fatalf("no certificate in %s", caFile)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", s.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		_ = c.(*tls.Conn).HandshakeContext(t.Context()) // the client tells how it ended
		_ = c.Close()
	}()
	defer func() { <-done }()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	c := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: host})
	if err := c.HandshakeContext(t.Context()); err != nil {
		return nil, err
	}
	return c.ConnectionState().PeerCertificates[0], nil
}

func TestAutoIsTrusted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "tls")
	s := load(t, "auto", dir, hosts...)
	if s.CAFile != filepath.Join(dir, "ca.pem") {
		t.Errorf("CA file %s", s.CAFile)
	}
	for _, host := range hosts {
		leaf, err := shake(t, s, s.CAFile, host)
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		cert, key := sha256.Sum256(leaf.Raw), sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
		if s.Fingerprint != hex.EncodeToString(cert[:]) || s.PublicKey != hex.EncodeToString(key[:]) || !s.NotAfter.Equal(leaf.NotAfter) {
			t.Errorf("%s: the certificate shown is not the one told of", host)
		}
		if leaf.IsCA {
			t.Errorf("%s: the server's certificate could sign others", host)
		}
	}
	if _, err := shake(t, s, s.CAFile, "other.example.org"); !errors.As(err, new(x509.HostnameError)) {
		t.Errorf("another host: %v", err)
	}
	other := load(t, "auto", t.TempDir(), hosts...)
	if _, err := shake(t, s, other.CAFile, "localhost"); !errors.As(err, new(x509.UnknownAuthorityError)) {
		t.Errorf("a client that trusts another CA: %v", err)
	}
}

func TestAutoModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	load(t, "auto", dir, hosts...)
	for name, want := range map[string]fs.FileMode{
		"": fs.ModeDir | 0o700, "ca.pem": 0o644, "ca.key": 0o600, "server.pem": 0o644, "server.key": 0o600,
	} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if info.Mode() != want {
			t.Errorf("%q has mode %v, want %v", name, info.Mode(), want)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 {
		t.Errorf("%v, %v: want four files", entries, err)
	}
}

// What is left of the files decides what is made anew.
func TestAutoAgain(t *testing.T) {
	more := append([]string{"new.example.org"}, hosts...)
	for _, tc := range []struct {
		name                      string
		hosts, remove             []string
		sameCert, sameKey, sameCA bool
	}{
		{name: "nothing has changed", hosts: hosts, sameCert: true, sameKey: true, sameCA: true},
		{name: "fewer hosts", hosts: hosts[:2], sameCert: true, sameKey: true, sameCA: true},
		{name: "a new host", hosts: more, sameKey: true, sameCA: true},
		{name: "no certificate", hosts: hosts, remove: []string{"server.pem"}, sameKey: true, sameCA: true},
		{name: "no key", hosts: hosts, remove: []string{"server.key"}, sameCA: true},
		{name: "no CA", hosts: hosts, remove: []string{"ca.pem", "ca.key"}, sameKey: true},
		{name: "no CA key", hosts: hosts, remove: []string{"ca.key"}, sameKey: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			first := load(t, "auto", dir, hosts...)
			ca := read(t, first.CAFile)
			for _, name := range tc.remove {
				if err := os.Remove(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			second := load(t, "auto", dir, tc.hosts...)
			if got := second.Fingerprint == first.Fingerprint; got != tc.sameCert {
				t.Errorf("same certificate: %v", got)
			}
			if got := second.PublicKey == first.PublicKey; got != tc.sameKey {
				t.Errorf("same key: %v", got)
			}
			if got := read(t, second.CAFile) == ca; got != tc.sameCA {
				t.Errorf("same CA: %v", got)
			}
			for _, host := range tc.hosts {
				if _, err := shake(t, second, second.CAFile, host); err != nil {
					t.Errorf("%s: %v", host, err)
				}
			}
			if third := load(t, "auto", dir, tc.hosts...); third.Fingerprint != second.Fingerprint {
				t.Error("made anew once more")
			}
		})
	}
}

// The CA's certificate alone can be made anew from its key, so that a server
// certificate from before stays good.
func TestAutoWithoutCACertificate(t *testing.T) {
	dir := t.TempDir()
	first := load(t, "auto", dir, hosts...)
	if err := os.Remove(first.CAFile); err != nil {
		t.Fatal(err)
	}
	second := load(t, "auto", dir, hosts...)
	if second.PublicKey != first.PublicKey {
		t.Error("another key")
	}
	if _, err := shake(t, second, second.CAFile, "localhost"); err != nil {
		t.Error(err)
	}
}

func TestPair(t *testing.T) {
	dir := t.TempDir()
	auto := load(t, "auto", dir, hosts...)
	cert, key := filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key")
	unused := filepath.Join(t.TempDir(), "unused")
	s := load(t, cert+","+key, unused, hosts...)
	if s.Fingerprint != auto.Fingerprint || s.PublicKey != auto.PublicKey || s.CAFile != "" {
		t.Errorf("got %+v", s)
	}
	if _, err := shake(t, s, auto.CAFile, "localhost"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(unused); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder for automatic certificates: %v", err)
	}
}

func TestOff(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "unused")
	if s := load(t, "off", dir, hosts...); s != nil {
		t.Errorf("got %+v", s)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder: %v", err)
	}
}

func TestPairErrors(t *testing.T) {
	dir := t.TempDir()
	load(t, "auto", dir, hosts...)
	cert, key := filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key")
	otherKey, garbage, missing := filepath.Join(dir, "ca.key"), filepath.Join(dir, "garbage"), filepath.Join(dir, "missing")
	write(t, garbage, "no PEM\n")
	for _, tc := range []struct {
		name, setting string
		want          []string
	}{
		{"a word", "on", []string{`"on"`, "auto, off or CERT,KEY"}},
		{"nothing", "", []string{"auto, off or CERT,KEY"}},
		{"no key", cert + ",", []string{"auto, off or CERT,KEY"}},
		{"no certificate", "," + key, []string{"auto, off or CERT,KEY"}},
		{"missing certificate", missing + "," + key, []string{missing}},
		{"missing key", cert + "," + missing, []string{missing}},
		{"bad certificate", garbage + "," + key, []string{garbage}},
		{"bad key", cert + "," + garbage, []string{garbage}},
		{"another's key", cert + "," + otherKey, []string{cert, otherKey}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := certs.Load(tc.setting, dir, hosts)
			if err == nil {
				t.Fatalf("got %+v", s)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v: no %q", err, want)
				}
			}
		})
	}
}

// A file that is there and cannot be used is an error, and is left alone.
func TestAutoErrors(t *testing.T) {
	for _, name := range []string{"ca.pem", "ca.key", "server.pem", "server.key"} {
		for _, content := range []string{"", "no PEM\n", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"} {
			dir := t.TempDir()
			load(t, "auto", dir, hosts...)
			file := filepath.Join(dir, name)
			write(t, file, content)
			if _, err := certs.Load("auto", dir, hosts); err == nil || !strings.Contains(err.Error(), file) {
				t.Errorf("%s with %q: %v", name, content, err)
			}
			if read(t, file) != content {
				t.Errorf("%s with %q was written to", name, content)
			}
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	if _, err := certs.Load("auto", file, hosts); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a folder that is a file: %v", err)
	}
	// A key without its certificate is judged, too.
	for _, name := range []string{"ca", "server"} {
		dir := t.TempDir()
		load(t, "auto", dir, hosts...)
		key := filepath.Join(dir, name+".key")
		for _, content := range []string{"", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"} {
			write(t, key, content)
			if err := os.Remove(filepath.Join(dir, name+".pem")); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			if _, err := certs.Load("auto", dir, hosts); err == nil || !strings.Contains(err.Error(), key) {
				t.Errorf("%s: %v", key, err)
			}
		}
	}
}
