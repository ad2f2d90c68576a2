package gziplog

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// member packs text as the WHIDS manager does: flushed after every line. Its
// last bytes can be cut off.
func member(t testing.TB, cut int, lines ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	for _, l := range lines {
		if _, err := io.WriteString(w, l+"\n"); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()[:b.Len()-cut]
}

// event is a line that does not compress to nothing.
func event(n int) string { return fmt.Sprintf(`{"n":%d,"text":"%x"}`, n, rand.Uint64()) }

// outcome is what a reader gave.
type outcome struct {
	lines   []string
	checked []bool
	damage  []Damage
	lost    Lost
}

func read(t testing.TB, file []byte) outcome {
	t.Helper()
	var o outcome
	r := Reader{MaxLine: 1 << 16,
		Line: func(line []byte, checked bool) error {
			o.lines, o.checked = append(o.lines, string(line)), append(o.checked, checked)
			return nil
		},
		Damage: func(d Damage) error { o.damage = append(o.damage, d); return nil }}
	var err error
	if o.lost, err = r.Read(bytes.NewReader(file), int64(len(file))); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestDamage(t *testing.T) {
	a, b, c, d := event(1), event(2), event(3), event(4)
	whole, torn := member(t, 0, a, b), member(t, 20, a, b)
	// Without its end and the last bytes of its second line.
	last := member(t, 0, c, d)
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-6]++ // in the checksum
	named := func() []byte {
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		w.Name = "logs"
		_, _ = io.WriteString(w, c+"\n")
		_ = w.Close()
		return buf.Bytes()
	}()
	garbage := append([]byte("no gzip"), bytes.Repeat([]byte{0x1f, 0x8b, 0x08, 0, 7}, 2000)...)
	n := func(b []byte) int64 { return int64(len(b)) }
	for name, tc := range map[string]struct {
		file    [][]byte
		lines   []string
		damage  []Damage
		torn    int64
		checked int // lines from whole members
	}{
		"nothing":         {},
		"whole":           {[][]byte{whole, last}, []string{a, b, c, d}, nil, 0, 4},
		"empty member":    {[][]byte{member(t, 0), last}, []string{c, d}, nil, 0, 2},
		"without its end": {[][]byte{member(t, 9, a, b)}, []string{a, b}, []Damage{{0, 0, ErrBreaksOff}}, 0, 0},
		"without its end, others behind": {[][]byte{member(t, 9, a, b), last, member(t, 9, a), last},
			[]string{a, b, c, d, a, c, d}, []Damage{{0, 0, ErrBreaksOff}, {n(whole) - 9 + n(last), 0, ErrBreaksOff}}, 0, 4},
		"within a line, another behind": {[][]byte{torn, last}, []string{a, c, d}, []Damage{{0, 0, ErrBreaksOff}}, 1, 2},
		"torn at the end":               {[][]byte{last, torn}, []string{c, d, a}, []Damage{{n(last), 0, ErrBreaksOff}}, 1, 2},
		"garbage between":               {[][]byte{whole, garbage, last}, []string{a, b, c, d}, []Damage{{n(whole), n(garbage), ErrNotGzip}}, 0, 4},
		"garbage at the beginning":      {[][]byte{garbage, last}, []string{c, d}, []Damage{{0, n(garbage), ErrNotGzip}}, 0, 2},
		"garbage at the end":            {[][]byte{last, []byte("x")}, []string{c, d}, []Damage{{n(last), 1, ErrNotGzip}}, 0, 2},
		"no gzip":                       {[][]byte{[]byte(a + "\n" + b + "\n")}, nil, []Damage{{0, int64(len(a+b) + 2), ErrNotGzip}}, 0, 0},
		"half a header":                 {[][]byte{last, whole[:5]}, []string{c, d}, []Damage{{n(last), 5, ErrBreaksOff}}, 0, 2},
		"header alone":                  {[][]byte{whole[:10], last}, []string{c, d}, []Damage{{0, 0, ErrBreaksOff}}, 0, 2},
		"wrong checksum":                {[][]byte{flipped, last}, []string{c, d}, []Damage{{0, n(whole), ErrChecksum}}, 0, 2},
		"header of another writer":      {[][]byte{member(t, 9, a, b), named}, []string{a, b, c}, []Damage{{0, 0, ErrBreaksOff}}, 0, 1},
		"zeros behind the break":        {[][]byte{member(t, 14, a, b), make([]byte, 4096), last}, []string{a, b, c, d}, nil, 0, 2},
	} {
		t.Run(name, func(t *testing.T) {
			o := read(t, bytes.Join(tc.file, nil))
			if !slices.Equal(o.lines, tc.lines) {
				t.Errorf("lines are %q, want %q", o.lines, tc.lines)
			}
			checked := 0
			for _, c := range o.checked {
				if c {
					checked++
				}
			}
			if checked != tc.checked || o.lost.Torn != tc.torn || o.lost.Long != 0 {
				t.Errorf("%d lines checked, %+v lost; want %d and %d torn", checked, o.lost, tc.checked, tc.torn)
			}
			if tc.damage != nil || name == "whole" {
				if !slices.Equal(o.damage, tc.damage) {
					t.Errorf("damage is %+v, want %+v", o.damage, tc.damage)
				}
			} else if name == "zeros behind the break" && len(o.damage) != 1 {
				t.Errorf("damage is %+v", o.damage)
			}
		})
	}
}

// TestLines cuts text into lines across members, whatever their size.
func TestLines(t *testing.T) {
	pack := func(text string) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = io.WriteString(w, text)
		_ = w.Close()
		return b.Bytes()
	}
	big := strings.Repeat(strings.Repeat("x", 999)+"\n", 3000) // more than is kept in memory
	long := strings.Repeat("y", 1<<16)
	o := read(t, slices.Concat(pack("one\r\ntw"), pack("o\n\n \nthree\n"), pack(big), pack(long+"\n"+long+"y\n"), pack(long+"y\nend")))
	if len(o.lines) != 3+3000+1+1 || o.lines[1] != "two" || o.lines[2] != "three" || o.lines[3003] != long || o.lines[3004] != "end" {
		t.Errorf("%d lines, %q ... %.10q", len(o.lines), o.lines[:3], o.lines[max(0, len(o.lines)-1)])
	}
	if want := (Lost{Long: 2, Bytes: 2 * int64(len(long)+1)}); o.lost != want || len(o.damage) > 0 || slices.Contains(o.checked, false) {
		t.Errorf("lost %+v, want %+v; damage %+v", o.lost, want, o.damage)
	}
}

