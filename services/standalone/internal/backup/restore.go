package backup

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/s2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats-server/v2/server/archive"
	"github.com/nats-io/nats.go"
)

// ErrNotEmpty means that a server holds a record already. A backup is restored
// into an empty one.
var ErrNotEmpty = errors.New("a backup is restored into a server that has none of its streams")

// ReadFile verifies the backup in a file and returns its manifest.
func ReadFile(from string) (*Manifest, error) {
	f, err := os.Open(from)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	m, err := Verify(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	return m, nil
}

// Into says where a backup is restored to.
type Into struct {
	// NC is a connection to the server that takes the streams, as the user
	// who may restore.
	NC *nats.Conn
	// Dir is the folder for keys and certificates; empty for none.
	Dir string
	// Replicas is the number of copies that the server is to keep of each
	// stream; 0 means as many as there were.
	Replicas int
}

// Restore brings back what the verified backup in a file holds. A server that
// has one of its streams is refused before anything is written. Streams come
// without their limits, which their owners set again at their start, so that
// nothing that is beyond them is lost on the way.
func Restore(ctx context.Context, from string, m *Manifest, to Into) error {
	ctx, cancel := watch(ctx, to.NC)
	defer cancel(nil)
	if err := bringBack(ctx, from, m, to); err != nil {
		return causeOr(ctx, err)
	}
	return nil
}

func bringBack(ctx context.Context, from string, m *Manifest, to Into) error {
	for _, s := range m.Streams {
		if there, err := exists(ctx, to.NC, s.Name); err != nil {
			return err
		} else if there {
			return fmt.Errorf("the server has a stream %s already: %w", s.Name, ErrNotEmpty)
		}
	}
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	tr := tar.NewReader(f)
	files := len(m.Files)
	for ; files > 0; files-- {
		if err := restoreFile(tr, to.Dir); err != nil {
			return err
		}
	}
	r := &partReader{tr: tr}
	for _, s := range m.Streams {
		if err := restoreStream(ctx, to, r, s); err != nil {
			return fmt.Errorf("stream %s: %w", s.Name, err)
		}
	}
	return nil
}

func restoreFile(tr *tar.Reader, dir string) error {
	h, err := tr.Next()
	if err != nil {
		return err
	}
	if dir == "" {
		return nil
	}
	name, ok := cutFile(h.Name)
	if !ok {
		return fmt.Errorf("%w: unexpected %s", ErrDamaged, h.Name)
	}
	path := filepath.Join(dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, tr)
	return errors.Join(err, f.Sync(), f.Close())
}

func cutFile(entry string) (string, bool) {
	name := entry[min(len(entry), len(filesPrefix)):]
	return name, entry == filesPrefix+name && belongs(name)
}

// partReader reads the entries of one name as one.
type partReader struct {
	tr   *tar.Reader
	next *tar.Header
	name string
	in   bool
}

// begin makes the reader read the entries of a name.
func (p *partReader) begin(name string) io.Reader {
	p.name, p.in = name, false
	return p
}

// Read reads from the entries of the name in hand.
func (p *partReader) Read(b []byte) (int, error) {
	for {
		if !p.in {
			if p.next == nil {
				h, err := p.tr.Next()
				if err != nil {
					return 0, err
				}
				p.next = h
			}
			if p.next.Name != p.name {
				return 0, io.EOF
			}
			p.next, p.in = nil, true
		}
		n, err := p.tr.Read(b)
		if errors.Is(err, io.EOF) {
			p.in, err = false, nil
			if n == 0 {
				continue
			}
		}
		return n, err
	}
}

// restoreStream sends a stream to the server.
func restoreStream(ctx context.Context, to Into, r *partReader, s *Stream) error {
	cfg := s.Config
	cfg.MaxAge, cfg.MaxBytes = 0, -1
	if to.Replicas > 0 {
		cfg.Replicas = to.Replicas
	}
	if cfg.Replicas > 1 { // as its owner defines it, docs/adr/0020
		cfg.AllowAtomicPublish, cfg.Compression = false, server.NoCompression
	}
	state := server.StreamState{Msgs: s.Messages, FirstSeq: s.FirstSeq, LastSeq: s.LastSeq, Consumers: len(s.Consumers)}
	pr, pw := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := s.rewrite(pw, r)
		_ = pw.CloseWithError(err) // never fails
		written <- err
	}()
	last, err := restore(ctx, to.NC, &cfg, state, pr)
	_ = pr.Close() // never fails
	if werr := <-written; werr != nil && !errors.Is(werr, io.ErrClosedPipe) {
		err = errors.Join(err, werr)
	}
	if err != nil {
		return err
	}
	if last != s.LastSeq {
		return fmt.Errorf("it ends at sequence %d, want %d", last, s.LastSeq)
	}
	return nil
}

// rewrite writes the snapshot with what came behind it as one snapshot.
func (s *Stream) rewrite(w io.Writer, r *partReader) error {
	enc := s2.NewWriter(w)
	aw := archive.NewWriter(enc)
	if err := s.copyEntries(aw, r.begin(s.Snapshot.Name)); err != nil {
		return err
	}
	if s.Tail.Size > 0 {
		if err := s.copyEntries(aw, r.begin(s.Tail.Name)); err != nil {
			return err
		}
	}
	if err := aw.WriteHeader(&archive.Header{}); err != nil {
		return err
	}
	return enc.Close()
}

// copyEntries copies the entries of a part up to the mark of its end. The
// state is that of the whole, and consumers that are not durable are left out:
// nobody is there any more who reads from them.
func (s *Stream) copyEntries(aw *archive.Writer, r io.Reader) error {
	ar := archive.NewReader(s2.NewReader(r))
	for {
		h, err := ar.Next()
		if err != nil {
			return err
		}
		switch {
		case h.Name == "" && h.Sequence == 0:
			_, err := io.Copy(io.Discard, r)
			return err
		case h.Name == stateName && h.Sequence == 0:
			if err := s.copyState(aw, h, ar); err != nil {
				return err
			}
		case h.Sequence == 0 && !s.durable(h.Name):
		default:
			if err := aw.WriteHeader(h); err != nil {
				return err
			}
			if _, err := io.Copy(aw, ar); err != nil {
				return err
			}
		}
	}
}

func (s *Stream) durable(entry string) bool {
	for _, c := range s.Consumers {
		if entry == "consumers/"+c.Name {
			return true
		}
	}
	return false
}

func (s *Stream) copyState(aw *archive.Writer, h *archive.Header, r io.Reader) error {
	var state map[string]any
	d := json.NewDecoder(r)
	d.UseNumber()
	if err := d.Decode(&state); err != nil {
		return fmt.Errorf("%s: %w", stateName, err)
	}
	state["last_seq"], state["messages"], state["consumer_count"] = s.LastSeq, s.Messages, len(s.Consumers)
	text, err := json.Marshal(state)
	if err != nil {
		return err
	}
	h.PayloadSize = int64(len(text))
	return writeMessage(aw, h, text)
}

// SyncAll brings all that is below a folder to stable storage.
func SyncAll(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() && !d.Type().IsRegular() {
			return nil
		}
		return syncFile(path)
	})
}
