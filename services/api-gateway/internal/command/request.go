package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/google/shlex"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// MaxDropFile is the size in bytes that a file to drop may have.
const MaxDropFile = 100 << 20

// secondsBelow is the number from which on a timeout is in nanoseconds.
const secondsBelow = 1_000_000

// CommandAPI is the body of a request for a command. Its name stands in the
// errors of package json, which clients know.
type CommandAPI struct {
	CommandLine string   `json:"command-line"`
	FetchFiles  []string `json:"fetch-files"`
	DropFiles   []string `json:"drop-files"`
	Timeout     timeout  `json:"timeout"`
}

// timeout is a number, of seconds below secondsBelow and else of nanoseconds,
// or a duration as text.
type timeout time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (t *timeout) UnmarshalJSON(b []byte) error {
	mismatch := func(value string) error {
		return &json.UnmarshalTypeError{Value: value, Type: reflect.TypeFor[time.Duration]()}
	}
	switch b[0] {
	case 'n':
		return nil
	case '"':
		var s string
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		d, err := time.ParseDuration(s)
		if err != nil {
			return mismatch("string")
		}
		*t = timeout(d)
		return nil
	case 't', 'f':
		return mismatch("bool")
	case '[':
		return mismatch("array")
	case '{':
		return mismatch("object")
	}
	var whole int64
	if err := json.Unmarshal(b, &whole); err == nil && (whole >= secondsBelow || whole <= -secondsBelow) {
		*t = timeout(whole)
		return nil
	}
	var n float64
	if err := json.Unmarshal(b, &n); err != nil || math.Abs(n) >= math.MaxInt64 {
		return mismatch("number " + string(b))
	}
	if math.Abs(n) < secondsBelow {
		n *= float64(time.Second)
	}
	*t = timeout(n)
	return nil
}

// Parse reads the body of a request for a command. Its errors are those that
// clients know.
func Parse(body []byte) (*CommandAPI, *message.CommandQueueRequest, error) {
	var api CommandAPI
	if err := json.Unmarshal(body, &api); err != nil {
		return nil, nil, fault.New(fault.Invalid, "%v", err)
	}
	if api.Timeout < 0 {
		return nil, nil, fault.New(fault.Invalid, "timeout: must not be negative")
	}
	words, err := shlex.Split(api.CommandLine)
	if err != nil {
		return nil, nil, fault.New(fault.Invalid, "Failed to create command to execute: failed to parse command line:\u00a0%v", err)
	}
	q := &message.CommandQueueRequest{Fetch: api.FetchFiles, Timeout: time.Duration(api.Timeout)}
	if len(words) > 0 {
		q.Name = words[0]
	}
	if len(words) > 1 {
		q.Args = words[1:]
	}
	return &api, q, nil
}

// ReadDrops reads the files to drop from folder dir, which no name can leave,
// neither by dots nor by links. Large ones are put into the object store.
func ReadDrops(ctx context.Context, dir string, names []string, up *Uploads) ([]message.CommandFile, error) {
	var drops []message.CommandFile
	var root *os.Root
	for _, name := range names {
		if name == "" {
			continue
		}
		if root == nil {
			var err error
			if root, err = os.OpenRoot(dir); err != nil {
				return nil, unreadable(name, err)
			}
			defer root.Close()
		}
		inside := name
		if filepath.IsAbs(name) {
			var err error
			if inside, err = relative(dir, name); err != nil {
				return nil, unreadable(name, err)
			}
		}
		blob, err := readDrop(ctx, root, inside, up)
		if err != nil {
			return nil, unreadable(name, err)
		}
		drops = append(drops, message.CommandFile{Name: filepath.Base(inside), Data: blob})
	}
	if err := Fit(ctx, up, &message.CommandRecord{Drop: drops}); err != nil {
		return nil, fault.New(fault.Unavailable, "%v", err)
	}
	return drops, nil
}

// unreadable says which file cannot be read, and why without the name that
// the operating system puts before.
func unreadable(name string, err error) error {
	if f := (*fault.Error)(nil); errors.As(err, &f) {
		return f
	}
	var path *os.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return fault.New(fault.Invalid, "Failed to create command to execute: cannot read drop file %q: %v", name, err)
}

// relative returns an absolute name relative to dir, both as they are written
// and with the links in the way to dir resolved.
func relative(dir, name string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for _, base := range []func(string) (string, error){func(s string) (string, error) { return s, nil }, filepath.EvalSymlinks} {
		d, err := base(abs)
		if err != nil {
			return "", err
		}
		if rel, err := filepath.Rel(d, name); err == nil && filepath.IsLocal(rel) {
			return rel, nil
		}
	}
	return "", errors.New("it is outside of the folder for drop files")
}

func readDrop(ctx context.Context, root *os.Root, name string, up *Uploads) (*message.CommandBlob, error) {
	// Looked at before it is opened: opening a pipe would wait for a writer.
	st, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err = f.Stat(); err != nil {
		return nil, err
	}
	bounded := io.LimitReader(f, MaxDropFile+1)
	head, err := io.ReadAll(io.LimitReader(bounded, message.MaxInlineBlob+1))
	if err != nil {
		return nil, err
	}
	if len(head) <= message.MaxInlineBlob {
		if err := whole(f, st, int64(len(head))); err != nil {
			return nil, err
		}
		return &message.CommandBlob{Data: head, Size: int64(len(head))}, nil
	}
	if st.Size() > MaxDropFile {
		return nil, fmt.Errorf("larger than %d bytes", MaxDropFile)
	}
	src := &Source{R: io.MultiReader(bytes.NewReader(head), bounded)}
	blob, err := up.Put(ctx, src)
	switch {
	case src.Err != nil:
		return nil, src.Err
	case err != nil:
		return nil, fault.New(fault.Unavailable, "%v", err)
	}
	if err := whole(f, st, blob.Size); err != nil {
		return nil, err
	}
	return blob, nil
}

// whole demands that so many bytes read are all of a file, which has not changed
// since it was looked at: one that is written meanwhile would be handed out in
// part. A writer that pauses in between is not noticed.
func whole(f *os.File, before os.FileInfo, read int64) error {
	now, err := f.Stat()
	if err == nil && (read != before.Size() || now.Size() != before.Size() || !now.ModTime().Equal(before.ModTime())) {
		err = errors.New("it changed while it was read")
	}
	return err
}

// inlineBudget is what all values of a command together may take within its
// record, in bytes.
const inlineBudget = 512 << 10

// Fit moves values of a command to the object store, the largest first, until
// the rest fits into its record.
func Fit(ctx context.Context, up *Uploads, r *message.CommandRecord) error {
	for {
		total := 0
		var largest *message.CommandBlob
		for _, b := range r.Blobs() {
			total += len(b.Data)
			if largest == nil || len(b.Data) > len(largest.Data) {
				largest = b
			}
		}
		if largest == nil || total <= inlineBudget && len(largest.Data) <= message.MaxInlineBlob {
			return nil
		}
		stored, err := up.Put(ctx, bytes.NewReader(largest.Data))
		if err != nil {
			return err
		}
		stored.JSON = largest.JSON
		*largest = *stored
	}
}

// MaxErrorText bounds, in bytes, an error that an endpoint tells.
const MaxErrorText = 32 << 10

// shorten cuts an error's text to MaxErrorText bytes.
func shorten(s string) string {
	if len(s) <= MaxErrorText {
		return s
	}
	return strings.ToValidUTF8(s[:MaxErrorText], "") + "..."
}
