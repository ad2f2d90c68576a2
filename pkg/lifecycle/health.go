package lifecycle

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/ops"
)

// HealthCommand is the first argument that makes a program ask the one that is
// already running, for health checks of containers that hold nothing else.
const HealthCommand = "health"

// healthTimeout is how long the running program may take to answer.
const healthTimeout = 5 * time.Second

// HealthHelp returns what --help says of HealthCommand.
func HealthHelp(program string) string {
	return fmt.Sprintf("%s %s, with the same flags, asks the running one at its --ops-addr: exit code 0 when it is ready, else 1.", program, HealthCommand)
}

// IsHealth tells whether the arguments begin with HealthCommand, and returns
// those that follow it.
func IsHealth(args []string) (bool, []string) {
	if len(args) > 0 && args[0] == HealthCommand {
		return true, args[1:]
	}
	return false, args
}

// Health asks the program at an ops address for its readiness, writes to w why
// it is not ready, and returns the exit code.
func Health(program, opsAddr string, w io.Writer) int {
	ctx, cancel := context.WithTimeout(context.Background(), healthTimeout)
	defer cancel()
	if err := ops.Health(ctx, opsAddr); err != nil {
		fmt.Fprintf(w, "%s: %v\n", program, err)
		return ExitFailed
	}
	return ExitOK
}
