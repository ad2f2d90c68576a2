package backup

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// ErrDamaged means that a file is no whole backup: cut off, changed since it
// was written, or no backup at all.
var ErrDamaged = errors.New("not a whole backup")

const (
	formatVersion = 1
	manifestName  = "manifest.json"
	filesPrefix   = "files/"
	streamsPrefix = "streams/"
	// stateName is the first entry of a snapshot of JetStream.
	stateName = "state.json"
	// partSize is how much of a stream stands in one entry of the archive,
	// whose length must be known before it is written.
	partSize = 4 << 20
	// maxManifest bounds the manifest.
	maxManifest = 16 << 20
)

// Manifest is the table of contents of a backup.
type Manifest struct {
	Format int `json:"format"`
	// Begun and Ended are when the backup was made. Everything that was
	// acknowledged before Begun is in it.
	Begun   time.Time `json:"begun"`
	Ended   time.Time `json:"ended"`
	Files   []Content `json:"files"`
	Streams []*Stream `json:"streams"`
	// Parts is how many entries the archive has before the manifest.
	Parts int `json:"parts"`
}

// Content is a file of the data folder, or one of the parts of a stream.
type Content struct {
	// Name is a path within the data folder.
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Stream is a stream of a backup.
type Stream struct {
	Name   string              `json:"name"`
	Config server.StreamConfig `json:"config"`
	// Snapshot is JetStream's snapshot, Tail what came behind it.
	Snapshot Content `json:"snapshot"`
	Tail     Content `json:"tail"`
	// FirstSeq and LastSeq are the first and last sequence, and Messages how
	// many messages there are.
	FirstSeq uint64 `json:"first_seq"`
	LastSeq  uint64 `json:"last_seq"`
	Messages uint64 `json:"messages"`
	// Consumers are the durable consumers with their positions.
	Consumers []Consumer `json:"consumers,omitempty"`
}

// Consumer is a durable consumer of a stream in a backup.
type Consumer struct {
	Name string `json:"name"`
	// AckFloor is the sequence up to which everything was acknowledged.
	AckFloor uint64 `json:"ack_floor"`
}

// sum counts and hashes what is written.
type sum struct {
	h hash.Hash
	n int64
}

func newSum() *sum { return &sum{h: sha256.New()} }

// Write never fails.
func (s *sum) Write(p []byte) (int, error) {
	s.n += int64(len(p))
	return s.h.Write(p)
}

func (s *sum) content(name string) Content {
	return Content{Name: name, Size: s.n, SHA256: hex.EncodeToString(s.h.Sum(nil))}
}

// parts writes a stream of bytes as entries of an archive.
type parts struct {
	tw   *tar.Writer
	name string
	buf  []byte
	n    *int
	sum  *sum
}

func newParts(tw *tar.Writer, name string, n *int) *parts {
	return &parts{tw: tw, name: name, buf: make([]byte, 0, partSize), n: n, sum: newSum()}
}

// Write adds bytes.
func (p *parts) Write(b []byte) (int, error) {
	all := len(b)
	for len(b) > 0 {
		n := min(len(b), cap(p.buf)-len(p.buf))
		p.buf = append(p.buf, b[:n]...)
		b = b[n:]
		if len(p.buf) == cap(p.buf) {
			if err := p.flush(); err != nil {
				return 0, err
			}
		}
	}
	return all, nil
}

// flush writes what has gathered as an entry.
func (p *parts) flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	_, _ = p.sum.Write(p.buf) // never fails
	err := writeEntry(p.tw, p.name, p.buf)
	*p.n++
	p.buf = p.buf[:0]
	return err
}

// close writes the rest and returns what was written.
func (p *parts) close() (Content, error) {
	err := p.flush()
	return p.sum.content(p.name), err
}

func writeEntry(tw *tar.Writer, name string, data []byte) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(data))}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := tw.Write(data)
	return err
}

// Verify reads a whole backup and returns its manifest. What is not as the
// manifest says is an error that wraps ErrDamaged.
func Verify(r io.Reader) (*Manifest, error) {
	tr := tar.NewReader(r)
	sums := map[string]*sum{}
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: it ends before its manifest", ErrDamaged)
		} else if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if h.Name == manifestName {
			m, err := readManifest(tr)
			if err != nil {
				return nil, err
			}
			if m.Parts != n {
				return nil, fmt.Errorf("%w: %d entries, its manifest says %d", ErrDamaged, n, m.Parts)
			}
			return m, m.check(sums)
		}
		if sums[h.Name] == nil {
			sums[h.Name] = newSum()
		}
		if _, err := io.Copy(sums[h.Name], tr); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, h.Name, err)
		}
	}
}

func readManifest(r io.Reader) (*Manifest, error) {
	var m Manifest
	if err := json.NewDecoder(io.LimitReader(r, maxManifest)).Decode(&m); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrDamaged, err)
	}
	if m.Format != formatVersion {
		return nil, fmt.Errorf("backup of format %d, this program reads format %d", m.Format, formatVersion)
	}
	return &m, nil
}

// check holds what was read against the manifest.
func (m *Manifest) check(sums map[string]*sum) error {
	contents := map[string]Content{}
	for _, f := range m.Files {
		contents[filesPrefix+f.Name] = f
	}
	for _, s := range m.Streams {
		contents[s.Snapshot.Name] = s.Snapshot
		if s.Tail.Size > 0 {
			contents[s.Tail.Name] = s.Tail
		}
	}
	for name, want := range contents {
		got := sums[name]
		if got == nil {
			return fmt.Errorf("%w: %s is missing", ErrDamaged, name)
		}
		if c := got.content(want.Name); c != want {
			return fmt.Errorf("%w: %s has other content than its manifest says", ErrDamaged, name)
		}
	}
	if len(sums) != len(contents) {
		return fmt.Errorf("%w: it holds what its manifest does not name", ErrDamaged)
	}
	return nil
}
