//go:build linux

package httpd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/fastmig/fastmig/shim/api"
)

// handler answers what comes by one of a server's listeners.
type handler struct {
	server *Server
	origin Origin
}

// call is one request.
type call struct {
	server *Server
	origin Origin
	w      http.ResponseWriter
	r      *http.Request
	route  route
	wrote  bool // an answer was begun
	alone  bool // the service is not asked any more: it is ending, or has panicked
}

var (
	errNoMetrics = fmt.Errorf("this container has no metrics: %w", errdefs.ErrNotFound)
	errForeign   = fmt.Errorf("a page of another site may not use this interface: %w", errdefs.ErrPermissionDenied)
	errNotJSON   = fmt.Errorf("the body is to be application/json: %w", errdefs.ErrInvalidArgument)
	errBusy      = fmt.Errorf("other requests are under way: try again later: %w", errdefs.ErrUnavailable)
	errPanic     = fmt.Errorf("a fault in the shim: its log has more: %w", errdefs.ErrInternal)
)

// foreign refuses what a browser sends on behalf of another site's page.
var foreign = http.NewCrossOriginProtection()

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{server: h.server, origin: h.origin, w: w, r: r}
	// They hold for the body and for what net/http itself writes before it; each answer
	// has its own.
	c.deadlines(h.server.timing.body)
	var known bool
	c.route, known = routes[r.URL.Path]
	known = known && (h.origin == Host || c.route.network)
	if !h.server.begin() {
		c.alone = true
		w.Header().Set("Connection", "close")
		c.fail(errClosing)
		return
	}
	defer h.server.end()
	defer c.recover()
	switch {
	case !known:
		c.fail(fmt.Errorf("the interface has no such path: %w", errdefs.ErrNotFound))
	case r.Method != c.route.method && (r.Method != http.MethodHead || c.route.method != http.MethodGet):
		w.Header().Set("Allow", c.route.allow())
		c.failWith(http.StatusMethodNotAllowed, fmt.Errorf("%s takes %s: %w", r.URL.Path, c.route.allow(), errdefs.ErrNotImplemented))
	case foreign.Check(r) != nil:
		c.fail(errForeign)
	case !c.route.takesJSON && r.ContentLength != 0:
		c.fail(invalid("%s takes no body", r.URL.Path))
	case h.origin == Network && c.route.takesJSON:
		if !c.takeSlot() {
			c.fail(errBusy)
			break
		}
		defer func() { <-h.server.slots }()
		c.route.serve(c)
	default:
		c.route.serve(c)
	}
	// The answer must be out before the server may be closed.
	http.NewResponseController(w).Flush()
}

// takeSlot waits for its turn to have a body in the shim's memory.
func (c *call) takeSlot() bool {
	patience := time.NewTimer(c.server.timing.body)
	defer patience.Stop()
	select {
	case c.server.slots <- struct{}{}:
		c.deadlines(c.server.timing.body)
		return true
	case <-patience.C:
	case <-c.r.Context().Done():
	}
	c.deadlines(c.server.timing.write)
	return false
}

func (t route) allow() string {
	if t.method == http.MethodGet {
		return "GET, HEAD"
	}
	return t.method
}

// recover makes a panic an answer: it must not end the shim, and all its containers.
func (c *call) recover() {
	p := recover()
	if p == nil {
		return
	}
	log.L.Errorf("FastMig interface: panic in %s %s: %v\n%s", c.r.Method, c.r.URL.Path, p, debug.Stack())
	if c.wrote {
		panic(http.ErrAbortHandler) // the client must not take half an answer for a whole one
	}
	c.alone = true // it may hold its own lock
	c.fail(errPanic)
	http.NewResponseController(c.w).Flush()
}

// deadlines bounds what is read and written from now on; 0: nothing does.
func (c *call) deadlines(d time.Duration) {
	rc := http.NewResponseController(c.w)
	var end time.Time
	if d != 0 {
		end = time.Now().Add(d)
	}
	rc.SetReadDeadline(end)
	rc.SetWriteDeadline(end)
}

