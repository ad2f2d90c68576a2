package message

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

// Headers of messages.
const (
	HeaderFormat      = "Nightjar-Format"
	HeaderEndpoint    = "Nightjar-Endpoint"
	HeaderHostname    = "Nightjar-Hostname"
	HeaderIP          = "Nightjar-Ip"
	HeaderCount       = "Nightjar-Count"
	HeaderReceived    = "Nightjar-Received"
	HeaderReceipts    = "Nightjar-Receipts"
	HeaderTimes       = "Nightjar-Times"
	HeaderCriticality = "Nightjar-Criticality"
	HeaderSignatures  = "Nightjar-Signatures"
	HeaderOrigin      = "Nightjar-Origin"
	HeaderTime        = "Nightjar-Time"
	HeaderTimed       = "Nightjar-Timed"
	HeaderHash        = "Nightjar-Hash"
	HeaderRules       = "Nightjar-Rules"
	HeaderCut         = "Nightjar-Signatures-Cut"
	HeaderAdded       = "Nightjar-Added"
	HeaderSent        = "Nightjar-Sent"
	HeaderReason      = "Nightjar-Reason"
	HeaderSize        = "Nightjar-Size"
	HeaderGeneration  = "Nightjar-Generation"
	HeaderTraceParent = "traceparent"
)

// Bounds of a batch, before compression. A line longer than MaxBatchBytes
// makes a batch of its own.
const (
	MaxBatchEvents = 500
	MaxBatchBytes  = 768 << 10
	// MaxLine is the longest line that can be an event.
	MaxLine = 4 << 20
)

const formatBatch = "1"

// Batch is what one message on edr.events carries: whole lines of one
// endpoint in the order they were received.
type Batch struct {
	// Endpoint is the UUID of the endpoint.
	Endpoint string
	// Hostname and IP are the endpoint's when the batch was received.
	Hostname, IP string
	// Received is the time of receipt, the time of events that have none. Of
	// lines that were joined from several requests it is the first one's, and
	// Receipts has all of them, in the order of the lines. Each is exact to the
	// microsecond.
	Received time.Time
	Receipts []Receipt
	// TraceParent is the W3C trace context of the request, empty when nothing is
	// traced.
	TraceParent string
	// Generation is that of the endpoint's last removal, 0 without one.
	Generation uint64
	// Times are the times of the events, of each line the Time of what
	// [event.Scan] finds, so that who reads the batch need not look for it. Small
	// batches, and those that another program wrote, have none.
	Times []time.Time
	// Lines are the events, without line endings.
	Lines [][]byte
}

// Receipt says when lines of a batch were received: those before line Until,
// counted from 0, that belong to no earlier receipt.
type Receipt struct {
	Until int
	At    time.Time
}

// ReceivedAt returns when a line of the batch was received.
func (b *Batch) ReceivedAt(line int) time.Time {
	i := sort.Search(len(b.Receipts), func(i int) bool { return line < b.Receipts[i].Until })
	if i == len(b.Receipts) {
		return b.Received
	}
	return b.Receipts[i].At
}

