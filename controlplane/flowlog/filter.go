package flowlog

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"

	"github.com/weirnet/weir/controlplane/api"
)

// Filter says which records a reader asks for. The zero value wants all. It serves both
// APIs: Hubble's FlowFilters and api.FlowQuery are made of the same tests.
type Filter struct {
	allow []test // one of them must hold, if there is any
	deny  []test // none of them may
	also  []test // all of them must
}

// And is the filter of what passes both.
func (f Filter) And(o Filter) Filter {
	return Filter{also: []test{f.match, o.match}}
}

// test is a property that a record has or has not.
type test func(*record) bool

func (f Filter) match(r *record) bool {
	for _, t := range f.also {
		if !t(r) {
			return false
		}
	}
	return (len(f.allow) == 0 || holdsOne(f.allow, r)) && !holdsOne(f.deny, r)
}

func holdsOne(tests []test, r *record) bool {
	for _, t := range tests {
		if t(r) {
			return true
		}
	}
	return false
}

// either is the test that one of several is enough for.
func either(tests ...test) test {
	if len(tests) == 1 {
		return tests[0]
	}
	return func(r *record) bool { return holdsOne(tests, r) }
}

// every is the test that all of several are needed for.
func every(tests ...test) test {
	if len(tests) == 1 {
		return tests[0]
	}
	return func(r *record) bool {
		for _, t := range tests {
			if !t(r) {
				return false
			}
		}
		return true
	}
}

// FilterError is a filter that means nothing or that no record can pass.
type FilterError struct {
	Field string // as the API names it
	Err   error
}

func (e *FilterError) Error() string { return e.Field + ": " + e.Err.Error() }

func (e *FilterError) Unwrap() error { return e.Err }

// HubbleFilter is a request's whitelist and blacklist as a filter of this log. A list is
// alternatives, the fields of one FlowFilter must all match, the values of one field are
// alternatives again. It is an error if no record can pass the whitelist, whatever comes:
// for what Weir does not see (HTTP, DNS, traces) silence would be taken for an answer. A
// blacklist that can exclude nothing excludes nothing.
func (l *Log) HubbleFilter(whitelist, blacklist []*flowpb.FlowFilter) (Filter, error) {
	allow, never, err := l.testsOf("whitelist", whitelist)
	if err != nil {
		return Filter{}, err
	}
	if len(whitelist) > 0 && len(allow) == 0 {
		return Filter{}, never
	}
	deny, _, err := l.testsOf("blacklist", blacklist)
	if err != nil {
		return Filter{}, err
	}
	return Filter{allow: allow, deny: deny}, nil
}

// testsOf is a test for each filter that can match; never says why the first of the
// others cannot.
func (l *Log) testsOf(list string, filters []*flowpb.FlowFilter) (tests []test, never, err error) {
	for i, f := range filters {
		t, err := l.testOf(f)
		var wrong *FilterError
		if errors.As(err, &wrong) {
			wrong = &FilterError{Field: fmt.Sprintf("%s[%d].%s", list, i, wrong.Field), Err: wrong.Err}
			if !errors.Is(err, errNever) {
				return nil, nil, wrong
			}
			if never == nil {
				never = wrong
			}
			continue
		}
		tests = append(tests, t)
	}
	return tests, never, nil
}

// testOf is one FlowFilter; the error is a *FilterError.
func (l *Log) testOf(f *flowpb.FlowFilter) (test, error) {
	var all []test
	var never error
	for _, field := range filterFields {
		t, err := field.test(l, f)
		switch {
		case errors.Is(err, errNever):
			if never == nil {
				never = &FilterError{Field: field.name, Err: err}
			}
		case err != nil:
			return nil, &FilterError{Field: field.name, Err: err}
		case t != nil:
			all = append(all, t)
		}
	}
	return every(all...), never
}

// errNever marks a filter that is well formed and that no record has.
var errNever = errors.New("no record can match")

func never(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errNever, fmt.Sprintf(format, args...))
}

// QueryFilter makes one filter of a FlowQuery's; the error is a *FilterError.
func (l *Log) QueryFilter(q api.FlowQuery) (Filter, error) {
	var f Filter
	for _, asked := range q.Filters() {
		var tests []test
		for _, v := range asked.Values {
			t, err := queryTest(asked.Name, v)
			if err != nil {
				return Filter{}, &FilterError{Field: asked.Name, Err: err}
			}
			tests = append(tests, t)
		}
		if asked.Not {
			f.deny = append(f.deny, tests...)
		} else {
			f.also = append(f.also, either(tests...))
		}
	}
	return f, nil
}

// oneOf is the test that a value a record has is among those asked for.
func oneOf[T comparable](wanted []T, of func(*record) (T, bool)) test {
	return func(r *record) bool {
		v, ok := of(r)
		return ok && slices.Contains(wanted, v)
	}
}

func quoted(values []string) string { return `"` + strings.Join(values, `", "`) + `"` }
