package flowlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/weirnet/weir/controlplane/api"
)

// ServeHTTP answers api.PathFlows: the records an api.FlowQuery asks for as one
// GetFlowsResponse a line, sent as they come when following. A parameter it does not
// know or cannot read is answered with 400 and an api.Error that names it; where there are no
// records (ErrOff), 409; where streamsMost are open already, 503.
func (l *Log) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		refuse(w, http.StatusMethodNotAllowed, fmt.Errorf("%s %s: only GET", r.Method, r.URL.Path))
		return
	}
	q, err := api.ParseFlowQuery(r.URL.Query())
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	selection, err := l.selection(q)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	if err := l.Off(); err != nil {
		refuse(w, http.StatusConflict, err)
		return
	}
	if err := l.streams.Enter(); err != nil {
		refuse(w, http.StatusServiceUnavailable, &api.Error{Code: api.CodeTryLater, Message: err.Error()})
		return
	}
	defer l.streams.Leave()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	// An error is the client's leaving, or the log's end: there is nobody to tell.
	to := &lines{encoder: l.Encoder(), w: w, control: http.NewResponseController(w)}
	_ = l.Select(r.Context(), selection, to)
}

// streamsMost is how many clients are answered at once: people's, at a terminal each.
const streamsMost = 64

// stall is how long a client may take nothing before it is cut off.
var stall = 30 * time.Second

func refuse(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	var e *api.Error
	if !errors.As(err, &e) {
		e = &api.Error{Message: err.Error()}
	}
	_ = json.NewEncoder(w).Encode(e)
}

// lines is the Sink of a response.
type lines struct {
	encoder *Encoder
	w       http.ResponseWriter
	control *http.ResponseController
	text    []byte // whole lines, not written yet
}

// linesMost is how much is written at once.
const linesMost = 32 << 10

func (s *lines) Send(m *observerpb.GetFlowsResponse) error {
	var line bytes.Buffer
	if err := AppendLine(&line, m); err != nil {
		return err
	}
	s.text = append(s.text, line.Bytes()...)
	return s.writeFrom(linesMost)
}

// SendRecord implements recordSink.
func (s *lines) SendRecord(r *Record) (err error) {
	if s.text, err = s.encoder.AppendRecord(s.text, r); err != nil {
		return err
	}
	return s.writeFrom(linesMost)
}

// writeFrom writes if there is so much.
func (s *lines) writeFrom(n int) error {
	if len(s.text) < n {
		return nil
	}
	s.extend()
	_, err := s.w.Write(s.text)
	s.text = s.text[:0]
	return err
}

func (s *lines) Flush() error {
	if err := s.writeFrom(1); err != nil {
		return err
	}
	s.extend()
	return s.control.Flush()
}

// extend gives the client time for what comes next. What cannot be given a deadline is a
// recorder in a test, which never waits.
func (s *lines) extend() { _ = s.control.SetWriteDeadline(time.Now().Add(stall)) }

var marshal = protojson.MarshalOptions{UseProtoNames: true}

// AppendLine adds m as JSON in one line, as weir flows -o json has it. Compacting takes out the spaces that protojson puts in
// at random.
func AppendLine(to *bytes.Buffer, m *observerpb.GetFlowsResponse) error {
	b, err := marshal.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode flow: %w", err)
	}
	if err := json.Compact(to, b); err != nil {
		return fmt.Errorf("encode flow: %w", err)
	}
	to.WriteByte('\n')
	return nil
}
