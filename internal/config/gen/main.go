// Command gen writes docs/config.md. It is run from the root of the repository.
package main

import (
	"fmt"
	"os"

	"e13.dev/gatehouse/internal/config"
)

func main() {
	if err := os.WriteFile("docs/config.md", []byte(config.Docs()), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}