// body reads the request's body, and ends the time limit that the client has for it.
func (c *call) body() ([]byte, error) {
	header := c.r.Header.Get("Content-Type")
	kind, _, _ := mime.ParseMediaType(header)
	if header != "" && kind != "application/json" && kind != "application/x-www-form-urlencoded" { // curl -d says the latter
		return nil, errNotJSON
	}
	rc := http.NewResponseController(c.w)
	// A slow client does not hold up the end of the server.
	stop := context.AfterFunc(c.r.Context(), func() { rc.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if c.r.ContentLength > maxBody {
		c.drain()
		return nil, errTooLarge
	}
	body, err := readBody(http.MaxBytesReader(c.w, c.r.Body, maxBody+1))
	if err != nil {
		if errors.Is(err, errTooLarge) {
			c.drain()
		}
		return nil, err
	}
	// From here on net/http reads on to see the client go, which may take any time.
	stop()
	return body, rc.SetReadDeadline(time.Time{})
}

// drain throws away what the client still sends, within bounds: to most clients an answer
// to what they have not sent yet is a broken connection. One that asks first is told.
func (c *call) drain() {
	if c.r.Header.Get("Expect") == "" {
		io.CopyN(io.Discard, c.r.Body, maxDrain) // an error: the client has gone, or the time is up
	}
}

// fail answers with an error.
func (c *call) fail(err error) {
	status := 0
	switch {
	case errors.Is(err, errTooLarge):
		status = http.StatusRequestEntityTooLarge
	case errors.Is(err, errNotJSON):
		status = http.StatusUnsupportedMediaType
	case errdefs.IsCanceled(err) && context.Cause(c.r.Context()) == errClosing:
		err = fmt.Errorf("%v: %w", err, errClosing)
	}
	c.failWith(status, err)
}

// failWith answers with an error and a status; 0: the one of the error's kind.
func (c *call) failWith(status int, err error) {
	var state api.State // words have no place for it
	if !c.route.text && !c.alone {
		state = c.server.service.Status().State
	}
	body, ofKind := api.NewError(err, state)
	if status == 0 {
		status = ofKind
	}
	if !c.route.text {
		c.json(status, body)
		return
	}
	if status != http.StatusMethodNotAllowed {
		status = publishedStatus(err)
	}
	c.plain(status, body.Message)
}

// publishedStatus is the status of an error in FastMig's own vocabulary: what the client
// can change about its request is 400, what failed is 500.
func publishedStatus(err error) int {
	for _, kind := range []error{
		errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition, errdefs.ErrNotFound,
		errdefs.ErrAlreadyExists, errdefs.ErrNotImplemented, errdefs.ErrPermissionDenied,
	} {
		if errors.Is(err, kind) {
			return http.StatusBadRequest
		}
	}
	return http.StatusInternalServerError
}

func (c *call) json(status int, v any) {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err) // the types of package api can be encoded
	}
	c.answer(status, "application/json", buf.Bytes())
}

func (c *call) plain(status int, text string) {
	c.answer(status, "text/plain; charset=utf-8", []byte(strings.TrimRight(text, "\n")+"\n"))
}

// answer writes the whole answer. An error in that is the client's, which has gone.
func (c *call) answer(status int, kind string, body []byte) {
	c.wrote = true
	http.NewResponseController(c.w).SetWriteDeadline(time.Now().Add(c.server.timing.write))
	h := c.w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	c.w.WriteHeader(status)
	c.w.Write(body)
}

// describeRun is the answer to POST /run in words.
func describeRun(r api.Result) string {
	what := "the application runs, started from scratch"
	if r.Checkpoint != nil {
		what = "the application runs, restored from " + r.Checkpoint.URL
	}
	return sentence(what, r)
}

// describeCheckpoint is the answer to POST /checkpoint in words.
func describeCheckpoint(r api.Result) string {
	what := "checkpoint written"
	if r.Checkpoint != nil {
		what = fmt.Sprintf("checkpoint written to %s, %d bytes", r.Checkpoint.URL, r.Checkpoint.Bytes)
	}
	if r.State == api.Standby {
		what += "; the application has ended"
	}
	return sentence(what, r)
}

// sentence adds the time that it took, and a line for each note.
func sentence(what string, r api.Result) string {
	lines := []string{fmt.Sprintf("%s (%.3f s)", what, r.Seconds)}
	for _, n := range r.Notes {
		lines = append(lines, "note: "+n)
	}
	return strings.Join(lines, "\n")
}
