package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ErrStarting is wrapped beside ErrNoAgent by those of one whose agent says that it waits.
var ErrStarting = errors.New("it is starting and waits")

// ErrNoAgent is wrapped by every error of a Client whose socket nobody serves.
var ErrNoAgent = errors.New("no agent")

const (
	maxErrorBody = 64 << 10
	maxFlowLine  = 1 << 20
)

// Client asks the agent of one state directory. Calls return *Error when the agent
// refuses and an error that wraps ErrNoAgent when none answers; every call is
// bounded by its context alone. A Client may be used from many goroutines.
type Client struct {
	socket string
	http   *http.Client
}

// Dial returns a client of the agent whose state directory is stateDir. Nothing is
// connected yet: the first call finds out whether the agent is there.
func Dial(stateDir string) *Client {
	socket := filepath.Join(stateDir, SocketName)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", socket)
		if err != nil && ctx.Err() == nil {
			return nil, fmt.Errorf("%w at %s: %w", ErrNoAgent, socket, err)
		}
		return conn, err
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Socket is the path the client connects to.
func (c *Client) Socket() string { return c.socket }

// Ping asks what the agent runs with.
func (c *Client) Ping(ctx context.Context) (Ping, error) {
	return call[Ping](ctx, c, http.MethodGet, PathPing, nil, nil)
}

// AddEndpoint asks for an endpoint and returns when its policy is enforced, or with
// the reason why it is not. Asking again for the same one is harmless.
func (c *Client) AddEndpoint(ctx context.Context, r AddRequest) (Endpoint, error) {
	return call[Endpoint](ctx, c, http.MethodPost, PathEndpoints, nil, r)
}

// DeleteEndpoint removes an endpoint and returns when no packet is judged by it any
// more. One that does not exist is no error.
func (c *Client) DeleteEndpoint(ctx context.Context, a Attachment) error {
	q := url.Values{"container": {a.ContainerID}, "ifname": {a.IfName}}
	_, err := call[nothing](ctx, c, http.MethodDelete, PathEndpoints, q, nil)
	return err
}

// Endpoints lists the endpoints of the node.
func (c *Client) Endpoints(ctx context.Context) ([]Endpoint, error) {
	return call[[]Endpoint](ctx, c, http.MethodGet, PathEndpoints, nil, nil)
}

// GC removes every endpoint that r does not list.
func (c *Client) GC(ctx context.Context, r GCRequest) error {
	_, err := call[nothing](ctx, c, http.MethodPost, PathGC, nil, r)
	return err
}

// Status returns the agent's state. With wait > 0 the agent answers when all that its
// source holds at this moment is enforced, cannot be, or wait is over.
func (c *Client) Status(ctx context.Context, wait time.Duration) (Status, error) {
	q := url.Values{}
	if wait > 0 {
		q.Set("wait", wait.String())
	}
	return call[Status](ctx, c, http.MethodGet, PathStatus, q, nil)
}

// Identities lists the identities in use.
func (c *Client) Identities(ctx context.Context) ([]Identity, error) {
	return call[[]Identity](ctx, c, http.MethodGet, PathIdentities, nil, nil)
}

// Policies lists the policies as they are enforced.
func (c *Client) Policies(ctx context.Context) ([]Policy, error) {
	return call[[]Policy](ctx, c, http.MethodGet, PathPolicies, nil, nil)
}

// Explain returns the reference verdict: from and to are "namespace/pod" or an
// address, port is "80/tcp", family is 4, 6, or 0 for whichever both ends have.
func (c *Client) Explain(ctx context.Context, from, to, port string, family int) (Explanation, error) {
	q := url.Values{"from": {from}, "to": {to}, "port": {port}}
	if family != 0 {
		q.Set("family", strconv.Itoa(family))
	}
	return call[Explanation](ctx, c, http.MethodGet, PathExplain, q, nil)
}

// Flows hands each flow record, one JSON object without its newline, to each, until
// the agent ends the stream, the context does, or each returns an error, which is
// then returned. The line is valid only during the call.
func (c *Client) Flows(ctx context.Context, query url.Values, each func(line []byte) error) error {
	body, err := c.do(ctx, http.MethodGet, PathFlows, query, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxFlowLine)
	lines.Split(wholeLines)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		if err := each(lines.Bytes()); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err = lines.Err()
	if errors.Is(err, io.ErrUnexpectedEOF) { // who takes nothing cannot be told so first
		return errors.New("the agent cut the stream off: it was killed, or nothing was taken of it for 30 s; ask again with --since for what is missing")
	}
	if err != nil {
		return fmt.Errorf("read flows from %s: %w", c.socket, err)
	}
	return nil
}

// wholeLines is bufio.ScanLines without what is left at the end of a stream that was cut off.
func wholeLines(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if atEOF && bytes.IndexByte(data, '\n') < 0 {
		return len(data), nil, nil
	}
	return bufio.ScanLines(data, atEOF)
}

// Profile is one of the agent's own, as PathProfile says.
func (c *Client) Profile(ctx context.Context, query url.Values) ([]byte, error) {
	body, err := c.do(ctx, http.MethodGet, PathProfile, query, nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// nothing is the answer of calls that have none.
type nothing struct{}

// call sends in as JSON (nil: no body) and reads the answer into a T.
func call[T any](ctx context.Context, c *Client, method, path string, query url.Values, in any) (T, error) {
	var out T
	body, err := c.do(ctx, method, path, query, in)
	if err != nil {
		return out, err
	}
	defer body.Close()
	if _, none := any(out).(nothing); none {
		_, err = io.Copy(io.Discard, body)
	} else {
		err = json.NewDecoder(body).Decode(&out)
	}
	if err != nil {
		return out, fmt.Errorf("%s %s at %s: read answer: %w", method, path, c.socket, err)
	}
	return out, nil
}

// do returns the body of a successful answer, for the caller to close.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, in any) (io.ReadCloser, error) {
	var payload io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("%s %s: encode request: %w", method, path, err)
		}
		payload = bytes.NewReader(b)
	}
	u := url.URL{Scheme: "http", Host: "weir", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), payload)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.failed(ctx, method, path, err)
	}
	if resp.StatusCode < http.StatusBadRequest {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	return nil, refusal(resp)
}

// failed keeps ErrNoAgent's own words and drops net/http's wrapping, which names a
// URL that means nothing to the user.
func (c *Client) failed(ctx context.Context, method, path string, err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	var op *net.OpError
	if errors.Is(err, ErrNoAgent) && errors.As(err, &op) {
		err := fmt.Errorf("%w at %s: %w", ErrNoAgent, c.socket, op.Err)
		if why := waitingFor(filepath.Dir(c.socket)); why != "" {
			err = fmt.Errorf("%w; %w: %s", err, ErrStarting, why)
		}
		return err
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("%s %s at %s: %w", method, path, c.socket, err)
}

// refusal is the Error an agent answered with; an answer that holds none (another
// server on the socket) becomes one.
func refusal(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	e := &Error{}
	if json.Unmarshal(b, e) == nil && e.Message != "" {
		return e
	}
	text := strings.TrimSpace(string(b))
	return &Error{Code: CodeInternal, Message: fmt.Sprintf("agent answered %s: %s", resp.Status, text)}
}
