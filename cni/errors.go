package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
)

// codeMismatch is CHECK's own code (the specification leaves 100 and up to plugins).
const codeMismatch = 100

// fail is a CNI error. The runtime shows its message and nothing of what wraps it.
func fail(code uint, format string, a ...any) *types.Error {
	return types.NewError(code, fmt.Sprintf(format, a...), "")
}

// agentError keeps the code the agent answered with; an agent that does not answer
// may do so later.
func agentError(c *api.Client, doing string, err error) *types.Error {
	var refused *api.Error
	switch {
	case errors.As(err, &refused):
		code := uint(refused.Code)
		if code == 0 {
			code = types.ErrInternal
		}
		return fail(code, "%s", refused.Message)
	case errors.Is(err, api.ErrStarting):
		return fail(types.ErrTryAgainLater, "%v", err)
	case errors.Is(err, api.ErrNoAgent):
		return fail(types.ErrTryAgainLater, "%v: start weir-agent on this node, or set stateDir to its --state-dir", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fail(types.ErrTryAgainLater, "%s: the agent at %s did not answer in time", doing, c.Socket())
	}
	return fail(types.ErrTryAgainLater, "%s: %v", doing, err)
}

// withUndo keeps err's code and adds what could not be undone.
func withUndo(err, undo error) error {
	if undo == nil {
		return err
	}
	code := uint(types.ErrInternal)
	var e *types.Error
	if errors.As(err, &e) {
		code = e.Code
	}
	return fail(code, "%v (and not undone: %v)", err, undo)
}
