package message

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

// CommandState is where a command stands. It begins as queued and becomes sent
// or cancelled; a sent one becomes completed or expired, and changes no more.
type CommandState string

// The states of a command.
const (
	// CommandQueued waits for its endpoint to ask.
	CommandQueued CommandState = "queued"
	// CommandSent was handed out and has no result yet.
	CommandSent CommandState = "sent"
	// CommandCompleted has its result.
	CommandCompleted CommandState = "completed"
	// CommandExpired was handed out and not answered in time.
	CommandExpired CommandState = "expired"
	// CommandCancelled was withdrawn before it was handed out.
	CommandCancelled CommandState = "cancelled"
)

// Ended tells whether the state is final.
func (s CommandState) Ended() bool { return s != CommandQueued && s != CommandSent }

// MaxInlineBlob is the size in bytes up to which a value of a command may
// stand in its record. A larger one stands in the object store files.
const MaxInlineBlob = 256 << 10

// MaxCommandRecord bounds the JSON of a record. Whoever makes one moves values
// to the object store until it fits.
const MaxCommandRecord = 1 << 20

// CommandBlob is one value of a command: output, or the content of a file. A
// nil *CommandBlob is the value null.
type CommandBlob struct {
	// Data is the value itself, unless Object is set.
	Data []byte `json:"data,omitempty"`
	// Object names the object in store files that holds the value. It begins
	// with the endpoint's UUID and a slash, and belongs to this value alone.
	Object string `json:"object,omitempty"`
	// Size is the value's size in bytes.
	Size int64 `json:"size"`
	// JSON says that the value is the text of a JSON value, to be shown as
	// such. Otherwise it is bytes, shown as base64.
	JSON bool `json:"json,omitempty"`
}

// CommandFile is a file that is dropped on an endpoint before a command, or
// fetched from it after.
type CommandFile struct {
	UUID  string       `json:"uuid"`
	Name  string       `json:"name,omitempty"`
	Data  *CommandBlob `json:"data,omitempty"`
	Error string       `json:"error,omitempty"`
}

// CommandRecord is the value of key <endpoint uuid>.<command uuid> in bucket
// commands: a command, what has become of it, and its result.
type CommandRecord struct {
	Endpoint string `json:"endpoint"`
	UUID     string `json:"uuid"`
	// Order is the revision at which the command was queued, which orders the
	// commands of an endpoint. It is 0 in the first value of the key, whose
	// own revision it is.
	Order uint64       `json:"order,omitempty"`
	State CommandState `json:"state"`
	// Actor is who asked for it.
	Actor string `json:"actor,omitempty"`
	// Name and Args are what is to be executed and, once completed, what was.
	Name string   `json:"name,omitempty"`
	Args []string `json:"args"`
	// Drop are files for the endpoint; Fetch files of the endpoint by path.
	Drop       []CommandFile          `json:"drop,omitempty"`
	Fetch      map[string]CommandFile `json:"fetch,omitempty"`
	Stdout     *CommandBlob           `json:"stdout,omitempty"`
	Stderr     *CommandBlob           `json:"stderr,omitempty"`
	Error      string                 `json:"error,omitempty"`
	ExpectJSON bool                   `json:"expect-json,omitempty"`
	// Timeout in nanoseconds, 0 for none.
	Timeout time.Duration `json:"timeout,omitempty"`
	Created time.Time     `json:"created"`
	// TraceParent is the W3C trace context of the request that queued the
	// command, empty where no trace of it is recorded.
	TraceParent string `json:"traceparent,omitempty"`
	// Sent is when the command was handed out, Ended when its state became
	// final; zero before.
	Sent  time.Time `json:"sent,omitzero"`
	Ended time.Time `json:"ended,omitzero"`
}

// Blobs returns all values of the command that are not null.
func (r *CommandRecord) Blobs() []*CommandBlob {
	var all []*CommandBlob
	add := func(b *CommandBlob) {
		if b != nil {
			all = append(all, b)
		}
	}
	for i := range r.Drop {
		add(r.Drop[i].Data)
	}
	for _, f := range r.Fetch {
		add(f.Data)
	}
	add(r.Stdout)
	add(r.Stderr)
	return all
}

// Objects returns the names of the objects that the command refers to.
func (r *CommandRecord) Objects() []string {
	var names []string
	for _, b := range r.Blobs() {
		if b.Object != "" {
			names = append(names, b.Object)
		}
	}
	return names
}

// Outline returns the command without the values themselves, whose sizes are
// kept. It shares nothing with r that it changes.
func (r *CommandRecord) Outline() CommandRecord {
	o := *r
	strip := func(b *CommandBlob) *CommandBlob {
		if b == nil {
			return nil
		}
		return &CommandBlob{Object: b.Object, Size: b.Size, JSON: b.JSON}
	}
	o.Drop = make([]CommandFile, len(r.Drop))
	for i, f := range r.Drop {
		f.Data = strip(f.Data)
		o.Drop[i] = f
	}
	o.Fetch = make(map[string]CommandFile, len(r.Fetch))
	for path, f := range r.Fetch {
		f.Data = strip(f.Data)
		o.Fetch[path] = f
	}
	o.Stdout, o.Stderr = strip(r.Stdout), strip(r.Stderr)
	return o
}

