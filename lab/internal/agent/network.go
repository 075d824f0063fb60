package agent

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// ipBatch runs lines of ip(8), in a named namespace or, without a name, in the node's.
func ipBatch(ctx context.Context, netns, lines string) error {
	args := []string{"-batch", "-"}
	if netns != "" {
		args = append([]string{"-n", netns}, args...)
	}
	cmd := exec.CommandContext(ctx, "ip", args...)
	cmd.Stdin = strings.NewReader(lines)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
