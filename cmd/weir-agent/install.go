package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/controlplane/install"
	"github.com/weirnet/weir/controlplane/node"
)

// say is where install and uninstall tell what they did.
func say(c *cobra.Command) func(string) {
	return func(line string) { fmt.Fprintln(c.OutOrStdout(), line) }
}

// subcommand has no arguments and names the flags it cannot do without.
func subcommand(c *cobra.Command, run func(*cobra.Command) error) *cobra.Command {
	c.SilenceErrors, c.SilenceUsage = true, true
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usage("%s: unexpected argument %q", c.Name(), args[0])
		}
		return run(c)
	}
	return c
}

func installCommand() *cobra.Command {
	var from, binDir, bpffs string
	var forwarding bool
	c := subcommand(&cobra.Command{
		Use:   "install [--cni-bin-dir DIR] [--mount-bpffs DIR] [--forwarding]",
		Short: "Prepare the node: the CNI plugins, a bpffs, forwarding",
	}, func(c *cobra.Command) error {
		if binDir == "" && bpffs == "" && !forwarding {
			return usage("install: nothing to do: give --cni-bin-dir, --mount-bpffs or --forwarding")
		}
		if bpffs != "" {
			if err := mountBPFFS(c, bpffs); err != nil {
				return err
			}
		}
		if forwarding {
			changed, err := node.EnableForwarding()
			if err != nil {
				return err
			}
			say(c)("forwarding is on: " + changes(changed))
		}
		if binDir == "" {
			return nil
		}
		dir, err := beside(from)
		if err != nil {
			return err
		}
		return install.Binaries(dir, binDir, say(c))
	})
	f := c.Flags()
	f.StringVar(&binDir, "cni-bin-dir", "", "put the CNI plugins weir-cni, host-local and portmap here, where the container runtime looks for them")
	f.StringVar(&from, "from", "", "take them from here (default: beside weir-agent)")
	f.StringVar(&bpffs, "mount-bpffs", "", "mount a bpffs here, if there is none")
	f.BoolVar(&forwarding, "forwarding", false, "turn on IP forwarding")
	return c
}

func changes(changed []string) string {
	if len(changed) == 0 {
		return "nothing to change"
	}
	return "set " + strings.Join(changed, " ")
}

func mountBPFFS(c *cobra.Command, dir string) error {
	mounted, err := install.BPFFS(dir)
	if err != nil {
		return err
	}
	if mounted {
		say(c)("mounted a bpffs on " + dir)
	} else {
		say(c)("a bpffs is mounted on " + dir)
	}
	return nil
}

func beside(from string) (string, error) {
	if from != "" {
		return from, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find weir-agent's own directory: %w", err)
	}
	return filepath.Dir(self), nil
}

func uninstallCommand() *cobra.Command {
	var r install.Removal
	var stay bool
	c := subcommand(&cobra.Command{
		Use:   "uninstall --cni-conf FILE --bpffs-dir DIR --state-dir DIR [--cni-bin-dir DIR]",
		Short: "Take Weir off this node: nothing is enforced any more",
	}, func(c *cobra.Command) error {
		for _, required := range []struct{ name, value string }{
			{"cni-conf", r.CNIConf}, {"bpffs-dir", r.BPFFSDir}, {"state-dir", r.StateDir},
		} {
			if required.value == "" {
				return usage("uninstall: --%s must be given", required.name)
			}
		}
		r.Say = say(c)
		if err := r.Run(); err != nil {
			return err
		}
		if stay {
			<-c.Context().Done()
		}
		return nil
	})
	f := c.Flags()
	f.StringVar(&r.CNIConf, "cni-conf", "", "the container runtime's network configuration, as the agent wrote it")
	f.StringVar(&r.BPFFSDir, "bpffs-dir", "", "the agent's")
	f.StringVar(&r.StateDir, "state-dir", "", "the agent's")
	f.StringVar(&r.CNIBinDir, "cni-bin-dir", "", "remove weir-cni from here, too")
	f.BoolVar(&stay, "stay", false, "when all is done wait to be told to end, as a pod that must not be started again does")
	return c
}
