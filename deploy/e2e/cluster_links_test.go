package e2e

import (
	"net"
	"sync"
	"testing"
)

// link carries the connections that one server makes to another. While it is
// cut nothing comes through and nobody is told, as when a switch fails.
type link struct {
	to string

	mu    sync.Mutex
	conns map[net.Conn]bool
	// cut is closed when the link is mended, nil while it is whole.
	cut chan struct{}
}

// newLink makes a link to an address and returns it with its own address. It
// ends with the test.
func newLink(t *testing.T, to string) (*link, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{to: to, conns: map[net.Conn]bool{}}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { l.carry(from) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		l.mend()
		l.closeAll()
		serving.Wait()
	})
	return l, listener.Addr().String()
}

// carry connects from to the other end of the link until either side closes.
func (l *link) carry(from net.Conn) {
	defer l.add(from)()
	if l.wait() {
		return // made while it was cut
	}
	to, err := net.Dial("tcp", l.to)
	if err != nil {
		return
	}
	defer l.add(to)()
	var both sync.WaitGroup
	both.Go(func() { l.copy(to, from) })
	both.Go(func() { l.copy(from, to) })
	both.Wait()
}

// copy passes on what comes. What comes while the link is cut is lost, and the
// connection with it.
func (l *link) copy(dst, src net.Conn) {
	defer func() { _, _ = dst.Close(), src.Close() }() // the other direction ends, too
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if err != nil || l.wait() {
			return
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return
		}
	}
}

// add keeps a connection until the function that it returns is called.
func (l *link) add(c net.Conn) func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[c] = true
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.conns, c)
		_ = c.Close() // it may be closed already
	}
}

func (l *link) closeAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		_ = c.Close()
	}
}

// wait returns when the link is whole, and whether it was cut.
func (l *link) wait() bool {
	l.mu.Lock()
	cut := l.cut
	l.mu.Unlock()
	if cut == nil {
		return false
	}
	<-cut
	return true
}

// mend makes the link whole.
func (l *link) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut != nil {
		close(l.cut)
		l.cut = nil
	}
}
