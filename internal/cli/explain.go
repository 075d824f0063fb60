package cli

import (
	"errors"

	"github.com/spf13/cobra"
)

func newExplain() *cobra.Command {
	return &cobra.Command{
		Use:   "explain",
		Short: "Not there yet",
		RunE:  func(*cobra.Command, []string) error { return errors.New("explain is not there yet") },
	}
}
