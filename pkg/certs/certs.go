package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/durable"
)

// Lifetimes of what Auto makes. A server certificate is made anew at a start
// when less than a third of its life is left.
const (
	caLife     = 10 * 365 * 24 * time.Hour
	serverLife = 825 * 24 * time.Hour
)

// Served is a certificate that is ready to be served.
type Served struct {
	Config *tls.Config
	// CAFile is the PEM file that clients trust, empty for a certificate
	// that the operator brought.
	CAFile string
	// Fingerprint is the SHA-256 of the certificate, PublicKey that of its
	// DER public key, which agents can pin. Both are hexadecimal.
	Fingerprint, PublicKey string
	NotAfter               time.Time
}

// Load makes what the setting tls asks for: auto, off (nil) or CERT,KEY.
// hosts are the names and addresses that an automatic certificate is for.
func Load(setting, dir string, hosts []string) (*Served, error) {
	switch setting {
	case "off":
		return nil, nil
	case "auto":
		return auto(dir, hosts)
	}
	cert, key, ok := strings.Cut(setting, ",")
	if !ok || cert == "" || key == "" {
		return nil, fmt.Errorf("tls %q: want auto, off or CERT,KEY", setting)
	}
	pair, err := loadPair(cert, key)
	if err != nil {
		return nil, err
	}
	return serve(pair, "")
}

// loadPair loads a certificate and its key. Its errors name both files, of
// which those of tls.LoadX509KeyPair do not always speak.
func loadPair(certFile, keyFile string) (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return pair, fmt.Errorf("certificate %s with key %s: %w", certFile, keyFile, err)
	}
	return pair, nil
}

func serve(pair tls.Certificate, caFile string) (*Served, error) {
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	sum, key := sha256.Sum256(leaf.Raw), sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return &Served{
		Config:      &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}},
		CAFile:      caFile,
		Fingerprint: hex.EncodeToString(sum[:]),
		PublicKey:   hex.EncodeToString(key[:]),
		NotAfter:    leaf.NotAfter,
	}, nil
}

// Expiry returns when the first certificate of a chain expires, the zero time
// for an empty one.
func Expiry(chain []*x509.Certificate) (first time.Time) {
	for _, c := range chain {
		if first.IsZero() || c.NotAfter.Before(first) {
			first = c.NotAfter
		}
	}
	return first
}

// Files that auto and Make write to their folder.
const (
	CAFile   = "ca.pem"
	CertFile = "server.pem"
	KeyFile  = "server.key"

	caKeyFile = "ca.key"
)

// Make makes a certificate authority in a folder, unless it is there, and a
// server certificate for hosts, unless there is one that holds for them and
// for at least a third of its life. With peers the certificate is also good
// for the servers to prove themselves to each other as clients.
func Make(dir string, hosts []string, peers bool) error {
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if peers {
		usage = append(usage, x509.ExtKeyUsageClientAuth)
	}
	_, err := ensure(dir, hosts, usage)
	return err
}

func auto(dir string, hosts []string) (*Served, error) {
	return ensure(dir, hosts, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth})
}

func ensure(dir string, hosts []string, usage []x509.ExtKeyUsage) (*Served, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	caFile, certFile, keyFile := filepath.Join(dir, CAFile), filepath.Join(dir, CertFile), filepath.Join(dir, KeyFile)
	ca, caKey, err := authority(caFile, filepath.Join(dir, caKeyFile))
	if err != nil {
		return nil, err
	}
	if pair, err := loadPair(certFile, keyFile); err == nil {
		leaf, err := x509.ParseCertificate(pair.Certificate[0])
		if err == nil && time.Until(leaf.NotAfter) > serverLife/3 && covers(leaf, hosts) && allows(leaf, usage) && leaf.CheckSignatureFrom(ca) == nil {
			return serve(pair, caFile)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// The key is kept when there is one, so that agents that pin it go on.
	key, err := loadOrMakeKey(keyFile)
	if err != nil {
		return nil, err
	}
	template, err := newTemplate("nightjar", serverLife)
	if err != nil {
		return nil, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = usage
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, &key.PublicKey, caKey)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	if err := writePEM(certFile, "CERTIFICATE", der, 0o644); err != nil {
		return nil, err
	}
	pair, err := loadPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	return serve(pair, caFile)
}

func covers(leaf *x509.Certificate, hosts []string) bool {
	return !slices.ContainsFunc(hosts, func(h string) bool {
		return leaf.VerifyHostname(h) != nil && !slices.Contains(leaf.DNSNames, h) // a wildcard is no host to verify
	})
}

func allows(leaf *x509.Certificate, usage []x509.ExtKeyUsage) bool {
	return !slices.ContainsFunc(usage, func(u x509.ExtKeyUsage) bool { return !slices.Contains(leaf.ExtKeyUsage, u) })
}

func authority(certFile, keyFile string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	if pair, err := loadPair(certFile, keyFile); err == nil {
		ca, err := x509.ParseCertificate(pair.Certificate[0])
		key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
		if err != nil || !ok {
			return nil, nil, fmt.Errorf("tls: %s is not a certificate authority made by Nightjar", certFile)
		}
		return ca, key, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	key, err := loadOrMakeKey(keyFile)
	if err != nil {
		return nil, nil, err
	}
	template, err := newTemplate("Nightjar certificate authority", caLife)
	if err != nil {
		return nil, nil, err
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, nil, fmt.Errorf("tls: %w", err)
	}
	if err := writePEM(certFile, "CERTIFICATE", der, 0o644); err != nil {
		return nil, nil, err
	}
	ca, err := x509.ParseCertificate(der)
	return ca, key, err
}

func newTemplate(name string, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name, Organization: []string{"Nightjar"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life)}, nil
}

func loadOrMakeKey(file string) (*ecdsa.PrivateKey, error) {
	data, err := os.ReadFile(file)
	if err == nil {
		block, _ := pem.Decode(data)
		if block == nil {
			return nil, fmt.Errorf("tls: %s holds no PEM key", file)
		}
		key, err := x509.ParseECPrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("tls: %s: %w", file, err)
		}
		return key, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("tls: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return key, writePEM(file, "EC PRIVATE KEY", der, 0o600)
}

// writePEM replaces a file as a whole, so that a crash leaves the old one.
func writePEM(file, kind string, der []byte, mode fs.FileMode) error {
	if err := durable.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode); err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	return nil
}
