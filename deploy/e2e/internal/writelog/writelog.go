// Package writelog rebuilds a disk after a power cut from the log of its
// writes.
//
// The log is that of QEMU's block driver blklogwrites, in the format of Linux'
// dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst): a
// sector with the superblock, then for each request a sector with its header,
// followed by what was written. QEMU notes a write when it is done and before
// the guest is told so, and a flush likewise, so the order of the log is the
// order in which requests ended.
package writelog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
)

const (
	magic   = 0x6a736677736872
	flush   = 1 << 0 // all writes before are on stable storage
	fua     = 1 << 1 // this write is
	discard = 1 << 2
	mark    = 1 << 3
	sector  = 512
	// block is what a disk writes wholly or not at all.
	block = 4096
)

// Result counts what a power cut did, in writes and in blocks of 4096 bytes.
type Result struct {
	// Flushes and Writes are those that were safe.
	Flushes, Writes int
	// Kept and Lost are the blocks of later writes.
	Kept, Lost int
}

type entry struct {
	offset int64 // on the disk
	at     int64 // of the data, in the log
	size   int64
	flags  uint64
}

// Replay brings a disk from its state at the begin of a log into one that a
// power cut may leave behind: everything that the last flush covers, and of
// each block that was written later the new content if keep says so, else the
// old. A keep of nil keeps none.
func Replay(disk io.WriterAt, log io.ReaderAt, keep *rand.Rand) (Result, error) {
	entries, err := read(log)
	if err != nil {
		return Result{}, fmt.Errorf("log of writes: %w", err)
	}
	safe := 0
	var r Result
	for i, e := range entries {
		if e.flags&flush != 0 {
			safe = i + 1
			r.Flushes++
		}
	}
	buf := make([]byte, block)
	for i, e := range entries {
		certain := i < safe || e.flags&fua != 0
		if certain && e.size > 0 {
			r.Writes++
		}
		// Blocks are those of the disk: a write may begin or end within one.
		for done := int64(0); done < e.size; {
			n := min(block-(e.offset+done)%block, e.size-done)
			if !certain && (keep == nil || keep.IntN(2) == 0) {
				r.Lost++
				done += n
				continue
			}
			if !certain {
				r.Kept++
			}
			if _, err := log.ReadAt(buf[:n], e.at+done); err != nil {
				return r, fmt.Errorf("log of writes: %w", err)
			}
			if _, err := disk.WriteAt(buf[:n], e.offset+done); err != nil {
				return r, err
			}
			done += n
		}
	}
	return r, nil
}

// read returns the entries of a log. The superblock counts those up to the
// last flush; what stands behind them is read as far as it is whole.
func read(log io.ReaderAt) ([]entry, error) {
	var head [32]byte
	if _, err := log.ReadAt(head[:], 0); err != nil {
		return nil, err
	}
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(head[i*8:]) }
	if word(0) != magic || word(1) != 1 {
		return nil, fmt.Errorf("its magic number is %#x and its version %d, want %#x and 1", word(0), word(1), uint64(magic))
	}
	counted := word(2)
	if size := binary.LittleEndian.Uint32(head[24:]); size != sector {
		return nil, fmt.Errorf("its sectors have %d bytes, want %d", size, sector)
	}
	var list []entry
	for pos := int64(sector); ; {
		_, err := log.ReadAt(head[:], pos)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if err != nil || head == [32]byte{} {
			break
		}
		e := entry{offset: int64(word(0)) * sector, size: int64(word(1)) * sector, flags: word(2), at: pos + sector}
		if e.flags&(discard|mark) != 0 {
			return nil, fmt.Errorf("entry %d has flags %#x: no write and no flush", len(list), e.flags)
		}
		pos = e.at + e.size
		if e.size > 0 {
			if _, err := log.ReadAt(head[:1], pos-1); err != nil {
				break
			}
		}
		list = append(list, e)
	}
	if uint64(len(list)) < counted {
		return nil, fmt.Errorf("%d of %d entries are whole", len(list), counted)
	}
	return list, nil
}
