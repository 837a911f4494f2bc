//go:build linux

package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/fastmig/fastmig/shim/api"
)

func TestStream(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     []string
		fails    bool
	}{
		{"none", "", nil, false},
		{"one", "event: state\nid: 1\ndata: a\n\n", []string{"a"}, false},
		{"without a space", "data:a\n\n", []string{"a"}, false},
		{"one space only", "data:  a\n\n", []string{" a"}, false},
		{"lines", "data: a\ndata\ndata: b\n\n", []string{"a\n\nb"}, false},
		{"carriage returns", "data: a\r\n\r\ndata: b\r\n\r\n", []string{"a", "b"}, false},
		{"comments", ": hello\n\n:\ndata: a\n: there\n\n", []string{"a"}, false},
		{"colons", "data: {\"a\":1}\n\n", []string{`{"a":1}`}, false},
		{"no data", "event: state\n\nretry: 1\n\n", nil, false},
		{"cut short", "data: a\n\ndata: b\n", []string{"a"}, false},
		{"long", "data: " + strings.Repeat("x", maxEvent-100) + "\n\n", []string{strings.Repeat("x", maxEvent-100)}, false},
		{"long line", "data: a\n\ndata: " + strings.Repeat("x", maxEvent+1) + "\n\n", []string{"a"}, true},
		{"long event", strings.Repeat("data: "+strings.Repeat("x", 1000)+"\n", maxEvent/1000+1) + "\n", nil, true},
	} {
		var in io.Reader = strings.NewReader(tc.in)
		if len(tc.in) < 1000 { // else it takes long
			in = iotest.OneByteReader(in)
		}
		s := newStream(in)
		var got []string
		for {
			data, ok := s.next()
			if !ok {
				break
			}
			got = append(got, string(data))
		}
		if !slices.Equal(got, tc.want) || (s.err != nil) != tc.fails {
			t.Errorf("%s: %.100q, %v", tc.name, got, s.err)
		}
	}
}

func FuzzStream(f *testing.F) {
	f.Add("event: state\nid: 1\ndata: a\ndata: b\n\n: c\n\n")
	f.Fuzz(func(t *testing.T, in string) {
		s := newStream(strings.NewReader(in))
		for range len(in) + 1 {
			data, ok := s.next()
			if !ok {
				return
			}
			if len(data) > len(in) {
				t.Fatalf("more data than there was: %q", data)
			}
		}
		t.Fatal("it does not end")
	})
}

func TestEvents(t *testing.T) {
	f := testFolder(t)
	var after string
	more := make(chan string)
	serve(t, f, web, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		after = r.Header.Get("Last-Event-ID")
		w.(http.Flusher).Flush()
		for {
			select {
			case <-r.Context().Done():
				return
			case text, ok := <-more:
				if !ok {
					return
				}
				io.WriteString(w, text)
				w.(http.Flusher).Flush()
			}
		}
	}))
	send := func(seq int) { more <- fmt.Sprintf("id: %d\ndata: {\"seq\":%d,\"kind\":\"note\"}\n\n", seq, seq) }
	c := f.Dial(web.Namespace, web.ID)

	// It stands before anything happens, and each event comes when it happens.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := c.Events(ctx, 7)
	if err != nil || after != "7" {
		t.Fatalf("after %q: %v", after, err)
	}
	go send(1)
	var seen []uint64
	for e, err := range events {
		if err != nil || e.Kind != api.EventNote {
			t.Fatalf("%+v, %v", e, err)
		}
		if seen = append(seen, e.Seq); e.Seq == 3 {
			cancel() // which is no error
			continue
		}
		go send(int(e.Seq) + 1)
	}
	if !slices.Equal(seen, []uint64{1, 2, 3}) {
		t.Errorf("events %v", seen)
	}

	// What is no event is an error, the last of the sequence.
	if events, err = c.Events(t.Context(), 0); err != nil || after != "" {
		t.Fatalf("after %q: %v", after, err)
	}
	go func() { more <- "data: {]\n\n" }()
	count := 0
	for _, err := range events {
		if count++; err == nil {
			t.Error("no error of nonsense")
		}
	}
	if count != 1 {
		t.Errorf("%d elements", count)
	}

	// The server's end is a clean one.
	if events, err = c.Events(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	close(more)
	for e, err := range events {
		t.Errorf("%+v, %v after the end", e, err)
	}
}
