package target

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/format"
)

const (
	// facility is local0 of RFC 5424.
	facility = 16
	// settle is how long a connection is watched after records were
	// written: a receiver that closed it answers them with a reset.
	settle = 250 * time.Millisecond
	// maxHost is the bound of HOSTNAME in RFC 5424.
	maxHost = 255
)

// syslog sends messages of RFC 5424 in frames that begin with their length
// (RFC 6587 3.4.1, RFC 5425 4.3), without a byte order mark.
//
// Syslog has no acknowledgement. Taken means that the other system's kernel
// has all bytes (on Linux, where that can be asked) and that the connection
// stood for a moment afterwards. What a receiver has in its kernel or memory
// when it is killed is lost; it was never told apart from what it keeps.
type syslog struct {
	addr    string
	tls     *tls.Config
	o       Options
	limit   int
	conn    net.Conn
	raw     *net.TCPConn
	broken  chan struct{}
	failure error
}

func newSyslog(addr string, config *tls.Config, o Options) *syslog {
	limit := o.SyslogBytes
	if limit == 0 {
		limit = DefaultSyslogBytes
	}
	return &syslog{addr: addr, tls: config, o: o, limit: limit}
}

// Send writes all records to one connection. When that breaks, before or
// after, all are to be sent again.
func (s *syslog) Send(ctx context.Context, records []Record) []error {
	if err := s.send(ctx, records); err != nil {
		s.drop()
		return all(len(records), fmt.Errorf("syslog %s: %w", s.addr, err))
	}
	return all(len(records), nil)
}

func (s *syslog) send(ctx context.Context, records []Record) error {
	if s.conn != nil {
		select {
		case <-s.broken:
			s.drop()
		default:
		}
	}
	if s.conn == nil {
		if err := s.connect(ctx); err != nil {
			return err
		}
	}
	var b bytes.Buffer
	for i := range records {
		m, err := s.message(&records[i])
		if err != nil {
			return err
		}
		b.WriteString(strconv.Itoa(len(m)))
		b.WriteByte(' ')
		b.Write(m)
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(s.o.Timeout)); err != nil {
		return err
	}
	if _, err := s.conn.Write(b.Bytes()); err != nil {
		return err
	}
	return s.settled(ctx)
}

func (s *syslog) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return err
	}
	s.raw, _ = conn.(*net.TCPConn)
	if s.tls != nil {
		secure := tls.Client(conn, s.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			return errors.Join(err, conn.Close())
		}
		conn = secure
	}
	s.conn, s.broken, s.failure = conn, make(chan struct{}), nil
	go s.watch(conn, s.broken)
	return nil
}

// watch reads, as nothing is expected, until the connection ends.
func (s *syslog) watch(conn net.Conn, broken chan struct{}) {
	_, err := io.Copy(io.Discard, conn)
	if err == nil {
		err = errors.New("the receiver closed the connection")
	}
	s.failure = err
	close(broken)
}

// settled waits until the other side has what was written.
func (s *syslog) settled(ctx context.Context) error {
	end := time.NewTimer(s.o.Timeout)
	defer end.Stop()
	for {
		pause := time.NewTimer(settle)
		select {
		case <-s.broken:
			pause.Stop()
			return s.failure
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		case <-end.C:
			pause.Stop()
			return errors.New("the receiver does not take what was written")
		case <-pause.C:
		}
		if n, err := unsent(s.raw); err == nil && n > 0 {
			continue
		}
		// Both may have come by now.
		select {
		case <-s.broken:
			return s.failure
		default:
			return nil
		}
	}
}

func (s *syslog) drop() {
	if s.conn != nil {
		_ = s.conn.Close()
		<-s.broken
		s.conn = nil
	}
}

// Close ends the connection.
func (s *syslog) Close() error {
	s.drop()
	return nil
}

// message makes the syslog message of a record, shortened where it is too long.
func (s *syslog) message(r *Record) ([]byte, error) {
	head := header(r)
	room := max(0, s.limit-len(head))
	body := r.Body
	if len(body) > room {
		var err error
		if body, err = r.Short(); err != nil {
			return nil, err
		}
		body = cut(body, room, s.o.Format)
		s.o.Shortened()
	}
	return append(head, body...), nil
}

// header is the header of RFC 5424 with the blank behind it. The structured
// data is the registered element origin: others need an enterprise number.
func header(r *Record) []byte {
	severity := 6
	switch r.Severity {
	case "critical":
		severity = 2
	case "high":
		severity = 3
	case "medium":
		severity = 4
	case "low":
		severity = 5
	}
	host := strings.Map(func(c rune) rune {
		if c <= ' ' || c > '~' {
			return '_'
		}
		return c
	}, r.Host)
	if host == "" {
		host = "-"
	}
	origin := `[origin software="nightjar"]`
	if r.IP != "" {
		origin = `[origin ip="` + escapeParam.Replace(r.IP) + `" software="nightjar"]`
	}
	return fmt.Appendf(nil, "<%d>1 %s %s nightjar - alert %s ", facility*8+severity,
		r.Time.UTC().Format("2006-01-02T15:04:05.000000Z"), host[:min(len(host), maxHost)], origin)
}

var escapeParam = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`)

// cut bounds a body to n bytes. What is cut says so at its end and by how
// much, and ends between characters and not within an escape of CEF.
func cut(body []byte, n int, f format.Format) []byte {
	if len(body) <= n {
		return body
	}
	note := fmt.Sprintf("...[truncated: %d bytes in all]", len(body))
	end := max(0, n-len(note))
	for end > 0 && !utf8.RuneStart(body[end]) {
		end--
	}
	if f == format.CEF {
		escapes := 0
		for escapes < end && body[end-1-escapes] == '\\' {
			escapes++
		}
		end -= escapes % 2
	}
	out := append(bytes.Clone(body[:end]), note...)
	return out[:min(len(out), n)]
}
