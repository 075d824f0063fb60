package cli

import (
	"errors"

	"github.com/spf13/cobra"
)

func newInit() *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "Not there yet",
		RunE:  func(*cobra.Command, []string) error { return errors.New("init is not there yet") },
	}
}