// encodeReceipts makes the value of HeaderReceipts: for each receipt the number
// of its lines and the microseconds since the one before, since from for the
// first, as varints in base64.
func encodeReceipts(receipts []Receipt, from time.Time) string {
	var b []byte
	for lines, last, i := 0, from.UnixMicro(), 0; i < len(receipts); i++ {
		at := receipts[i].At.UnixMicro()
		b = binary.AppendVarint(binary.AppendUvarint(b, uint64(receipts[i].Until-lines)), at-last)
		lines, last = receipts[i].Until, at
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// decodeReceipts reads what encodeReceipts made for a batch of count lines.
func decodeReceipts(text string, from time.Time, count int) ([]Receipt, error) {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return nil, err
	}
	var receipts []Receipt
	for lines, last := 0, from.UnixMicro(); len(b) > 0; {
		more, n := binary.Uvarint(b)
		since, k := binary.Varint(b[max(n, 0):])
		if n <= 0 || k <= 0 || more == 0 || more > uint64(count-lines) {
			return nil, errors.New("they do not fit the lines")
		}
		b = b[n+k:]
		lines, last = lines+int(more), last+since
		receipts = append(receipts, Receipt{Until: lines, At: time.UnixMicro(last).UTC()})
	}
	return receipts, nil
}

// compressor is a zstd encoder with memory for what it makes.
type compressor struct {
	enc *zstd.Encoder
	buf []byte
}

var (
	compressors = sync.Pool{New: func() any {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
		if err != nil {
			panic(err) // only for impossible options
		}
		return &compressor{enc: e}
	}}
	decoders = sync.Pool{New: func() any {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
		if err != nil {
			panic(err)
		}
		return d
	}}
)

// Compress appends the zstd form of src to dst.
func Compress(dst, src []byte) []byte {
	c := compressors.Get().(*compressor)
	defer compressors.Put(c)
	return c.enc.EncodeAll(src, dst)
}

// Compressed returns the zstd form of src in memory of its own, no more than that takes.
func Compressed(src []byte) []byte {
	c := compressors.Get().(*compressor)
	defer compressors.Put(c)
	buf := c.enc.EncodeAll(src, c.buf[:0])
	if c.buf = buf; cap(buf) > MaxBatchBytes {
		c.buf = nil
	}
	return bytes.Clone(buf)
}

// Decompress appends to dst what Compress made src of. It refuses what would
// grow beyond 64 MiB.
func Decompress(dst, src []byte) ([]byte, error) {
	d := decoders.Get().(*zstd.Decoder)
	defer decoders.Put(d)
	out, err := d.DecodeAll(src, dst)
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return out, nil
}

// maxStored is the size in bytes up to which the lines of a batch are not
// compressed by themselves: the stream compresses what stands next to each
// other, and finds much more to save in that than in a few lines.
const maxStored = 8 << 10

// store appends src to dst as a zstd frame of one raw block, as RFC 8878
// describes them. src has 256 bytes at least and 64 KiB at most.
func store(dst, src []byte) []byte {
	dst = append(dst, 0x28, 0xb5, 0x2f, 0xfd) // the magic number
	dst = append(dst, 1<<6|1<<5)              // the size of the content follows in two bytes, less 256
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(src)-256))
	last := uint32(len(src))<<3 | 1
	dst = append(dst, byte(last), byte(last>>8), byte(last>>16))
	return append(dst, src...)
}

// Stored tells whether the lines of a batch stand in its message as they are.
func Stored(data []byte) bool {
	var h zstd.Header
	return h.Decode(data) == nil && h.FirstBlock.OK && !h.FirstBlock.Compressed
}

// Trace returns the W3C trace context of the request that a line came with:
// TraceParent or, without one, that of a trace which is not recorded, the same
// for all batches of a request, so that it need not be stored with each.
func (b *Batch) Trace(line int) string {
	if b.TraceParent != "" {
		return b.TraceParent
	}
	sum := sha256.Sum256(b.ReceivedAt(line).UTC().AppendFormat([]byte(b.Endpoint), time.RFC3339Nano))
	return fmt.Sprintf("00-%x-%x-00", sum[:16], sum[16:24])
}

