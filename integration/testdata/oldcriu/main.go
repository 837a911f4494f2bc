// Command oldcriu stands for a CRIU that is too old for the kernel: it says
// what such a one says, and fails.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "(00.001000) Error (criu/vdso.c:512): vdso: Unexpected rt vDSO area bounds")
	fmt.Fprintln(os.Stderr, "(00.001100) Error (criu/crtools.c:267): Could not initialize kernel features detection.")
	os.Exit(1)
}
