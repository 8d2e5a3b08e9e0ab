// Command verify loads every kernel program and prints what it cost the verifier.
package main

import (
	"fmt"
	"os"

	"github.com/weirnet/weir/datapath/loader"
)

func main() {
	if err := loader.Verify(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "verify:", err)
		os.Exit(1)
	}
}