// BatchMsg makes the message of count lines that stand in joined, each ended
// by a newline; b.Lines is not used. The message id depends on endpoint,
// generation and content alone, so the same batch published again within the
// stream's window is recognised. Headers are kept short, for with small batches
// they take more of the stream than the events do.
func (b *Batch) BatchMsg(joined []byte, count int) *nats.Msg {
	var data []byte
	if len(joined) >= 256 && len(joined) <= maxStored {
		data = store(make([]byte, 0, len(joined)+16), joined)
	} else {
		data = Compressed(joined)
	}
	id := sha256.New()
	id.Write([]byte(b.Endpoint))
	if b.Generation > 0 {
		id.Write(binary.BigEndian.AppendUint64(nil, b.Generation))
	}
	id.Write(data)
	m := nats.NewMsg(subject.Events(b.Endpoint))
	m.Data = data
	m.Header.Set(nats.MsgIdHdr, base64.RawURLEncoding.EncodeToString(id.Sum(nil)[:16]))
	m.Header.Set(HeaderFormat, formatBatch)
	m.Header.Set(HeaderCount, strconv.Itoa(count))
	m.Header.Set(HeaderReceived, b.Received.UTC().Format(time.RFC3339Nano))
	if len(b.Receipts) > 0 {
		m.Header.Set(HeaderReceipts, encodeReceipts(b.Receipts, b.Received))
	}
	if len(joined) > maxStored && len(b.Times) == count {
		if times := timesHeader(b.Times); times != "" {
			m.Header.Set(HeaderTimes, times)
		}
	}
	setUnlessEmpty(m.Header, HeaderHostname, b.Hostname)
	setUnlessEmpty(m.Header, HeaderIP, b.IP)
	setUnlessEmpty(m.Header, HeaderTraceParent, b.TraceParent)
	setGeneration(m.Header, b.Generation)
	return m
}

// ParseBatch reads a message of the stream EVENTS. buf is reused for the
// lines, which stay valid as long as the caller leaves it alone; the grown
// buffer is returned.
func ParseBatch(subj string, h nats.Header, data, buf []byte) (Batch, []byte, error) {
	b := Batch{
		Endpoint: subject.Endpoint(subj), Hostname: h.Get(HeaderHostname), IP: h.Get(HeaderIP),
		TraceParent: h.Get(HeaderTraceParent), Generation: GenerationOf(h),
	}
	if f := h.Get(HeaderFormat); f != formatBatch {
		return b, buf, fmt.Errorf("batch of unknown format %q", f)
	}
	received, err := time.Parse(time.RFC3339Nano, h.Get(HeaderReceived))
	if err != nil {
		return b, buf, fmt.Errorf("batch: time of receipt: %w", err)
	}
	b.Received = received
	count, err := strconv.Atoi(h.Get(HeaderCount))
	if err != nil || count < 0 || count > MaxBatchEvents {
		return b, buf, fmt.Errorf("batch: bad count %q", h.Get(HeaderCount))
	}
	if text := h.Get(HeaderReceipts); text != "" {
		if b.Receipts, err = decodeReceipts(text, received, count); err != nil {
			return b, buf, fmt.Errorf("batch: times of receipt: %w", err)
		}
	}
	if text := h.Get(HeaderTimes); text != "" {
		if b.Times, err = parseTimesHeader(text, count); err != nil {
			return b, buf, fmt.Errorf("batch: times of the events: %w", err)
		}
	}
	out, err := Decompress(buf[:0], data)
	if err != nil {
		return b, buf, fmt.Errorf("batch: %w", err)
	}
	b.Lines = make([][]byte, 0, count)
	for rest := out; len(rest) > 0; {
		line, after, found := bytes.Cut(rest, []byte{'\n'})
		if !found {
			return b, out, fmt.Errorf("batch: last line is not ended")
		}
		b.Lines = append(b.Lines, line)
		rest = after
	}
	if len(b.Lines) != count {
		return b, out, fmt.Errorf("batch: %d lines where %d were announced", len(b.Lines), count)
	}
	return b, out, nil
}

// setUnlessEmpty sets a header to a value made safe for one: control
// characters become spaces, and it is cut to 1 KiB.
func setUnlessEmpty(h nats.Header, key, value string) {
	if value == "" {
		return
	}
	h.Set(key, headerSafe(value[:min(len(value), maxText)]))
}

func headerSafe(s string) string {
	clean := true
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] == 0x7f {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	b := []byte(s)
	for i := range b {
		if b[i] < ' ' || b[i] == 0x7f {
			b[i] = ' '
		}
	}
	return string(b)
}
