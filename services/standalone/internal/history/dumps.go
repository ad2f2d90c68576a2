package history

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

const (
	// wholeDump is the size up to which a dump is sent in one piece, and
	// that of the parts of a larger one.
	wholeDump = 64 << 20
	// maxDump is the size of the largest file that the manager takes.
	maxDump = 2 << 30
)

// dump is a file and the place that it has.
type dump struct {
	file
	process, event, name string
}

// dumpOf reads the place of a file from its path: {guid}/hash/name in the
// folder of its endpoint.
func dumpOf(f file) (dump, error) {
	event, name := filepath.Split(f.path)
	process, hash := filepath.Split(filepath.Clean(event))
	guid := filepath.Base(process)
	d := dump{file: f, process: strings.TrimSuffix(strings.TrimPrefix(guid, "{"), "}"), event: hash, name: name}
	switch {
	case "{"+d.process+"}" != guid || !subject.IsUUID(d.process) || !message.IsEventHash(hash):
		return d, errors.New("does not stand in {process guid}/event hash/")
	case !message.IsArtifactName(name):
		return d, errors.New("not a valid name of a file")
	case f.size > maxDump:
		return d, fmt.Errorf("has %d bytes, at most %d are taken", f.size, int64(maxDump))
	}
	return d, nil
}

// importDumps imports the dumps of one endpoint.
func (r *run) importDumps(ctx context.Context, f *found) error {
	path := "/endpoints/" + f.endpoint + "/artifacts"
	known := map[string]bool{}
	err := list(ctx, r.api, path, func(a struct {
		Process string `json:"process-guid"`
		Event   string `json:"event-hash"`
		Files   []string
	}) {
		for _, name := range a.Files {
			known[a.Process+"/"+a.Event+"/"+name] = true
		}
	})
	if err != nil {
		return err
	}
	for _, file := range f.files {
		d, err := dumpOf(file)
		if err == nil {
			err = r.sendDump(ctx, path, d)
		} else {
			err = fmt.Errorf("%w: %w", errRefused, err)
		}
		var reading *sourceError
		switch {
		case err == nil && known[d.process+"/"+d.event+"/"+d.name]:
			r.count.identical++
		case err == nil:
			r.count.dumps++
			r.count.dumpBytes += d.size
		case errors.Is(err, errConflict):
			r.count.conflicts++
			r.say("%s: not imported: %v", file.path, err)
		case errors.Is(err, errRefused):
			r.count.refused++
			r.say("%s: not imported: %v", file.path, err)
		case errors.As(err, &reading):
			r.unreadable(file.path, reading.error)
		default:
			return fmt.Errorf("%s: %w", file.path, err)
		}
		r.progress.done(file.size)
	}
	return nil
}

// sendDump sends a dump, in parts if it is large.
func (r *run) sendDump(ctx context.Context, path string, d dump) error {
	f, err := os.Open(d.path)
	if err != nil {
		return &sourceError{err}
	}
	defer f.Close()
	total := max(1, int((d.size+r.part-1)/r.part))
	for n := range total {
		from := int64(n) * r.part
		size := min(d.size-from, r.part)
		head, err := d.head(n+1, total)
		if err != nil {
			return err
		}
		err = r.api.post(ctx, path, false, func() (io.ReadCloser, error) {
			return upload(head, io.NewSectionReader(f, from, size), size), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// head is the beginning of an upload up to its content.
func (d dump) head(part, total int) ([]byte, error) {
	members := map[string]any{"filename": d.name, "guid": "{" + d.process + "}", "event-hash": d.event}
	if total > 1 {
		members["chunk"], members["total"] = part, total
	}
	text, err := json.Marshal(members)
	if err != nil {
		return nil, fmt.Errorf("encode upload: %w", err)
	}
	return append(text[:len(text)-1], `,"content":"`...), nil
}

// upload returns the body that uploads size bytes, encoded while it is read.
func upload(head []byte, content io.Reader, size int64) io.ReadCloser {
	out, in := io.Pipe()
	go func() {
		_, err := in.Write(head)
		if err == nil {
			enc := base64.NewEncoder(base64.StdEncoding, in)
			if err = copyAll(enc, content, size); err == nil {
				err = enc.Close()
			}
		}
		if err == nil {
			_, err = io.WriteString(in, `"}`)
		}
		in.CloseWithError(err)
	}()
	return out
}

// copyAll copies exactly size bytes. An error of reading is a *sourceError.
func copyAll(w io.Writer, r io.Reader, size int64) error {
	buf := make([]byte, 256<<10)
	for size > 0 {
		n, err := r.Read(buf[:min(int64(len(buf)), size)])
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			size -= int64(n)
		}
		switch {
		case size == 0:
		case errors.Is(err, io.EOF):
			return &sourceError{io.ErrUnexpectedEOF}
		case err != nil:
			return &sourceError{err}
		}
	}
	return nil
}

// sourceError is an error of reading a file that is to be imported.
type sourceError struct{ error }

// Unwrap returns the error itself.
func (e *sourceError) Unwrap() error { return e.error }