// TestErrors hands on what the file, or who is given the lines, says.
func TestErrors(t *testing.T) {
	file := slices.Concat(member(t, 0, event(1)), member(t, 9, event(2)), []byte("garbage"))
	mine := errors.New("mine")
	fine := Reader{MaxLine: 99, Line: func([]byte, bool) error { return nil }, Damage: func(Damage) error { return nil }}
	for name, r := range map[string]Reader{
		"of the first line":  {MaxLine: 99, Line: func([]byte, bool) error { return mine }, Damage: fine.Damage},
		"of a line unproved": {MaxLine: 99, Line: func(_ []byte, checked bool) error { return map[bool]error{false: mine}[checked] }, Damage: fine.Damage},
		"of damage":          {MaxLine: 99, Line: fine.Line, Damage: func(Damage) error { return mine }},
	} {
		if _, err := r.Read(bytes.NewReader(file), int64(len(file))); !errors.Is(err, mine) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := fine.Read(bytes.NewReader(file), int64(len(file))+1); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("file shorter than it was: %v", err)
	}
	failing := io.NewSectionReader(failingAt{bytes.NewReader(file), int64(len(file)) - 3}, 0, int64(len(file)))
	if _, err := fine.Read(failing, int64(len(file))); !errors.Is(err, errDisk) {
		t.Errorf("file that cannot be read: %v", err)
	}
}

var errDisk = errors.New("disk")

// failingAt is a file that cannot be read from an offset on.
type failingAt struct {
	io.ReaderAt
	from int64
}

func (f failingAt) ReadAt(b []byte, at int64) (int, error) {
	if at >= f.from {
		return 0, errDisk
	}
	return f.ReaderAt.ReadAt(b[:min(int64(len(b)), f.from-at)], at)
}

// TestNoLineIsInvented damages files at random: what is given was written, in
// its order, and nothing is lost that stands in a member left whole.
func TestNoLineIsInvented(t *testing.T) {
	for range 500 {
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 1))
		var file []byte
		written := map[string]bool{}
		var sure []string
		for n := range 1 + random.IntN(5) {
			var lines []string
			for i := range random.IntN(4) {
				lines = append(lines, event(10*n+i))
			}
			m := member(t, 0, lines...)
			for _, l := range lines {
				written[l] = true
			}
			if random.IntN(2) == 0 {
				m = m[:random.IntN(len(m)+1)]
				if random.IntN(4) == 0 {
					m = append(m, make([]byte, random.IntN(200))...)
				}
			} else {
				sure = append(sure, lines...)
			}
			file = append(file, m...)
		}
		o := read(t, file)
		for i, l := range o.lines {
			if !written[l] && (o.checked[i] || json.Valid([]byte(l))) {
				t.Fatalf("seed %d: invented %q, damage %+v", seed, l, o.damage)
			}
		}
		for _, l := range sure {
			if !slices.Contains(o.lines, l) {
				t.Fatalf("seed %d: %q is lost, damage %+v", seed, l, o.damage)
			}
		}
	}
}

// FuzzRead reads anything: it ends, and each line that is given stands in the
// text of a member.
func FuzzRead(f *testing.F) {
	f.Add([]byte{})
	f.Add(member(f, 0, event(1), event(2)))
	f.Add(slices.Concat(member(f, 9, event(1)), []byte("garbage"), member(f, 0, event(2))))
	f.Fuzz(func(t *testing.T, file []byte) {
		o := read(t, file)
		var texts [][]byte
		var joined []byte
		for at := 0; ; at++ {
			i := bytes.Index(file[at:], magic)
			if i < 0 {
				break
			}
			at += i
			zr, err := gzip.NewReader(bytes.NewReader(file[at:]))
			if err != nil {
				continue
			}
			zr.Multistream(false)
			text, _ := io.ReadAll(zr) // what can be had before the error
			texts, joined = append(texts, text), append(joined, text...)
		}
		for _, l := range o.lines {
			if !bytes.Contains(joined, []byte(l)) && !slices.ContainsFunc(texts, func(text []byte) bool { return bytes.Contains(text, []byte(l)) }) {
				t.Fatalf("%q stands in no member", l)
			}
		}
		for _, d := range o.damage {
			if d.Err == nil || d.Skipped < 0 || d.Offset < 0 || d.Offset+d.Skipped > int64(len(file)) {
				t.Fatalf("damage %+v of %d bytes", d, len(file))
			}
		}
	})
}
