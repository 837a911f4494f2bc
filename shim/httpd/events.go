//go:build linux

package httpd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// events streams a service's events (server-sent events of the HTML standard) until the
// container or the client goes. A client that comes back says what it had: by the header
// Last-Event-ID, as browsers do, or by ?after=N.
func events(c *call) {
	after, err := eventsAfter(c.r)
	if err != nil {
		c.fail(err)
		return
	}
	c.deadlines(0)
	h := c.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if c.r.Method == http.MethodHead {
		return
	}
	rc := http.NewResponseController(c.w)
	// No write blocks for ever: a client that does not read is let go.
	write := func(p []byte) bool {
		c.wrote = true
		if err := rc.SetWriteDeadline(time.Now().Add(c.server.timing.write)); err != nil {
			return false
		}
		if _, err := c.w.Write(p); err != nil {
			return false
		}
		return rc.Flush() == nil
	}
	ctx := c.r.Context()
	source := c.server.service.Events(ctx, after)
	if !write([]byte(": the events of the service\n\n")) { // the client knows that it is connected
		return
	}
	keepAlive := time.NewTicker(c.server.timing.keepAlive)
	defer keepAlive.Stop()
	for {
		select {
		case e, ok := <-source:
			if !ok {
				return
			}
			data, err := json.Marshal(e)
			if err != nil {
				panic(err) // the types of package api can be encoded
			}
			var buf bytes.Buffer
			fmt.Fprintf(&buf, "id: %d\nevent: %s\ndata: %s\n\n", e.Seq, e.Kind, data)
			if !write(buf.Bytes()) {
				return
			}
		case <-keepAlive.C:
			if !write([]byte(": alive\n\n")) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// eventsAfter is the number of the last event that the client has; 0: none.
func eventsAfter(r *http.Request) (uint64, error) {
	name, value := "parameter after", r.URL.Query().Get("after")
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		name, value = "header Last-Event-ID", id // it is newer than the URL
	}
	if value == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return 0, invalid("%s: an event's number is wanted", name)
	}
	return n, nil
}
