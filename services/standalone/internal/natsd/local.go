package natsd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
)

// socket is the name of the local door in the data folder.
const socket = "nats.sock"

// maxSocketPath is the longest path of a socket that every system takes.
const maxSocketPath = 100

// localDoor lets processes on this machine in that may open a file of the
// data folder, whether or not there is an address for others.
type localDoor struct {
	ln   net.Listener
	path string
	work sync.WaitGroup

	mu    sync.Mutex
	open  map[net.Conn]struct{}
	ended bool
}

// ListenLocal opens a door for processes on this machine: a socket in dir that
// only the owner may open. They authenticate as everybody does. Dial finds it.
func (s *Server) ListenLocal(dir string) error {
	d := &s.local
	d.path = filepath.Join(dir, socket)
	if err := os.Remove(d.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("local door of nats: %w", err)
	}
	err := withShortPath(dir, func(short string) (err error) {
		d.ln, err = net.Listen("unix", filepath.Join(short, socket))
		return err
	})
	if err != nil {
		return fmt.Errorf("local door of nats: %w", err)
	}
	// The path that it was bound by may be gone by then.
	d.ln.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(d.path, 0o600); err != nil {
		d.close()
		return fmt.Errorf("local door of nats: %w", err)
	}
	d.open = map[net.Conn]struct{}{}
	d.work.Go(func() {
		for {
			c, err := d.ln.Accept()
			if err != nil {
				return
			}
			d.work.Go(func() { d.pass(c, s.InProcessConn) })
		}
	})
	return nil
}

// pass copies both ways until one side ends.
func (d *localDoor) pass(c net.Conn, inside func() (net.Conn, error)) {
	defer func() { _ = c.Close() }()
	in, err := inside()
	if err != nil {
		return // the server is stopping
	}
	defer func() { _ = in.Close() }()
	d.mu.Lock()
	if d.ended {
		d.mu.Unlock()
		return
	}
	d.open[c] = struct{}{}
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.open, c)
	}()
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(c, in) // either end closes both
		_ = c.Close()
	}()
	_, _ = io.Copy(in, c)
	_ = in.Close()
	<-back
}

func (d *localDoor) close() {
	if d.ln == nil {
		return
	}
	_ = d.ln.Close()
	_ = os.Remove(d.path)
	d.mu.Lock()
	d.ended = true
	for c := range d.open {
		_ = c.Close()
	}
	d.mu.Unlock()
	d.work.Wait()
}

// Door is the local door of a running server; it makes connections as the
// server itself does for its own process.
type Door struct{ Dir string }

// InProcessConn opens a connection through the door.
func (d Door) InProcessConn() (c net.Conn, err error) {
	err = withShortPath(d.Dir, func(short string) (err error) {
		c, err = net.Dial("unix", filepath.Join(short, socket))
		return err
	})
	return c, err
}

// withShortPath calls f with a path to dir that is short enough for a socket
// in it.
func withShortPath(dir string, f func(short string) error) error {
	if len(dir)+1+len(socket) <= maxSocketPath {
		return f(dir)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "nj-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	link := filepath.Join(tmp, "d")
	if err := os.Symlink(abs, link); err != nil {
		return err
	}
	return f(link)
}
