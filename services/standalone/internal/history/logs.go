package history

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/services/standalone/internal/gziplog"
)

// bodyBytes is how much text is sent at once. Each body leaves a record of
// the import in the manager's audit trail.
const bodyBytes = 8 << 20

// importLogs imports the log files of one endpoint.
func (r *run) importLogs(ctx context.Context, f *found) error {
	b := &body{r: r, ctx: ctx, path: "/endpoints/" + f.endpoint + "/logs"}
	b.zip, _ = gzip.NewWriterLevel(&b.packed, gzip.BestSpeed) // the level is valid
	for _, l := range f.files {
		if err := r.importLog(b, l); err != nil {
			return err
		}
	}
	return b.send()
}

// importLog adds the lines of a file to a body. A file that cannot be read is
// counted; an error is one of sending.
func (r *run) importLog(b *body, l file) error {
	seen := int64(0)
	defer func() { r.progress.done(l.size - seen) }()
	f, err := os.Open(l.path)
	if err != nil {
		r.unreadable(l.path, err)
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		r.unreadable(l.path, err)
		return nil
	}
	var failure error
	reader := gziplog.Reader{
		MaxLine: message.MaxLine,
		Progress: func(offset int64) {
			r.progress.read(offset - seen)
			seen = offset
		},
		Line: func(line []byte, checked bool) error {
			failure = b.line(line, checked, l.alerts)
			return failure
		},
		Damage: func(d gziplog.Damage) error {
			r.count.damaged++
			r.count.skipped += d.Skipped
			r.say("%s: at byte %d: %v, %d bytes skipped", l.path, d.Offset, d.Err, d.Skipped)
			return nil
		},
	}
	lost, err := reader.Read(f, info.Size())
	r.count.torn += lost.Torn
	r.count.long += lost.Long
	if lost.Long > 0 {
		r.say("%s: %d lines are longer than %d bytes", l.path, lost.Long, message.MaxLine)
	}
	switch {
	case failure != nil:
		return failure
	case err != nil:
		r.unreadable(l.path, err)
	default:
		r.count.logs++
		r.count.logBytes += info.Size()
	}
	return nil
}

// body collects the lines of one endpoint until there are enough to send.
type body struct {
	r    *run
	ctx  context.Context
	path string

	zip    *gzip.Writer
	packed bytes.Buffer
	text   int
	count  lineCount
}

// line takes in one line of a file.
func (b *body) line(line []byte, checked, alert bool) error {
	if err := b.ctx.Err(); err != nil {
		return err
	}
	line = sent(line)
	info, err := event.Scan(line)
	switch {
	case err != nil && !checked:
		// What stands in a damaged member may be damaged without
		// breaking off.
		b.r.count.torn++
		return nil
	case err != nil:
		b.count.dead++
	case info.Timed() && info.Time.Before(b.r.since):
		b.r.count.older++
		return nil
	case alert:
		b.count.alerts++
	default:
		b.count.events++
	}
	if !checked {
		b.count.unchecked++
	}
	if b.text == 0 {
		b.packed.Reset()
		b.zip.Reset(&b.packed)
	}
	// What the buffer of a writer does not take, Close says.
	_, _ = b.zip.Write(line)
	_, _ = b.zip.Write([]byte{'\n'})
	if b.text += len(line) + 1; b.text >= bodyBytes {
		return b.send()
	}
	return nil
}

// send sends what has been collected. It is counted when it is stored.
func (b *body) send() error {
	if b.text == 0 {
		return nil
	}
	if err := b.zip.Close(); err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	err := b.r.api.post(b.ctx, b.path, true, func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b.packed.Bytes())), nil
	})
	if err != nil {
		return fmt.Errorf("POST %s: %w", b.path, err)
	}
	b.r.count.lines.add(b.count)
	b.r.progress.lines(b.count.events + b.count.alerts)
	b.text, b.count = 0, lineCount{}
	return nil
}
