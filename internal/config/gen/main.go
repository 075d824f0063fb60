// Command gen prints docs/config.md.
package main

import (
	"fmt"

	"e13.dev/gatehouse/internal/config"
)

func main() { fmt.Print(config.Docs()) }
