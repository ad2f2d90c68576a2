package registry

import (
	"crypto/rand"
	"fmt"
)

const (
	keyLength   = 64
	keyAlphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// newUUID returns 16 random bytes as 8-4-4-4-12 hex digits, lower case. It
// sets no version bits, as agents expect none.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, by its contract
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// newKey returns keyLength characters, each drawn uniformly from the
// alphabet. Bytes at or above the largest multiple of its size are drawn
// again, as they would favour its beginning.
func newKey() string {
	const limit = 256 - 256%len(keyAlphabet)
	key := make([]byte, 0, keyLength)
	var drawn [keyLength]byte
	for len(key) < keyLength {
		_, _ = rand.Read(drawn[:]) // never fails, by its contract
		for _, b := range drawn {
			if int(b) < limit && len(key) < keyLength {
				key = append(key, keyAlphabet[int(b)%len(keyAlphabet)])
			}
		}
	}
	return string(key)
}
