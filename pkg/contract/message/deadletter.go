package message

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

// Reasons for which a line becomes a dead letter.
const (
	ReasonNotJSON   = "not-json"
	ReasonNotObject = "not-object"
	ReasonTooDeep   = "too-deep"
	ReasonTooLong   = "too-long"
	ReasonPoison    = "poison"
)

// DeadLetterHead is how much of a line that is too long is kept.
const DeadLetterHead = 64 << 10

// DeadLetter is a line that is no event, or one that could not be worked on.
type DeadLetter struct {
	Endpoint string
	Reason   string
	// Detail says more than Reason, for a reader.
	Detail   string
	Received time.Time
	// Line is the line, or its head when Size is larger.
	Line []byte
	// Size is the length of the whole line in bytes.
	Size int64
	// SHA256 is the hash of the whole line.
	SHA256 [sha256.Size]byte
	// Generation is that of the endpoint's last removal, 0 without one.
	Generation uint64
}

// Msg makes the message on edr.deadletter.<reason>.<endpoint>. The same line
// of the same endpoint and generation has the same message id.
func (d *DeadLetter) Msg() *nats.Msg {
	m := nats.NewMsg(subject.DeadLetter(d.Reason, d.Endpoint))
	m.Data = d.Line
	sum := hex.EncodeToString(d.SHA256[:])
	id := d.Endpoint + ":" + d.Reason + ":" + sum
	if d.Generation > 0 {
		id += ":" + strconv.FormatUint(d.Generation, 10)
	}
	m.Header.Set(nats.MsgIdHdr, id)
	m.Header.Set(HeaderEndpoint, d.Endpoint)
	m.Header.Set(HeaderReason, d.Reason)
	m.Header.Set(HeaderHash, sum)
	m.Header.Set(HeaderSize, strconv.FormatInt(d.Size, 10))
	m.Header.Set(HeaderReceived, d.Received.UTC().Format(time.RFC3339Nano))
	setUnlessEmpty(m.Header, "Nightjar-Detail", d.Detail)
	setGeneration(m.Header, d.Generation)
	return m
}
