package history

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nightjar-edr/nightjar/services/standalone/internal/whids"
)

// off is the value of a folder that is left out.
const off = "off"

// settings are what the flags say.
type settings struct {
	from, logsDir, dumpsDir, url, adminKey, dataDir, ca, since string
}

func addFlags(fs *flag.FlagSet) *settings {
	c := &settings{}
	fs.StringVar(&c.from, "from", "", "configuration file of the WHIDS manager, which says where its folders are")
	fs.StringVar(&c.logsDir, "logs-dir", "", "folder of the logs (default: root of [logging] in the file); off to leave them out")
	fs.StringVar(&c.dumpsDir, "dumps-dir", "", "folder of the dumps (default: dump-dir of the file); off to leave them out")
	fs.StringVar(&c.since, "since", "", "leave out events older than this day or time, such as 2026-01-31 or 2026-01-31T12:00:00Z")
	fs.StringVar(&c.url, "url", "https://127.0.0.1:8001", "admin API of the running manager")
	fs.StringVar(&c.adminKey, "admin-key", "", "key of an operator of the running manager (default: that of the first one in the file)")
	fs.StringVar(&c.dataDir, "data-dir", "./data", "the running manager's, only to find its certificate authority")
	fs.StringVar(&c.ca, "ca", "", "certificate of the manager, or of the authority that signed it (default <data-dir>/tls/ca.pem, or the system's where that does not exist)")
	return c
}

// job is what is to be done.
type job struct {
	// logs and dumps are folders, empty where they are left out.
	logs, dumps string
	// since, if not zero, is the time of the oldest event to import.
	since time.Time
	api   *api
}

// job reads the files that the flags name. Its errors are of unusable flags.
func (c *settings) job() (*job, error) {
	if c.from == "" {
		return nil, errors.New("--from is missing: the configuration file of the WHIDS manager")
	}
	known, err := whids.Read(c.from)
	if err != nil {
		return nil, err
	}
	logs, dumps, err := whids.Folders(c.from)
	if err != nil {
		return nil, err
	}
	j := &job{}
	if j.logs, err = folder("logs-dir", c.logsDir, logs); err != nil {
		return nil, err
	}
	if j.dumps, err = folder("dumps-dir", c.dumpsDir, dumps); err != nil {
		return nil, err
	}
	if j.logs == "" && j.dumps == "" {
		return nil, fmt.Errorf("%s names no folder of logs or dumps: give --logs-dir or --dumps-dir", c.from)
	}
	if c.since != "" {
		if j.since, err = time.Parse(time.DateOnly, c.since); err != nil {
			if j.since, err = time.Parse(time.RFC3339, c.since); err != nil {
				return nil, fmt.Errorf("since %q: want a day such as 2026-01-31 or a time such as 2026-01-31T12:00:00Z", c.since)
			}
		}
	}
	key := c.adminKey
	if key == "" && len(known.Operators) > 0 {
		key = known.Operators[0].Key
	}
	if key == "" {
		return nil, fmt.Errorf("--admin-key is missing, and %s has no operator", c.from)
	}
	u, err := url.Parse(c.url)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("url %q: want https://HOST:PORT", c.url)
	}
	trusted, err := c.trusted(u.Scheme)
	if err != nil {
		return nil, err
	}
	j.api = newAPI(u, key, trusted)
	return j, nil
}

// folder returns a folder that exists, or nothing where it is left out.
func folder(name, given, fromFile string) (string, error) {
	dir := cmp.Or(given, fromFile)
	if given == off || dir == "" {
		return "", nil
	}
	info, err := os.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		return dir, nil
	case err == nil:
		err = errors.New("not a folder")
	}
	return "", fmt.Errorf("%s %s: %w (a relative folder of the file is taken relative to the file; give --%s, or off to leave it out)",
		name, dir, withoutPath(err), name)
}

func withoutPath(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// trusted returns the certificates to trust, nil for the system's.
func (c *settings) trusted(scheme string) ([]*x509.Certificate, error) {
	if scheme == "http" {
		return nil, nil
	}
	file := cmp.Or(c.ca, filepath.Join(c.dataDir, "tls", "ca.pem"))
	text, err := os.ReadFile(file)
	if err != nil {
		if c.ca == "" && errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("ca: %w", err)
	}
	var list []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("ca %s: %w", file, err)
		}
		list = append(list, cert)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("ca %s: no certificate in it", file)
	}
	return list, nil
}
