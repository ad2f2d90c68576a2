package message

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

const formatIntake = "1"

// Joined are whole lines of one endpoint, each ended by a newline, and what is
// known of them.
type Joined struct {
	// Batch says whose the lines are. Its Lines and Receipts are not used.
	Batch
	// Text are the lines, Count of them.
	Text  []byte
	Count int
}

// IntakeMsg makes the message in which a gateway stores batches of any
// endpoints together. Their TraceParent is left out.
func IntakeMsg(gateway string, batches []Joined) *nats.Msg {
	size := 0
	for i := range batches {
		b := &batches[i]
		size += len(b.Endpoint) + len(b.Hostname) + len(b.IP) + len(b.Text) + 6*binary.MaxVarintLen64
	}
	data := make([]byte, 0, size)
	for i := range batches {
		b := &batches[i]
		data = appendText(data, b.Endpoint)
		data = appendText(data, b.Hostname)
		data = appendText(data, b.IP)
		data = binary.AppendUvarint(data, b.Generation)
		data = binary.AppendVarint(data, b.Received.UnixMicro())
		data = binary.AppendUvarint(data, uint64(b.Count))
		data = appendText(data, b.Text)
	}
	m := nats.NewMsg(subject.Intake(gateway))
	m.Data = data
	m.Header.Set(HeaderFormat, formatIntake)
	return m
}

func appendText[T string | []byte](dst []byte, text T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(text))), text...)
}

// ParseIntake reads a message of the stream INTAKE. The batches refer to data.
func ParseIntake(h nats.Header, data []byte) ([]Joined, error) {
	if f := h.Get(HeaderFormat); f != formatIntake {
		return nil, fmt.Errorf("intake of unknown format %q", f)
	}
	var batches []Joined
	for r := (reader{rest: data}); len(r.rest) > 0; {
		var b Joined
		b.Endpoint, b.Hostname, b.IP = string(r.text()), string(r.text()), string(r.text())
		b.Generation = r.number()
		b.Received = time.UnixMicro(r.signed()).UTC()
		count := r.number()
		b.Text = r.text()
		switch {
		case r.broken:
			return nil, errors.New("intake: cut off")
		case !subject.IsUUID(b.Endpoint):
			return nil, fmt.Errorf("intake: %q is no endpoint", b.Endpoint)
		case count == 0 || count > MaxBatchEvents:
			return nil, fmt.Errorf("intake: a batch of %d lines", count)
		}
		b.Count = int(count)
		batches = append(batches, b)
	}
	return batches, nil
}

// reader takes values from the head of rest. After the first that is not there
// it is broken.
type reader struct {
	rest   []byte
	broken bool
}

func (r *reader) number() uint64 {
	v, n := binary.Uvarint(r.rest)
	r.skip(n)
	return v
}

func (r *reader) signed() int64 {
	v, n := binary.Varint(r.rest)
	r.skip(n)
	return v
}

func (r *reader) skip(n int) {
	if n <= 0 {
		r.rest, r.broken = nil, true
		return
	}
	r.rest = r.rest[n:]
}

func (r *reader) text() []byte {
	size := r.number()
	if size > uint64(len(r.rest)) {
		r.rest, r.broken = nil, true
		return nil
	}
	text := r.rest[:size:size]
	r.rest = r.rest[size:]
	return text
}

// Join makes one message of the stream EVENTS of batches of one endpoint. Their
// Hostname, IP and Generation are the same, and together they have no more
// than [MaxBatchEvents] lines. Each line keeps its time of receipt.
func Join(parts []Joined) *nats.Msg {
	b := parts[0].Batch
	if len(parts) == 1 {
		return b.BatchMsg(parts[0].Text, parts[0].Count)
	}
	size, count := 0, 0
	for i := range parts {
		size += len(parts[i].Text)
	}
	text := make([]byte, 0, size)
	b.Receipts = make([]Receipt, 0, len(parts))
	for i := range parts {
		text = append(text, parts[i].Text...)
		count += parts[i].Count
		b.Receipts = append(b.Receipts, Receipt{Until: count, At: parts[i].Received})
	}
	return b.BatchMsg(text, count)
}
