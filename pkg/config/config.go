package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/peterbourgon/ff/v3"
	"gopkg.in/yaml.v2"
)

// ErrHelp means that the user asked for help, which has been printed.
var ErrHelp = flag.ErrHelp

// NewFlagSet returns an empty set of flags for a program. Its usage text goes
// to w: intro, then each flag with its environment variable and default.
func NewFlagSet(program, intro string, w io.Writer) *flag.FlagSet {
	fs := flag.NewFlagSet(program, flag.ContinueOnError)
	fs.SetOutput(w)
	fs.Usage = func() {
		fmt.Fprintf(w, "%s\n\nUsage: %s [flags]\n\nFlags (each also as NIGHTJAR_<NAME> in the environment, and in the file given by --config):\n", intro, program)
		fs.VisitAll(func(f *flag.Flag) {
			def := f.DefValue
			if def != "" {
				def = " (default " + def + ")"
			}
			fmt.Fprintf(w, "  --%s\n        %s%s\n", f.Name, strings.ReplaceAll(f.Usage, "\n", "\n        "), def)
		})
	}
	return fs
}

// Parse fills fs from args, the environment and the file of its flag config,
// which Parse adds. Arguments that are no flags are an error.
func Parse(fs *flag.FlagSet, args []string) error {
	fs.String("config", "", "YAML file with settings, keys as the flags")
	// The text for --help is no answer to a mistake.
	usage, output := fs.Usage, fs.Output()
	fs.Usage = func() {}
	fs.SetOutput(io.Discard)
	defer func() {
		fs.Usage = usage
		fs.SetOutput(output)
	}()
	err := ff.Parse(fs, args,
		ff.WithEnvVarPrefix("NIGHTJAR"),
		ff.WithConfigFileFlag("config"),
		ff.WithConfigFileParser(parseYAML))
	if err != nil {
		if errors.Is(err, flag.ErrHelp) {
			usage()
			return ErrHelp
		}
		return fmt.Errorf("%w (--help explains the flags)", err)
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	return judge(fs)
}

// judge calls the checks of the flags that have been given a value.
func judge(fs *flag.FlagSet) (err error) {
	fs.Visit(func(f *flag.Flag) {
		if c, ok := f.Value.(checked); ok && err == nil {
			if e := c.check(); e != nil {
				err = fmt.Errorf("invalid value %q for flag -%s: %w", f.Value, f.Name, e)
			}
		}
	})
	return err
}

// parseYAML hands the keys of a YAML file to set. Values are taken as they are
// written: off is the word off and no boolean, as on the command line.
func parseYAML(r io.Reader, set func(name, value string) error) error {
	var m map[string]string
	d := yaml.NewDecoder(r)
	d.SetStrict(true) // a key that is there twice is an error
	if err := d.Decode(&m); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("config file: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if err := set(name, m[name]); err != nil {
			return fmt.Errorf("config file: %w", err)
		}
	}
	return nil
}

// Check adds a check to a flag that fs has. Parse calls it when the flag has
// been given a value, once all flags are read, so it may look at other flags,
// too. A flag that is judged so is refused before the program opens anything.
func Check(fs *flag.FlagSet, name string, check func() error) {
	f := fs.Lookup(name)
	f.Value = checked{Value: f.Value, check: check}
}

type checked struct {
	flag.Value
	check func() error
}

// IsBoolFlag tells the flag package whether the flag stands without a value.
func (c checked) IsBoolFlag() bool {
	b, ok := c.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

// CheckAddress returns an error for an address that can never be listened on.
func CheckAddress(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("want HOST:PORT: %w", err)
	}
	return nil
}

// Duration is a flag value: a Go duration, a number of days such as 30d, or 0.
type Duration time.Duration

// String returns the duration as Set reads it.
func (d *Duration) String() string {
	if day := Duration(24 * time.Hour); *d != 0 && *d%day == 0 {
		return fmt.Sprintf("%dd", *d/day)
	}
	return time.Duration(*d).String()
}

// Set reads a duration that is not negative.
func (d *Duration) Set(s string) error {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.Atoi(days)
		if err != nil || n < 0 || n > 100_000 {
			return fmt.Errorf("want a duration such as 30d, 12h or 0")
		}
		*d = Duration(n) * Duration(24*time.Hour)
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("want a duration such as 30d, 12h or 0")
	}
	*d = Duration(v)
	return nil
}

// Bytes is a flag value: a number of bytes with an optional unit, KiB, MiB,
// GiB, TiB or their first letter, or the word none for 0.
type Bytes int64

// maxBytes is the largest number of bytes that can be asked for.
const maxBytes = 1 << 62

// String returns the number of bytes as Set reads it.
func (b *Bytes) String() string {
	if *b == 0 {
		return "none"
	}
	return fmt.Sprintf("%d", *b)
}

// Set reads a number of bytes.
func (b *Bytes) Set(s string) error {
	if s == "none" || s == "" {
		*b = 0
		return nil
	}
	number, unit := s, int64(1)
	for i, letter := range []string{"K", "M", "G", "T"} {
		for _, suffix := range []string{letter + "iB", letter + "B", letter} {
			if n, ok := strings.CutSuffix(s, suffix); ok {
				number, unit = n, 1<<(10*(i+1))
			}
		}
	}
	number = strings.TrimSpace(number)
	// Whole numbers are kept to the byte, which a float64 does not do.
	if n, err := strconv.ParseInt(number, 10, 64); err == nil && n > 0 && n <= maxBytes/unit {
		*b = Bytes(n * unit)
		return nil
	}
	n, err := strconv.ParseFloat(number, 64)
	if n *= float64(unit); err != nil || !(n >= 1 && n <= maxBytes) { // false for NaN, too
		return fmt.Errorf("want a number of bytes such as 20GiB, or none")
	}
	*b = Bytes(n)
	return nil
}

// CheckBelow returns an error unless a size at which the oldest is removed is
// below the one, of flag name, at which more is refused, so that it has an
// effect.
func CheckBelow(size Bytes, name string, limit Bytes) error {
	if limit > 0 && size >= limit {
		return fmt.Errorf("want less than %s, where more is refused", name)
	}
	return nil
}

// Sync is a flag value: always, or the interval at which what was
// acknowledged reaches stable storage.
type Sync struct {
	// Always is true when every acknowledgement waits for stable storage.
	Always bool
	// Interval is set when Always is false.
	Interval time.Duration
}

// String returns the value as Set reads it.
func (s *Sync) String() string {
	if s.Always {
		return "always"
	}
	if s.Interval == 0 {
		return ""
	}
	return s.Interval.String()
}

// Set reads always or an interval.
func (s *Sync) Set(v string) error {
	if v == "always" {
		*s = Sync{Always: true}
		return nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		return fmt.Errorf("want always or an interval such as 10s")
	}
	*s = Sync{Interval: d}
	return nil
}
