package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
)

type stuckExport string

func (e stuckExport) Run(context.Context) {}
func (e stuckExport) Status() api.ExportStatus {
	return api.ExportStatus{Export: string(e), Target: "/somewhere", Since: new(time.Time), Error: "no space left on device"}
}

// Whoever reads of an export that is stuck is told which setting made it.
func TestStuckExportNamesItsFlag(t *testing.T) {
	c := command()
	for name, flag := range exportFlags {
		var s api.Status
		exports{stuckExport(name)}.add(&s)
		if len(s.Warnings) != 1 || !strings.HasPrefix(s.Warnings[0], "export "+name+" ("+flag+"): /somewhere takes nothing since ") {
			t.Errorf("%q", s.Warnings)
		}
		if c.Flags().Lookup(strings.TrimPrefix(flag, "--")) == nil {
			t.Errorf("%s is no flag", flag)
		}
	}
}
