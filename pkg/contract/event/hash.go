package event

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Hash identifies an event among those of its endpoint: the first 128 bits of
// SHA-256 (FIPS 180-4) over all bytes of its line, without the line ending.
// Two events of an endpoint are the same exactly when their lines are. A
// cryptographic hash is used so that nobody can craft an event that passes
// for a repetition of another one.
type Hash [16]byte

// HashOf returns the hash of a line.
func HashOf(line []byte) Hash {
	sum := sha256.Sum256(line)
	return Hash(sum[:16])
}

// String returns the 32 lower-case hex digits of the hash.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ParseHash reads what String wrote.
func ParseHash(s string) (Hash, error) {
	var h Hash
	if len(s) != 2*len(h) {
		return h, fmt.Errorf("event hash %q: want %d hex digits", s, 2*len(h))
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil {
		return h, fmt.Errorf("event hash %q: %w", s, err)
	}
	return h, nil
}
