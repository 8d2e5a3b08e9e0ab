package flowlog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/weirnet/weir/controlplane/api"
)

// ServeHTTP answers api.PathFlows: the records an api.FlowQuery asks for as one
// GetFlowsResponse a line, sent as they come when following. A parameter it does not
// know or cannot read is answered with 400 and an api.Error that names it.
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
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	// An error is the client's leaving, or the log's end: there is nobody to tell.
	to := &lines{log: l, w: w, control: http.NewResponseController(w)}
	to.extend()
	_ = l.Select(r.Context(), selection, to)
}

// stall is how long a client may take nothing before it is cut off.
var stall = 30 * time.Second

func refuse(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(api.Error{Message: err.Error()})
}

// lines is the Sink of a response.
type lines struct {
	log     *Log
	w       http.ResponseWriter
	control *http.ResponseController
	line    bytes.Buffer
	sent    int
}

func (s *lines) Send(m *observerpb.GetFlowsResponse) error {
	s.line.Reset()
	if err := AppendLine(&s.line, m); err != nil {
		return err
	}
	return s.write(s.line.Bytes())
}

// SendRecord implements recordSink.
func (s *lines) SendRecord(r *Record) error {
	s.line.Reset()
	line, err := s.log.AppendRecord(s.line.AvailableBuffer(), r)
	if err != nil {
		return err
	}
	s.line.Write(line)
	return s.write(line)
}

func (s *lines) write(line []byte) error {
	if s.sent++; s.sent%batch == 0 {
		s.extend()
	}
	_, err := s.w.Write(line)
	return err
}

func (s *lines) Flush() error {
	if err := s.control.Flush(); err != nil {
		return err
	}
	s.extend()
	return nil
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
