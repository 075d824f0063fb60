package teardown

import (
	"fmt"
	"os"
	"slices"

	"e13.dev/gatehouse/internal/host"
)

// Running is a *RunningError if a gatehouse other than this process runs in this
// network namespace.
func Running() error {
	pids, err := host.Running()
	if err != nil {
		return fmt.Errorf("find out whether gatehouse runs: %w", err)
	}
	if pids = slices.DeleteFunc(pids, func(pid int) bool { return pid == os.Getpid() }); len(pids) > 0 {
		return &RunningError{pids}
	}
	return nil
}
