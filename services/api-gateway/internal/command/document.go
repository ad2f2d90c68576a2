package command

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/objects"
)

// Document is JSON text in the making, in which values of commands may still
// be in the object store. The zero value is empty.
type Document struct {
	buf    bytes.Buffer
	pieces []piece
}

// piece is text, followed by the content of an object.
type piece struct {
	text []byte
	blob *message.CommandBlob
}

// Text adds text as it is.
func (d *Document) Text(s string) { d.buf.WriteString(s) }

// Value adds a value that package json encodes. A value that it cannot encode
// is a mistake of the caller and panics.
func (d *Document) Value(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Errorf("encode %T: %w", v, err))
	}
	d.buf.Write(b)
}

func (d *Document) member(name string, v any) {
	d.Text(`"` + name + `":`)
	d.Value(v)
}

// Blob adds a value of a command: null, base64 in quotes, or a JSON value.
func (d *Document) Blob(b *message.CommandBlob) {
	switch {
	case b == nil:
		d.Text("null")
	case b.JSON && b.Object == "":
		d.Value(json.RawMessage(b.Data))
	case b.JSON:
		d.object(b)
	case b.Object == "":
		d.Text(`"` + base64.StdEncoding.EncodeToString(b.Data) + `"`)
	default:
		d.Text(`"`)
		d.object(b)
		d.Text(`"`)
	}
}

func (d *Document) object(b *message.CommandBlob) {
	d.pieces = append(d.pieces, piece{text: bytes.Clone(d.buf.Bytes()), blob: b})
	d.buf.Reset()
}

func (d *Document) file(f *message.CommandFile) {
	d.Text("{")
	d.member("uuid", f.UUID)
	d.Text(",")
	d.member("name", f.Name)
	d.Text(`,"data":`)
	d.Blob(f.Data)
	d.Text(",")
	d.member("error", f.Error)
	d.Text("}")
}

// Fetch adds the files that a command fetches, as an object by their path.
func (d *Document) Fetch(r *message.CommandRecord) {
	d.Text("{")
	paths := make([]string, 0, len(r.Fetch))
	for path := range r.Fetch {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for i, path := range paths {
		if i > 0 {
			d.Text(",")
		}
		d.Value(path)
		d.Text(":")
		f := r.Fetch[path]
		d.file(&f)
	}
	d.Text("}")
}

// Command adds a command as the admin API shows it and agents get it.
func (d *Document) Command(r *message.CommandRecord) {
	d.Text("{")
	d.member("uuid", r.UUID)
	d.Text(",")
	d.member("name", r.Name)
	d.Text(",")
	d.member("args", r.Args)
	d.Text(`,"drop":[`)
	for i := range r.Drop {
		if i > 0 {
			d.Text(",")
		}
		d.file(&r.Drop[i])
	}
	d.Text(`],"fetch":`)
	d.Fetch(r)
	d.Text(`,"stdout":`)
	d.Blob(r.Stdout)
	d.Text(`,"stderr":`)
	d.Blob(r.Stderr)
	d.Text(",")
	d.member("error", r.Error)
	d.Text(",")
	d.member("sent", !r.Sent.IsZero())
	d.Text(`,"background":false,`)
	d.member("completed", r.State.Ended())
	d.Text(",")
	d.member("expect-json", r.ExpectJSON)
	d.Text(",")
	d.member("timeout", int64(r.Timeout))
	d.Text(",")
	d.member("sent-time", r.Sent)
	d.Text("}")
}

// Inline returns the text when no part of it is in the object store.
func (d *Document) Inline() (text []byte, ok bool) {
	return d.buf.Bytes(), len(d.pieces) == 0
}

// Write writes the text with the objects in their places. After an error w
// holds a part of it.
func (d *Document) Write(ctx context.Context, store *objects.Store, w io.Writer) error {
	for _, p := range d.pieces {
		if _, err := w.Write(p.text); err != nil {
			return err
		}
		if err := copyObject(ctx, store, p.blob, w); err != nil {
			return err
		}
	}
	_, err := w.Write(d.buf.Bytes())
	return err
}

// HistoryEntry is a command as the list of an endpoint's commands shows it:
// without the contents of its values.
type HistoryEntry struct {
	UUID    string               `json:"uuid"`
	State   message.CommandState `json:"state"`
	Name    string               `json:"name"`
	Args    []string             `json:"args"`
	Drop    []HistoryFile        `json:"drop"`
	Fetch   []HistoryFile        `json:"fetch"`
	Stdout  int64                `json:"stdout-size"`
	Stderr  int64                `json:"stderr-size"`
	Error   string               `json:"error"`
	Timeout time.Duration        `json:"timeout"`
	// Operator is who asked for the command.
	Operator string    `json:"operator"`
	Created  time.Time `json:"created-time"`
	Sent     time.Time `json:"sent-time"`
	Ended    time.Time `json:"ended-time"`
}

// HistoryFile is a file of a HistoryEntry. Size is its size in bytes, where
// its content is there.
type HistoryFile struct {
	UUID  string `json:"uuid"`
	Name  string `json:"name"`
	Size  int64  `json:"size"`
	Error string `json:"error"`
}

// History returns a command as the list shows it.
func History(r *message.CommandRecord) HistoryEntry {
	e := HistoryEntry{
		UUID: r.UUID, State: r.State, Name: r.Name, Args: r.Args, Drop: []HistoryFile{}, Fetch: []HistoryFile{},
		Stdout: size(r.Stdout), Stderr: size(r.Stderr), Error: r.Error, Timeout: r.Timeout,
		Operator: r.Actor, Created: r.Created, Sent: r.Sent, Ended: r.Ended,
	}
	for _, f := range r.Drop {
		e.Drop = append(e.Drop, HistoryFile{UUID: f.UUID, Name: f.Name, Size: size(f.Data), Error: f.Error})
	}
	for path, f := range r.Fetch {
		e.Fetch = append(e.Fetch, HistoryFile{UUID: f.UUID, Name: path, Size: size(f.Data), Error: f.Error})
	}
	slices.SortFunc(e.Fetch, func(a, b HistoryFile) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	return e
}

func size(b *message.CommandBlob) int64 {
	if b == nil {
		return 0
	}
	return b.Size
}
