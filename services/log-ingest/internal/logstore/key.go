package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
)

// Kind tells what a chunk holds. Chunks of different kinds have nothing to do
// with each other.
type Kind byte

// The kinds.
const (
	Events Kind = 'e'
	Alerts Kind = 'a'
)

// String names the kind.
func (k Kind) String() string {
	if k == Alerts {
		return "alert"
	}
	return "event"
}

// First bytes of the keys.
const (
	prefixIndex = 'c'
	prefixBody  = 'b'
	prefixHash  = 'u'
	prefixFresh = 'm'
)

// MaxEndpoint is the longest name of an endpoint, in bytes.
const MaxEndpoint = 255

// ErrEndpoint means that an endpoint's name is empty or longer than
// MaxEndpoint.
var ErrEndpoint = errors.New("unusable name of an endpoint")

var errKey = errors.New("malformed key of a chunk")

// chunkID names a chunk within a kind.
type chunkID struct {
	endpoint string
	hour     int64
	// first is a sequence that no message of the chunk's lines is before:
	// that of the first one of the transaction that wrote the chunk, or the
	// least of those of the chunks that were merged into it. sub tells chunks
	// of the same endpoint, hour and first apart.
	first uint64
	sub   uint16
}

// span is the time that a chunk reaches over, both ends included, as
// nanoseconds within its hour.
type span struct {
	id       chunkID
	min, max int64
	// keyed tells that the hashes of the chunk's lines are keys of the store.
	keyed bool
	// merged tells that the chunk was written by Merge, full that nothing is
	// to be merged into it.
	merged, full bool
	count        uint32
}

// Flags in the key of an index.
const (
	flagKeyed = 1 << iota
	flagMerged
	flagFull
)

func (s *span) flags() (flags byte) {
	if s.keyed {
		flags |= flagKeyed
	}
	if s.merged {
		flags |= flagMerged
	}
	if s.full {
		flags |= flagFull
	}
	return flags
}

func appendPrefix(b []byte, first byte, kind Kind, endpoint string) []byte {
	b = append(b, first, byte(kind), byte(len(endpoint)))
	return append(b, endpoint...)
}

// indexTail is the length of the part of an index's key behind the endpoint.
const indexTail = 8 + 8 + 8 + 8 + 2 + 1 + 4

// indexKey returns the key of the chunk's index. Keys of an endpoint sort by
// hour, then by first and last time.
func (s *span) indexKey(kind Kind) []byte {
	b := make([]byte, 0, 3+len(s.id.endpoint)+indexTail)
	b = appendPrefix(b, prefixIndex, kind, s.id.endpoint)
	b = appendSigned(b, s.id.hour)
	b = binary.BigEndian.AppendUint64(b, uint64(s.min))
	b = binary.BigEndian.AppendUint64(b, uint64(s.max))
	b = binary.BigEndian.AppendUint64(b, s.id.first)
	b = binary.BigEndian.AppendUint16(b, s.id.sub)
	b = append(b, s.flags())
	return binary.BigEndian.AppendUint32(b, s.count)
}

// hourKey returns what the keys of all indexes of an hour begin with.
func hourKey(kind Kind, endpoint string, h int64) []byte {
	return appendSigned(appendPrefix(make([]byte, 0, 3+len(endpoint)+8), prefixIndex, kind, endpoint), h)
}

// parseIndexKey reads the key of an index of the endpoint.
func parseIndexKey(key []byte, endpoint string) (span, error) {
	if len(key) != 3+len(endpoint)+indexTail {
		return span{}, fmt.Errorf("%w: %d bytes", errKey, len(key))
	}
	b := key[3+len(endpoint):]
	s := span{
		id: chunkID{
			endpoint: endpoint,
			hour:     signed(b),
			first:    binary.BigEndian.Uint64(b[24:]),
			sub:      binary.BigEndian.Uint16(b[32:]),
		},
		min:    int64(binary.BigEndian.Uint64(b[8:])),
		max:    int64(binary.BigEndian.Uint64(b[16:])),
		keyed:  b[34]&flagKeyed != 0,
		merged: b[34]&flagMerged != 0,
		full:   b[34]&flagFull != 0,
		count:  binary.BigEndian.Uint32(b[35:]),
	}
	if s.min < 0 || s.max < s.min || s.max >= hourLength {
		return span{}, fmt.Errorf("%w: times outside of its hour", errKey)
	}
	return s, nil
}

// bodyKey returns the key of the chunk's lines.
func (id *chunkID) bodyKey(kind Kind) []byte {
	b := make([]byte, 0, 3+len(id.endpoint)+18)
	b = appendPrefix(b, prefixBody, kind, id.endpoint)
	b = appendSigned(b, id.hour)
	b = binary.BigEndian.AppendUint64(b, id.first)
	return binary.BigEndian.AppendUint16(b, id.sub)
}

// freshKey returns the key that tells that an hour has chunks that were not
// merged.
func freshKey(kind Kind, endpoint string, h int64) []byte {
	return appendSigned(appendPrefix(make([]byte, 0, 3+len(endpoint)+8), prefixFresh, kind, endpoint), h)
}

// hashKey returns the key that tells that an endpoint's line is stored.
func hashKey(kind Kind, endpoint string, hash event.Hash) []byte {
	b := appendPrefix(make([]byte, 0, 3+len(endpoint)+len(hash)), prefixHash, kind, endpoint)
	return append(b, hash[:]...)
}
