package command

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/text/runes"
	"golang.org/x/text/transform"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// ErrMalformed means that a result is not what an agent sends. It says
// nothing of what stands in it.
var ErrMalformed = errors.New("malformed result")

// keepString is the length in bytes up to which strings of a result stay in
// memory: what an inline value may have in base64.
const keepString = (message.MaxInlineBlob + 2) / 3 * 4

// agentFile is a file within a result. Data is null or base64.
type agentFile struct {
	UUID  string          `json:"uuid"`
	Name  string          `json:"name"`
	Data  json.RawMessage `json:"data"`
	Error string          `json:"error"`
}

// agentResult is a command as an agent sends it back. JSON is the output as a
// value, which newer agents send beside it as text.
type agentResult struct {
	UUID       string               `json:"uuid"`
	Name       string               `json:"name"`
	Args       []string             `json:"args"`
	Drop       []agentFile          `json:"drop"`
	Fetch      map[string]agentFile `json:"fetch"`
	Stdout     json.RawMessage      `json:"stdout"`
	JSON       json.RawMessage      `json:"json"`
	Stderr     json.RawMessage      `json:"stderr"`
	Error      string               `json:"error"`
	ExpectJSON bool                 `json:"expect-json"`
}

// reading is one result being read.
type reading struct {
	up *Uploads
	// nonce begins the texts that stand for hoisted values. It is random, so
	// that no agent can send one.
	nonce string
	blobs []*message.CommandBlob
	// storeErr is the error of the object store, as opposed to the result's.
	storeErr error
}

// ReadResult reads a result from an agent's request. Values over
// message.MaxInlineBlob go to the object store as they come in; for what has
// to be held in memory, grow is asked first. The caller discards the uploads
// when the result is not accepted, or on an error: ErrMalformed, an error of
// grow, of r, or of the object store.
func ReadResult(ctx context.Context, r io.Reader, up *Uploads, grow func(n int) error) (*message.CommandResultRequest, error) {
	in := &reading{up: up, nonce: rand.Text()}
	src := &Source{R: r}
	var growErr error
	h := &hoister{
		r:    bufio.NewReaderSize(transform.NewReader(src, runes.ReplaceIllFormed()), 64<<10),
		keep: keepString,
		wanted: func(member string) bool {
			return strings.EqualFold(member, "data") || strings.EqualFold(member, "stdout") || strings.EqualFold(member, "stderr")
		},
		take: func(member string, raw io.Reader) (string, error) { return in.take(ctx, member, raw) },
		grow: func(n int) error {
			growErr = grow(n)
			return growErr
		},
	}
	doc, err := h.run()
	var q *message.CommandResultRequest
	if err == nil {
		q, err = in.decode(doc)
	}
	switch {
	case src.Err != nil:
		return nil, src.Err
	case growErr != nil:
		return nil, growErr
	case in.storeErr != nil:
		return nil, in.storeErr
	case err != nil:
		return nil, fmt.Errorf("%w: %s", ErrMalformed, reason(err))
	}
	if err := fitResult(ctx, up, q); err != nil {
		return nil, err
	}
	return q, nil
}

// reason names an error without any content of the result.
func reason(err error) string {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	var encoding base64.CorruptInputError
	switch {
	case errors.As(err, &syntax):
		return "not JSON at offset " + strconv.FormatInt(syntax.Offset, 10)
	case errors.As(err, &kind):
		return "member " + strconv.Quote(kind.Struct+"."+kind.Field) + " has the wrong type"
	case errors.As(err, &encoding):
		return "a value is not base64"
	}
	return "not JSON"
}

