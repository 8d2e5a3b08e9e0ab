package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog/format"
)

// Exit statuses; scripts depend on them.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// streams are where output goes.
type streams struct{ out, err io.Writer }

// usageError is a command line that says nothing we can do.
type usageError struct{ error }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// run does one command line and returns the exit status. What went wrong is one line on
// the error stream; wrong usage has a second one that says where to look.
func run(ctx context.Context, args []string, s streams) int {
	a := &app{streams: s, style: format.Style{Colour: coloured(s.out)}, width: width(s.out)}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(s.out)
	root.SetErr(s.err)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	fmt.Fprintf(s.err, "%s: %s\n", command.CommandPath(), a.reason(err))
	if errors.As(err, &usageError{}) || !a.began {
		fmt.Fprintf(s.err, "Run '%s --help' for what there is.\n", command.CommandPath())
		return exitUsage
	}
	return exitFailed
}

// app is what the verbs share.
type app struct {
	streams
	style    format.Style
	width    int // of the terminal, 0 = not one
	stateDir string
	output   string // --output of the command that runs
	began    bool   // the command line was understood
}

func (a *app) root() *cobra.Command {
	c := &cobra.Command{
		Use:               "weir",
		Short:             "What the node's network policy allows, stops and sees",
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error { return a.begin(c) },
		Args:              cobra.ArbitraryArgs,
		RunE:              group,
	}
	c.PersistentFlags().StringVar(&a.stateDir, "state-dir", "/run/weir", "the agent's state directory, where its socket is")
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	c.AddCommand(a.status(), a.endpoints(), a.identities(), a.policy(), a.flows(), a.version())
	return c
}

// begin is called when flags and arguments fit the command.
func (a *app) begin(c *cobra.Command) error {
	a.began = true
	if f := c.Flags().Lookup("output"); f != nil {
		a.output = f.Value.String()
		if allowed := f.Annotations[outputs]; !slices.Contains(allowed, a.output) {
			return usage("--output: %q is not one of %s", a.output, strings.Join(allowed, ", "))
		}
	}
	return nil
}

// group is the verb of commands that only hold others.
func group(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		return usage("unknown command %q, did you mean %s?", args[0], strings.Join(near, " or "))
	}
	return usage("unknown command %q", args[0])
}

// outputs is the annotation of --output that lists its values.
const outputs = "weir_outputs"

// verb is a command without arguments that writes in one of the given outputs, the
// first by default.
func (a *app) verb(c *cobra.Command, allowed ...string) *cobra.Command {
	c.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usage("unexpected argument %q", args[0])
		}
		return nil
	}
	c.Flags().StringP("output", "o", allowed[0], strings.Join(allowed, ", "))
	_ = c.Flags().SetAnnotation("output", outputs, allowed)
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(allowed, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (a *app) client() *api.Client { return api.Dial(a.stateDir) }

// reason is err in one line; when no agent answers it says how to start one.
func (a *app) reason(err error) string {
	text := err.Error()
	switch {
	case errors.Is(err, os.ErrPermission):
		text += " (run this as root)"
	case errors.Is(err, api.ErrNoAgent) && !errors.Is(err, api.ErrStarting):
		text += fmt.Sprintf(" (start it: weir-agent --standalone DIR --state-dir %s; or name another with --state-dir)", a.stateDir)
	}
	return format.Safe(strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; "))
}
