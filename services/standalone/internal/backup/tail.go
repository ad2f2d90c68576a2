package backup

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats-server/v2/server/archive"
	"github.com/nats-io/nats.go"
)

// Bounds of what is asked for at once, and how long what is written meanwhile is
// followed.
const (
	tailMessages = 5000
	tailBytes    = 8 << 20
	chase        = 10 * time.Minute
)

var errChase = fmt.Errorf("it is written faster than it can be read, for %s", chase)

// copyTail writes the messages behind the snapshot up to a moment at which there
// were no more. The newest message of every key at that moment is either in the
// snapshot or among them: it cannot have been replaced before it was read, for
// nothing had replaced it at all.
func (s *Stream) copyTail(ctx context.Context, nc *nats.Conn, tw *tar.Writer, n *int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, chase, errChase)
	defer cancel()
	var info server.JSApiStreamInfoResponse
	if err := ask(ctx, nc, "$JS.API.STREAM.INFO."+s.Name, struct{}{}, &info); err != nil {
		return err
	}
	if err := apiError(info.ApiResponse); err != nil {
		return err
	}
	p := newParts(tw, streamsPrefix+s.Name+"/tail", n)
	enc := s2.NewWriter(p)
	aw := archive.NewWriter(enc)
	from := s.LastSeq
	for {
		list, end, err := following(ctx, nc, s.Name, s.LastSeq+1)
		if err != nil {
			return causeOr(ctx, err)
		}
		for _, m := range list {
			if err := writeMessage(aw, m.header, m.head, m.data); err != nil {
				return err
			}
			s.LastSeq = m.header.Sequence
			s.Messages++
		}
		if !end {
			continue
		}
		// In a cluster a replica may have answered that is behind.
		done, err := reached(ctx, nc, s.Name, s.LastSeq, info.State.LastSeq)
		if err != nil {
			return causeOr(ctx, err)
		}
		if done {
			break
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
	if s.LastSeq == from {
		return nil
	}
	if err := aw.WriteHeader(&archive.Header{}); err != nil {
		return err
	}
	if err := enc.Close(); err != nil {
		return err
	}
	var err error
	s.Tail, err = p.close()
	return err
}

// causeOr returns why ctx has ended, or err when it has not.
func causeOr(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// reached tells whether there is nothing between the sequences at and end, or
// end is behind.
func reached(ctx context.Context, nc *nats.Conn, name string, at, end uint64) (bool, error) {
	if at >= end {
		return true, nil
	}
	var resp server.JSApiMsgGetResponse
	if err := ask(ctx, nc, "$JS.API.STREAM.MSG.GET."+name, server.JSApiMsgGetRequest{Seq: at + 1, NextFor: ">"}, &resp); err != nil {
		return false, err
	}
	err := apiError(resp.ApiResponse)
	if server.IsNatsErr(err, server.JSNoMessageFoundErr) {
		return true, nil
	}
	return err == nil && resp.Message.Sequence > end, err
}

// message is a message as an archive holds it.
type message struct {
	header     *archive.Header
	head, data []byte
}

// following returns messages of a stream from a sequence on, in their order, and
// whether there was a moment when there were no more.
func following(ctx context.Context, nc *nats.Conn, name string, seq uint64) (list []message, end bool, err error) {
	inbox := nc.NewRespInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = sub.Unsubscribe() }()             // the connection may be gone
	if err := sub.SetPendingLimits(-1, -1); err != nil { // the request is the limit
		return nil, false, err
	}
	body := fmt.Appendf(nil, `{"seq":%d,"next_by_subj":">","batch":%d,"max_bytes":%d}`, seq, tailMessages, tailBytes)
	if err := nc.PublishRequest("$JS.API.DIRECT.GET."+name, inbox, body); err != nil {
		return nil, false, err
	}
	size := 0
	for {
		m, err := nextChunk(ctx, sub)
		if err != nil {
			return nil, false, err
		}
		switch status := m.Header.Get("Status"); status {
		case "":
		case "204", "404": // the end of the batch, or nothing at all; it may have been cut short by its size
			return list, len(list) < tailMessages && size < tailBytes/2, nil
		default:
			return nil, false, fmt.Errorf("messages from %d on: %s %s", seq, status, m.Header.Get("Description"))
		}
		msg, err := parseDirect(m)
		if err != nil {
			return nil, false, fmt.Errorf("messages from %d on: %w", seq, err)
		}
		list = append(list, msg)
		size += len(msg.header.Name) + len(m.Data) + len(msg.head)
	}
}

var errDirect = errors.New("answer that cannot be read")

// parseDirect takes what JetStream added to a message's headers off again.
func parseDirect(m *nats.Msg) (message, error) {
	seq, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
	if err != nil {
		return message{}, fmt.Errorf("%w: sequence: %w", errDirect, err)
	}
	at, err := time.Parse(time.RFC3339Nano, m.Header.Get("Nats-Time-Stamp"))
	if err != nil {
		return message{}, fmt.Errorf("%w: time: %w", errDirect, err)
	}
	h := &archive.Header{Name: m.Header.Get("Nats-Subject"), Sequence: seq, Timestamp: at.UnixNano(), PayloadSize: int64(len(m.Data))}
	for _, added := range []string{"Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending", "Nats-Last-Sequence"} {
		m.Header.Del(added)
	}
	head := encodeHeader(m.Header)
	h.HeaderSize = int64(len(head))
	return message{h, head, m.Data}, nil
}

// encodeHeader writes headers as they are stored.
func encodeHeader(h nats.Header) []byte {
	if len(h) == 0 {
		return nil
	}
	var b strings.Builder
	b.WriteString("NATS/1.0\r\n")
	for _, key := range slices.Sorted(maps.Keys(h)) {
		for _, value := range h[key] {
			b.WriteString(key + ": " + value + "\r\n")
		}
	}
	b.WriteString("\r\n")
	return []byte(b.String())
}