// take puts a long string into the object store: stdout as the JSON that it
// is, everything else as the bytes that it stands for.
func (in *reading) take(ctx context.Context, member string, raw io.Reader) (string, error) {
	isJSON := strings.EqualFold(member, "stdout")
	var value io.Reader
	if isJSON {
		value = io.MultiReader(strings.NewReader(`"`), raw, strings.NewReader(`"`))
	} else {
		value = base64.NewDecoder(base64.StdEncoding, &plainText{r: bufio.NewReaderSize(raw, 32<<10)})
	}
	src := &Source{R: value}
	blob, err := in.up.Put(ctx, src)
	if src.Err != nil {
		return "", src.Err
	} else if err != nil {
		in.storeErr = err
		return "", err
	}
	blob.JSON = isJSON
	in.blobs = append(in.blobs, blob)
	return in.nonce + "." + strconv.Itoa(len(in.blobs)-1), nil
}

// hoisted returns the blob that a string stands for, nil when it stands for
// itself.
func (in *reading) hoisted(value json.RawMessage) *message.CommandBlob {
	index, ok := strings.CutPrefix(strings.Trim(string(value[:min(len(value), 64)]), `"`), in.nonce+".")
	if !ok {
		return nil
	}
	i, err := strconv.Atoi(index)
	if err != nil || i < 0 || i >= len(in.blobs) {
		return nil
	}
	return in.blobs[i]
}

func isNull(value json.RawMessage) bool { return len(value) == 0 || string(value) == "null" }

// bytes returns a value that is null or base64.
func (in *reading) bytes(value json.RawMessage) (*message.CommandBlob, error) {
	if isNull(value) {
		return nil, nil
	}
	if b := in.hoisted(value); b != nil {
		return b, nil
	}
	var data []byte
	if err := json.Unmarshal(value, &data); err != nil {
		return nil, err
	}
	return &message.CommandBlob{Data: data, Size: int64(len(data))}, nil
}

// value returns a value that may be any JSON.
func (in *reading) value(value json.RawMessage) (*message.CommandBlob, error) {
	if isNull(value) {
		return nil, nil
	}
	if b := in.hoisted(value); b != nil {
		return b, nil
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, value); err != nil {
		return nil, err
	}
	return &message.CommandBlob{Data: compact.Bytes(), Size: int64(compact.Len()), JSON: true}, nil
}

func (in *reading) file(f agentFile) (message.CommandFile, error) {
	data, err := in.bytes(f.Data)
	return message.CommandFile{UUID: f.UUID, Name: f.Name, Data: data, Error: shorten(f.Error)}, err
}

func (in *reading) decode(doc []byte) (*message.CommandResultRequest, error) {
	var a agentResult
	if err := json.Unmarshal(doc, &a); err != nil {
		return nil, err
	}
	q := &message.CommandResultRequest{UUID: a.UUID, Name: a.Name, Args: a.Args, Error: shorten(a.Error), ExpectJSON: a.ExpectJSON}
	for _, f := range a.Drop {
		file, err := in.file(f)
		if err != nil {
			return nil, err
		}
		q.Drop = append(q.Drop, file)
	}
	for path, f := range a.Fetch {
		file, err := in.file(f)
		if err != nil {
			return nil, err
		}
		if q.Fetch == nil {
			q.Fetch = make(map[string]message.CommandFile, len(a.Fetch))
		}
		q.Fetch[path] = file
	}
	stdout := a.Stdout
	if a.ExpectJSON && !isNull(a.JSON) {
		stdout = a.JSON
	}
	var err error
	if q.Stdout, err = in.value(stdout); err != nil {
		return nil, err
	}
	q.Stderr, err = in.bytes(a.Stderr)
	return q, err
}

func fitResult(ctx context.Context, up *Uploads, q *message.CommandResultRequest) error {
	return Fit(ctx, up, &message.CommandRecord{Drop: q.Drop, Fetch: q.Fetch, Stdout: q.Stdout, Stderr: q.Stderr})
}

// ResultObjects returns the names of the objects that a result refers to.
func ResultObjects(q *message.CommandResultRequest) []string {
	r := message.CommandRecord{Drop: q.Drop, Fetch: q.Fetch, Stdout: q.Stdout, Stderr: q.Stderr}
	return r.Objects()
}
