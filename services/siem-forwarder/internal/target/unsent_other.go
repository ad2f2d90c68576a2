//go:build !linux

package target

import (
	"errors"
	"net"
)

// unsent cannot be asked here.
func unsent(*net.TCPConn) (int, error) { return 0, errors.ErrUnsupported }
