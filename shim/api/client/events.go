//go:build linux

package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"

	"github.com/fastmig/fastmig/shim/api"
)

// maxEvent bounds an event of a stream, in bytes.
const maxEvent = 1 << 20

// Events subscribes to what happens to the service; when it returns, the subscription
// stands. Events after the given number that the shim still knows come first.
//
// The sequence ends with ctx and with the container; an error is its last element.
// It can be ranged over once, and must be, or ctx ended: it holds a connection.
func (c *Client) Events(ctx context.Context, after uint64) (iter.Seq2[api.Event, error], error) {
	header := http.Header{"Accept": {"text/event-stream"}}
	if after > 0 {
		header.Set("Last-Event-ID", strconv.FormatUint(after, 10))
	}
	resp, err := c.send(ctx, http.MethodGet, "/v1/events", nil, header)
	if err != nil {
		return nil, err
	}
	return func(yield func(api.Event, error) bool) {
		defer resp.Body.Close()
		stream := newStream(resp.Body)
		for {
			data, ok := stream.next()
			if !ok {
				break
			}
			var e api.Event
			if err := json.Unmarshal(data, &e); err != nil {
				yield(e, fmt.Errorf("decode an event: %w", err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
		if stream.err != nil && ctx.Err() == nil {
			yield(api.Event{}, fmt.Errorf("read events: %w", stream.err))
		}
	}, nil
}

// stream takes server-sent events apart. Only their data is of interest: it has the
// kind and the number in it.
type stream struct {
	lines *bufio.Scanner
	data  []byte
	err   error
}

func newStream(r io.Reader) *stream {
	s := &stream{lines: bufio.NewScanner(r)}
	s.lines.Buffer(nil, maxEvent)
	return s
}

// next returns the data of the next event that has any, until the call after; or false
// at the end of the stream, with err if it is not a clean one. An event that the end cuts
// short is none.
func (s *stream) next() ([]byte, bool) {
	s.data = s.data[:0]
	for s.lines.Scan() {
		line := s.lines.Bytes()
		if len(line) == 0 {
			if len(s.data) > 0 {
				return s.data[:len(s.data)-1], true // without the last newline
			}
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		if string(field) != "data" {
			continue // a comment, which has no field, or what the data says too
		}
		if len(s.data)+len(value) > maxEvent {
			s.err = bufio.ErrTooLong
			return nil, false
		}
		s.data = append(append(s.data, bytes.TrimPrefix(value, []byte(" "))...), '\n')
	}
	s.err = s.lines.Err()
	return nil, false
}
