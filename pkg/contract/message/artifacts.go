package message

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

// ArtifactsList is the subject on which log-ingest lists an endpoint's
// artifacts. It takes an ArtifactsListRequest and answers an
// ArtifactsListReply.
const ArtifactsList = "edr.artifacts.list"

// MaxArtifactName is the longest name of an artifact's file, in bytes.
const MaxArtifactName = 255

// ArtifactSHA256 is the key under which an artifact's object carries the
// SHA-256 of its content, in lower-case hex, as metadata.
const ArtifactSHA256 = "sha256"

var (
	eventHashPattern    = regexp.MustCompile(`^[[:xdigit:]]{32,128}$`)
	artifactNamePattern = regexp.MustCompile(`^[\w\s.-]+$`)
)

// IsEventHash tells whether s has the form of an event's hash: 32 to 128 hex
// digits, either case.
func IsEventHash(s string) bool { return eventHashPattern.MatchString(s) }

// IsArtifactName tells whether s may be the name of an artifact's file. Such a
// name is one segment of a path and never leads out of its folder.
func IsArtifactName(s string) bool {
	return len(s) <= MaxArtifactName && s != "." && s != ".." && artifactNamePattern.MatchString(s)
}

// ErrArtifactObject means that the name of an object is none of an artifact.
var ErrArtifactObject = errors.New("not the object of an artifact")

// ArtifactID names a file that an endpoint has sent because of an event.
type ArtifactID struct {
	Endpoint string `json:"endpoint"`
	// Process is the GUID of the event's process, without braces.
	Process string `json:"process"`
	// Event is the event's hash.
	Event string `json:"event"`
	File  string `json:"file"`
}

// Object returns the name of the artifact's object in store artifacts:
// <endpoint uuid>/<process guid>/<event hash>/<file>.
func (a ArtifactID) Object() string {
	return a.Endpoint + "/" + a.Process + "/" + a.Event + "/" + a.File
}

// Part returns the name under which a part of the artifact, one of total, is
// kept in store artifacts until all are there. It is the object of no
// artifact.
func (a ArtifactID) Part(n, total int) string {
	return fmt.Sprintf("%s/%d.%d", a.Object(), n, total)
}

// ParseArtifactObject reads what ArtifactID.Object returns for valid names. It
// returns ErrArtifactObject for anything else.
func ParseArtifactObject(name string) (ArtifactID, error) {
	s := strings.Split(name, "/")
	if len(s) != 4 || !subject.IsUUID(s[0]) || !subject.IsUUID(s[1]) || !IsEventHash(s[2]) || !IsArtifactName(s[3]) {
		return ArtifactID{}, fmt.Errorf("%w: %q", ErrArtifactObject, name)
	}
	return ArtifactID{Endpoint: s[0], Process: s[1], Event: s[2], File: s[3]}, nil
}

// Artifact is a file in store artifacts.
type Artifact struct {
	ArtifactID
	// Size of the content in bytes, SHA256 of it in hex.
	Size   uint64 `json:"size"`
	SHA256 string `json:"sha256,omitempty"`
	// Time is when the file was stored.
	Time time.Time `json:"time"`
}

// ArtifactsListRequest asks for a page of an endpoint's artifacts, in the
// order of their objects' names. After is the Next of the page before, empty
// on the first page.
type ArtifactsListRequest struct {
	Endpoint string `json:"endpoint"`
	After    string `json:"after,omitempty"`
	Removed  uint64 `json:"removed,omitempty"`
}

// ArtifactsListReply is a page of artifacts. Next is empty on the last page.
type ArtifactsListReply struct {
	Artifacts []Artifact `json:"artifacts"`
	Next      string     `json:"next,omitempty"`
}
