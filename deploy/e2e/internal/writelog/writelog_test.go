package writelog

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"
)

// request is one entry of a log that a test writes.
type request struct {
	sector uint64
	data   []byte
	flags  uint64
}

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

// written makes a log whose superblock counts some of the requests.
func written(counted uint64, list ...request) []byte {
	word := binary.LittleEndian.AppendUint64
	pad := func(b []byte) []byte { return append(b, make([]byte, sector-len(b))...) }
	log := pad(binary.LittleEndian.AppendUint32(word(word(word(nil, magic), 1), counted), sector))
	for _, r := range list {
		n := uint64(len(r.data))
		// The length of the data is told in sectors only.
		log = append(log, pad(word(word(word(word(nil, r.sector), n/sector), r.flags), 0))...)
		log = append(log, r.data...)
	}
	return log
}

// memory is a disk.
type memory []byte

func (m memory) WriteAt(b []byte, at int64) (int, error) { return copy(m[at:], b), nil }

func TestReplayLosesWhatWasNotFlushed(t *testing.T) {
	safe, late := fill('s', block), fill('l', 64*block)
	log := written(2, request{0, safe, 0}, request{flags: flush}, request{0, late, 0}, request{8 * 64, fill('f', sector), fua})
	disk := make(memory, 65*block)
	r, err := Replay(disk, bytes.NewReader(log), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := append(append(append([]byte{}, safe...), make([]byte, 63*block)...), fill('f', sector)...)
	if !bytes.Equal(disk[:len(want)], want) {
		t.Error("the disk has not what was flushed or forced, and nothing else")
	}
	if want := (Result{Flushes: 1, Writes: 2, Lost: 64}); r != want {
		t.Errorf("result is %+v, want %+v", r, want)
	}
}

func TestReplayKeepsWholeBlocksOfLaterWrites(t *testing.T) {
	// The write begins in the middle of a block.
	log := written(1, request{flags: flush}, request{4, fill('l', 64*block), 0})
	disk := make(memory, 65*block)
	r, err := Replay(disk, bytes.NewReader(log), rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	kept := 0
	for at := 0; at < len(disk); at += block {
		from, to := max(at, 4*sector), min(at+block, 4*sector+64*block)
		switch b := disk[from:to]; {
		case bytes.Equal(b, fill('l', len(b))):
			kept++
		case !bytes.Equal(b, fill(0, len(b))):
			t.Errorf("block at %d is torn", at)
		}
	}
	if r.Kept != kept || r.Kept+r.Lost != 65 || r.Kept == 0 || r.Lost == 0 {
		t.Errorf("%d blocks are kept, result is %+v", kept, r)
	}
}

func TestReplayReadsBehindTheSuperblock(t *testing.T) {
	log := written(0, request{0, fill('a', block), 0}, request{flags: flush})
	for name, tail := range map[string][]byte{
		"end":              nil,
		"nothing yet":      make([]byte, 3*sector),
		"half a header":    make([]byte, 16),
		"header, no data":  written(0, request{0, fill('x', block), 0})[sector : 2*sector],
		"header, cut data": written(0, request{0, fill('x', block), 0})[sector : 4*sector],
	} {
		disk := make(memory, block)
		if _, err := Replay(disk, bytes.NewReader(append(log[:len(log):len(log)], tail...)), nil); err != nil || disk[0] != 'a' {
			t.Errorf("%s: error %v, disk begins with %q", name, err, disk[0])
		}
	}
}

func TestReplayRefuses(t *testing.T) {
	zeroed := written(3, request{0, fill('a', block), 0})
	for name, c := range map[string]struct {
		log  []byte
		want string
	}{
		"no log":        {make([]byte, sector), "magic number"},
		"empty":         {nil, "EOF"},
		"entries lost":  {zeroed, "1 of 3 entries"},
		"discard":       {written(1, request{0, nil, discard}), "no write and no flush"},
		"other sectors": {append(append([]byte{}, zeroed[:25]...), append([]byte{16}, zeroed[26:]...)...), "sectors have"},
	} {
		if _, err := Replay(make(memory, block), bytes.NewReader(c.log), nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want %q", name, err, c.want)
		}
	}
}
