package artifact

import (
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

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/services/api-gateway/internal/command"
)

const (
	// MaxContent is the size in bytes that the content of one upload may
	// have.
	MaxContent = 200 << 20
	// MaxBody is the size in bytes that the body of an upload's request may
	// have, inflated.
	MaxBody = MaxContent/3*4 + 1<<20
	// MaxParts is how many parts a file may have.
	MaxParts = 2048
	// MaxJoined is the size in bytes that all parts of a file together may have.
	MaxJoined = 2 << 30

	// maxDocument bounds what stands in memory of an upload, keepContent the
	// base64 of the content within.
	maxDocument = 256 << 10
	keepContent = 64 << 10
)

// ErrMalformed means that an upload is not JSON of the form that agents send.
// It says nothing of what stands in it.
var ErrMalformed = errors.New("malformed upload")

// upload is what an agent sends.
type upload struct {
	Filename  string          `json:"filename"`
	GUID      string          `json:"guid"`
	EventHash string          `json:"event-hash"`
	Content   json.RawMessage `json:"content"`
	// Chunk is the number of this part, from 1 on, and Total that of all
	// parts. Both are 0 where the file is sent in one piece.
	Chunk int `json:"chunk"`
	Total int `json:"total"`
	// draft is the content where it was too large for memory.
	draft *draft
	bytes []byte
}

// target returns which file it is, or an Invalid error.
func (u *upload) target(endpoint string) (message.ArtifactID, error) {
	id := message.ArtifactID{Endpoint: endpoint, Event: u.EventHash, File: u.Filename}
	guid, opened := strings.CutPrefix(u.GUID, "{")
	guid, closed := strings.CutSuffix(guid, "}")
	id.Process = guid
	switch {
	case !opened || !closed || !subject.IsUUID(guid):
		return id, fault.New(fault.Invalid, "guid is not a GUID in braces")
	case !message.IsEventHash(u.EventHash):
		return id, fault.New(fault.Invalid, "event-hash is not 32 to 128 hexadecimal digits")
	case !message.IsArtifactName(u.Filename):
		return id, fault.New(fault.Invalid, "filename is not a valid name of a file")
	case (u.Chunk != 0 || u.Total != 0) && (u.Chunk < 1 || u.Chunk > u.Total || u.Total > MaxParts):
		return id, fault.New(fault.Invalid, "chunk must be 1 to total, and total %d at most", MaxParts)
	}
	return id, nil
}

// Receive stores the file, or the part of one, that the body of an endpoint's
// upload holds. When it returns nil the content is on stable storage, or was
// before. Its errors are ErrMalformed, ErrStore, Invalid, TooLarge or Conflict
// of package fault, or an error of reading body.
func (s *Store) Receive(ctx context.Context, endpoint string, body io.Reader) error {
	ctx, cancel := context.WithTimeout(ctx, uploadTimeout)
	defer cancel()
	var drafts []*draft
	defer func() {
		for _, d := range drafts {
			s.discard(ctx, d)
		}
	}()
	u, err := read(body, func(content io.Reader) (*draft, error) {
		d, err := s.write(ctx, content)
		if err == nil {
			drafts = append(drafts, d)
		}
		return d, err
	})
	if err != nil {
		return err
	}
	id, err := u.target(endpoint)
	if err != nil {
		return err
	}
	d := u.draft
	if d == nil {
		if d, err = s.write(ctx, bytes.NewReader(u.bytes)); err != nil {
			return err
		}
		drafts = append(drafts, d)
	}
	if u.Total <= 1 {
		return s.name(ctx, d, id.Object())
	}
	if err := s.name(ctx, d, id.Part(u.Chunk, u.Total)); err != nil {
		return err
	}
	return s.join(ctx, id, u.Total)
}

// read reads an upload. store is given a content that is too large for
// memory; it is asked once at most.
func read(body io.Reader, store func(content io.Reader) (*draft, error)) (*upload, error) {
	src := &command.Source{R: body}
	var d *draft
	var failure error // of what is not the document's fault
	token := rand.Text()
	doc, err := command.HoistBytes(src, "content", keepContent, maxDocument, func(value io.Reader) (string, error) {
		if d != nil {
			return "", ErrMalformed // content is there twice
		}
		bounded := &limited{r: value, left: MaxContent}
		var err error
		if d, err = store(bounded); errors.Is(err, ErrStore) || fault.Is(err, fault.TooLarge) {
			failure = err
		}
		return token, err
	})
	switch {
	case src.Err != nil:
		return nil, src.Err
	case failure != nil:
		return nil, failure
	case errors.Is(err, command.ErrDocument):
		return nil, fault.New(fault.TooLarge, "upload has too much beside its content")
	case err != nil:
		return nil, ErrMalformed
	}
	u := &upload{}
	if err := json.Unmarshal(doc, u); err != nil {
		return nil, fmt.Errorf("%w: not JSON of the expected form", ErrMalformed)
	}
	switch {
	case string(u.Content) == strconv.Quote(token):
		u.draft = d
	case len(u.Content) > 0:
		if err := json.Unmarshal(u.Content, &u.bytes); err != nil {
			return nil, fmt.Errorf("%w: content is not base64", ErrMalformed)
		}
	}
	return u, nil
}

// limited refuses a content that is too large.
type limited struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader. A base64 text that breaks off is an error of its
// own, not the end of the content.
func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, fault.New(fault.TooLarge, "content is larger than %d bytes", int64(MaxContent))
	}
	if err == io.ErrUnexpectedEOF {
		err = base64.CorruptInputError(MaxContent - l.left)
	}
	return n, err
}
