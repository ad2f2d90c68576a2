package target

import (
	"net"

	"golang.org/x/sys/unix"
)

// unsent returns how many bytes of a connection the other side's kernel has not
// acknowledged (tcp(7), SIOCOUTQ).
func unsent(conn *net.TCPConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var failure error
	if err := raw.Control(func(fd uintptr) { n, failure = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil {
		return 0, err
	}
	return n, failure
}