// ErrCommandKey means that a key of bucket commands is none of a command.
var ErrCommandKey = errors.New("not the key of a command")

// CommandKey returns the key of a command in bucket commands.
func CommandKey(endpoint, command string) string { return endpoint + "." + command }

// ParseCommandKey splits a key of bucket commands. It returns ErrCommandKey
// for anything that CommandKey does not return for two UUIDs.
func ParseCommandKey(key string) (endpoint, command string, err error) {
	endpoint, command, ok := strings.Cut(key, ".")
	if !ok || !subject.IsUUID(endpoint) || !subject.IsUUID(command) {
		return "", "", fmt.Errorf("%w: %q", ErrCommandKey, key)
	}
	return endpoint, command, nil
}

// DecodeCommandRecord reads the value of a key of bucket commands, where seq
// is its revision. The record's Order is set.
func DecodeCommandRecord(data []byte, seq uint64) (CommandRecord, error) {
	var r CommandRecord
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("command record: %w", err)
	}
	switch r.State {
	case CommandQueued, CommandSent, CommandCompleted, CommandExpired, CommandCancelled:
	default:
		return r, fmt.Errorf("command record: unknown state %q", r.State)
	}
	if r.Order == 0 {
		r.Order = seq
	}
	return r, nil
}

// CommandQueueRequest queues a command for an endpoint. Values of Drop that
// are too large for a record are in the object store already; its UUIDs and
// those of the files to fetch are made by command-dispatch.
type CommandQueueRequest struct {
	Endpoint string        `json:"endpoint"`
	Actor    string        `json:"actor,omitempty"`
	Name     string        `json:"name,omitempty"`
	Args     []string      `json:"args"`
	Drop     []CommandFile `json:"drop,omitempty"`
	Fetch    []string      `json:"fetch,omitempty"`
	Timeout  time.Duration `json:"timeout,omitempty"`
}

// CommandRequest names a command of an endpoint. With CommandsGet an empty
// UUID means the newest.
type CommandRequest struct {
	Endpoint string `json:"endpoint"`
	UUID     string `json:"uuid,omitempty"`
	Actor    string `json:"actor,omitempty"`
}

// CommandReply carries a command, null when there is none. Revision is the
// position in bucket commands at which that is true.
type CommandReply struct {
	Command  *CommandRecord `json:"command"`
	Revision uint64         `json:"revision"`
}

// CommandsListRequest asks for a page of an endpoint's commands, newest
// first. Before is the Next of the page before, 0 on the first page; Limit
// the commands of this page, 0 for as many as a page holds.
type CommandsListRequest struct {
	Endpoint string `json:"endpoint"`
	Before   uint64 `json:"before,omitempty"`
	Limit    int    `json:"limit,omitempty"`
}

// CommandsListReply is a page of outlines of commands. Next is 0 on the last
// page.
type CommandsListReply struct {
	Commands []CommandRecord `json:"commands"`
	Next     uint64          `json:"next,omitempty"`
}

// CommandResultRequest brings the result of a command as its endpoint sent
// it, with large values in the object store.
type CommandResultRequest struct {
	Endpoint   string                 `json:"endpoint"`
	UUID       string                 `json:"uuid"`
	Name       string                 `json:"name,omitempty"`
	Args       []string               `json:"args"`
	Drop       []CommandFile          `json:"drop,omitempty"`
	Fetch      map[string]CommandFile `json:"fetch,omitempty"`
	Stdout     *CommandBlob           `json:"stdout,omitempty"`
	Stderr     *CommandBlob           `json:"stderr,omitempty"`
	Error      string                 `json:"error,omitempty"`
	ExpectJSON bool                   `json:"expect-json,omitempty"`
}

// CommandOutcome is what became of a result.
type CommandOutcome string

// The outcomes of a result. All but ResultAccepted leave everything as it is.
const (
	// ResultAccepted completed its command.
	ResultAccepted CommandOutcome = "accepted"
	// ResultForeign names no command of its endpoint.
	ResultForeign CommandOutcome = "foreign"
	// ResultEarly is for a command that was never handed out.
	ResultEarly CommandOutcome = "early"
	// ResultRepeated is for a command that has its result.
	ResultRepeated CommandOutcome = "repeated"
	// ResultLate is for a command that has expired.
	ResultLate CommandOutcome = "late"
)

// CommandResultReply tells what became of a result. The objects of a result
// that was not accepted are the sender's to delete.
type CommandResultReply struct {
	Outcome CommandOutcome `json:"outcome"`
}

// CommandsForget is the subject on which command-dispatch deletes all commands
// of an endpoint, with the objects they refer to. It takes a CommandRequest
// and answers a CommandsForgetReply.
const CommandsForget = "edr.commands.forget"

// CommandsForgetReply tells how many commands were deleted.
type CommandsForgetReply struct {
	Deleted int `json:"deleted"`
}
