//go:build linux

package httpd

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/fastmig/fastmig/shim/api"
)

func TestBadBodies(t *testing.T) {
	s := newServed(t, &scripted{})
	for _, tc := range []struct{ path, body, says string }{
		{"/run", `{"app_arg":"x"}`, `field "app_arg" is not known`},
		{"/run", `{"APP_ARGS":"x"}`, `field "APP_ARGS" is not known`},
		{"/run", `{"":1}`, `field "" is not known`},
		{"/run", `{"image_url":"a","image_url":"b"}`, `field "image_url" is there twice`},
		{"/run", `{"image_url":"a","image\u005furl":"b"}`, `field "image_url" is there twice`},
		{"/run", `{"image_url":7}`, `field "image_url": a string is wanted, not a number`},
		{"/run", `{"image_url":null}`, `field "image_url": a string is wanted, not null`},
		{"/run", `{"no_restore":"true"}`, `field "no_restore": true or false is wanted, not a string`},
		{"/run", `{"verbose":true}`, `field "verbose": a whole number is wanted, not true`},
		{"/run", `{"verbose":1.5}`, `field "verbose": a whole number is wanted`},
		{"/run", `{"verbose":99999999999999999999}`, `field "verbose": a whole number is wanted`},
		{"/run", `{"verbose":-1}`, `field "verbose": -1 is less than 0`},
		{"/run", `{"envs":"A=1"}`, `field "envs": an array is wanted, not a string`},
		{"/run", `{"envs":["A=1",{}]}`, `field "envs[1]": a string is wanted, not an object`},
		{"/run", `{"envs":["A=1",null]}`, `field "envs[1]": a string is wanted, not null`},
		{"/run", `{"envs":["A=1","B"]}`, `field "envs[1]": NAME=VALUE is wanted`},
		{"/run", `{"envs":["=1"]}`, `field "envs[0]": NAME=VALUE is wanted`},
		{"/run", `{"app_args":"a"} {}`, `not one JSON object`},
		{"/run", `{"app_args":"a"`, `not one JSON object`},
		{"/run", `app_args=a`, `not one JSON object`},
		{"/run", `null`, `is to be a JSON object, not null`},
		{"/run", `[]`, `is to be a JSON object, not an array`},
		{"/run", `"x"`, `is to be a JSON object, not a string`},
		{"/run", `3`, `is to be a JSON object, not a number`},
		{"/run", "{\"app_args\":\"\xff\"}", `not UTF-8`},
		{"/run", `{"app_args":"a\u0000b"}`, `NUL`},
		{"/run", `{"app_args":"\ud800"}`, `half a surrogate pair`},
		{"/run", `{"app_args":"\udc00\ud800"}`, `half a surrogate pair`},
		{"/run", `{"app_args":"\ud800\n1234"}`, `half a surrogate pair`},
		{"/checkpoint", `{"num_shards":0}`, `field "num_shards": 0 is less than 1`},
		{"/checkpoint", `{"cpu_budget":"max"}`, `field "cpu_budget": low, medium or high is wanted, not "max"`},
		{"/checkpoint", `{"verbose":-2}`, `field "verbose"`},
		{"/checkpoint", `{"envs":["x"]}`, `field "envs[0]"`},
		{"/checkpoint", `{"leave_running":1}`, `field "leave_running": true or false is wanted, not a number`},
		{"/v1/checkpoint", `{"tcp":"drop"}`, `field "tcp": close or keep is wanted`},
		{"/v1/checkpoint", `{"hooks":[]}`, `field "hooks": an object is wanted, not an array`},
		{"/v1/checkpoint", `{"hooks":{"timeout":3}}`, `field "hooks.timeout": a string is wanted, not a number`},
		{"/v1/restore", `{"hooks":{"befor":["a"]}}`, `field "hooks.befor" is not known`},
		{"/v1/start", `{"env":["x"]}`, `field "env[0]"`},
		{"/v1/start", `{"args":"x"}`, `field "args": an array is wanted, not a string`},
		{"/v1/stop", `{"timeout":10}`, `field "timeout": a string is wanted, not a number`},
		{"/v1/standby", `{"x":1}`, `field "x" is not known`},
	} {
		status, header, body := s.ask(t, "POST", tc.path, tc.body)
		if strings.HasPrefix(tc.path, "/v1/") {
			var e api.Error
			if err := json.Unmarshal([]byte(body), &e); err != nil || e.Kind != "invalid_argument" {
				t.Errorf("%s %s: %v %s", tc.path, tc.body, err, body)
			}
			body = e.Message
		} else if header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%s: Content-Type %q", tc.path, header.Get("Content-Type"))
		}
		if status != http.StatusBadRequest || !strings.Contains(body, tc.says) {
			t.Errorf("%s %s: %d %s, want 400 and %s", tc.path, tc.body, status, body, tc.says)
		}
	}
	if n := s.service.count(); n != 0 {
		t.Errorf("the service was called %d times", n)
	}
}

// A surrogate pair that is whole, and what only looks like an escape, are text.
func TestGoodEscapes(t *testing.T) {
	s := newServed(t, &scripted{})
	status, _, body := s.ask(t, "POST", "/run", `{"app_args":"\ud83d\ude00 \\u0000 \"\\ud800\" é"}`)
	if want := "\U0001F600 \\u0000 \"\\ud800\" é"; status != http.StatusOK || s.service.last(t).(api.Run).AppArgs != want {
		t.Errorf("%d %s, %q", status, body, s.service.last(t))
	}
}

func TestRefusals(t *testing.T) {
	s := newServed(t, &scripted{})
	big := strings.Repeat(" ", maxBody-1) + "{}"
	for _, tc := range []struct {
		method, path, body string
		header             []string
		status             int
		says               string
	}{
		{"POST", "/run", big, nil, 400, "1048576 bytes"},
		{"POST", "/checkpoint", big, nil, 400, "1048576 bytes"},
		{"POST", "/v1/start", big, nil, 413, "1048576 bytes"},
		{"POST", "/run", "{}", []string{"Content-Type", "text/plain"}, 400, "application/json"},
		{"POST", "/v1/start", "{}", []string{"Content-Type", "text/plain"}, 415, "application/json"},
		{"POST", "/v1/start", "{}", []string{"Content-Type", ";;"}, 415, "application/json"},
		{"POST", "/v1/start", "{}", []string{"Sec-Fetch-Site", "cross-site"}, 403, "another site"},
		{"POST", "/run", "{}", []string{"Origin", "http://elsewhere"}, 400, "another site"},
		{"GET", "/run", "", nil, 405, "POST"},
		{"DELETE", "/checkpoint", "", nil, 405, "POST"},
		{"PUT", "/v1/start", "{}", nil, 405, "POST"},
		{"POST", "/v1/status", "", nil, 405, "GET"},
		{"POST", "/v1/events", "", nil, 405, "GET"},
		{"GET", "/v1/status", "x", nil, 400, "no body"},
		{"GET", "/", "", nil, 404, "no such path"},
		{"POST", "/v1/nothing", "", nil, 404, "no such path"},
		{"POST", "/run/", "", nil, 404, "no such path"},
		{"POST", "//run", "", nil, 404, "no such path"},
		{"POST", "/v1/../run", "", nil, 404, "no such path"},
	} {
		status, header, body := s.ask(t, tc.method, tc.path, tc.body, tc.header...)
		if status != tc.status || !strings.Contains(body, tc.says) {
			t.Errorf("%s %s %v: %d %s, want %d and %s", tc.method, tc.path, tc.header, status, body, tc.status, tc.says)
		}
		if status == http.StatusMethodNotAllowed && !strings.Contains(header.Get("Allow"), tc.says) {
			t.Errorf("%s %s: Allow: %q", tc.method, tc.path, header.Get("Allow"))
		}
	}
	if n := s.service.count(); n != 0 {
		t.Errorf("the service was called %d times", n)
	}
	if status, _, body := s.ask(t, "POST", "/run", big[1:]); status != http.StatusOK {
		t.Errorf("a body of 1 MiB: %d %s", status, body)
	}
	if status, header, body := s.ask(t, "HEAD", "/v1/status", ""); status != http.StatusOK || body != "" || header.Get("Content-Length") == "" {
		t.Errorf("HEAD: %d %v %q", status, header, body)
	}
}

// A body of unknown length is bounded, too.
func TestChunkedBody(t *testing.T) {
	s := newServed(t, &scripted{})
	for size, want := range map[int]int{100: 200, maxBody: 200, maxBody + 1: 413} {
		body := struct{ *strings.Reader }{strings.NewReader(strings.Repeat(" ", size-2) + "{}")} // hides its length
		w, err := s.client.Post("http://container/v1/start", "application/json", body)
		if err != nil {
			t.Fatal(err)
		}
		w.Body.Close()
		if w.StatusCode != want {
			t.Errorf("%d bytes: %d, want %d", size, w.StatusCode, want)
		}
	}
}

// A client that does not send what it has promised is let go, an operation that takes
// longer than any of the limits is not disturbed.
func TestSlowClientAndLongOperation(t *testing.T) {
	limit := 200 * time.Millisecond
	s := newServedWith(t, &scripted{do: func(ctx context.Context, _ any) (api.Result, error) {
		select {
		case <-ctx.Done():
			return api.Result{}, context.Cause(ctx)
		case <-time.After(3 * limit): // longer than all of the limits is what is tested
			return api.Result{State: api.Running}, nil
		}
	}}, timing{header: limit, body: limit, write: limit, idle: 10 * time.Second, keepAlive: limit})

	for _, head := range []string{
		"POST /run HTTP/1.1\r\nHost: c\r\nContent-Length: 10\r\n\r\n{",
		"POST /run HTTP/1.1\r\nHost: c\r\n",
		"",
	} {
		c, err := net.Dial("unix", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte(head)); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		answer := new(bytes.Buffer)
		if _, err := answer.ReadFrom(c); err != nil {
			t.Errorf("%q: the connection is not closed: %v", head, err)
		}
		if strings.Contains(answer.String(), "200 OK") {
			t.Errorf("%q: %s", head, answer)
		}
	}
	if n := s.service.count(); n != 0 {
		t.Errorf("the service was called %d times", n)
	}
	for _, body := range []string{"", "{}"} { // net/http treats the two differently
		if status, _, text := s.ask(t, "POST", "/run", body); status != http.StatusOK {
			t.Errorf("an operation of %v: %d %s", 3*limit, status, text)
		}
	}
}

func TestLongHeader(t *testing.T) {
	s := newServed(t, &scripted{})
	status, _, _ := s.ask(t, "GET", "/v1/status", "", "X", strings.Repeat("x", 16<<10))
	if status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("%d", status)
	}
}

// What the fuzzer finds must not end in a panic, in an answer of 200 to what a strict
// encoding/json refuses, or in a call of the service with a value that the checks forbid.
func FuzzRun(f *testing.F) {
	fuzzBody(f, "/run", new(api.Run), func(v any) error { r := v.(api.Run); return checkRun(&r) })
}

func FuzzCheckpointRun(f *testing.F) {
	fuzzBody(f, "/checkpoint", new(api.CheckpointRun), func(v any) error { r := v.(api.CheckpointRun); return checkCheckpointRun(&r) })
}

func FuzzCheckpoint(f *testing.F) {
	fuzzBody(f, "/v1/checkpoint", new(api.CheckpointRequest), func(v any) error { r := v.(api.CheckpointRequest); return checkCheckpoint(&r) })
}

func FuzzStart(f *testing.F) {
	fuzzBody(f, "/v1/start", new(api.StartRequest), func(v any) error { r := v.(api.StartRequest); return checkStart(&r) })
}

// patient is a recorder that takes deadlines, as a connection does.
type patient struct{ *httptest.ResponseRecorder }

func (patient) SetReadDeadline(time.Time) error  { return nil }
func (patient) SetWriteDeadline(time.Time) error { return nil }

func fuzzBody[T any](f *testing.F, path string, _ *T, check func(any) error) {
	for _, seed := range []string{
		``, `{}`, `null`, `{"image_url":"file:/a","verbose":1,"envs":["A=b"]}`, `{"num_shards":4,"cpu_budget":"low"}`,
		`{"leave_running":null,"tcp":"keep","hooks":{"timeout":"1s","before_checkpoint":["a"]}}`,
		`{"args":["a","b"],"env":["A=b"]}`, `{"app_args":"\ud83d\ude00\u0000"}`, `{"a":1}{}`, `{"verbose":1e3}`, `{"Verbose":1}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		s := &scripted{}
		server := &Server{service: s, timing: defaultTiming, idle: make(chan struct{})}
		w := httptest.NewRecorder()
		r := httptest.NewRequest("POST", path, bytes.NewReader(body))
		handler{server, Host}.ServeHTTP(patient{w}, r)

		trimmed := bytes.Trim(body, " \t\r\n")
		if len(trimmed) == 0 {
			trimmed = []byte("{}")
		}
		d := json.NewDecoder(bytes.NewReader(trimmed))
		d.DisallowUnknownFields()
		var v T
		strict := d.Decode(&v)
		switch {
		case w.Code == http.StatusOK && strict != nil:
			t.Errorf("200 for what is not strict: %v", strict)
		case w.Code == http.StatusOK && (s.count() != 1 || asJSON(t, s.calls[0]) != asJSON(t, v)):
			t.Errorf("the service was called with %v, want %v", s.calls, v)
		case w.Code != http.StatusOK && s.count() != 0:
			t.Errorf("%d, and the service was called", w.Code)
		case w.Code != http.StatusOK && w.Code != http.StatusBadRequest:
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if s.count() != 0 {
			if err := check(s.calls[0]); err != nil {
				t.Errorf("the service was called with a bad value: %v", err)
			}
			if strings.Contains(strings.ReplaceAll(asJSON(t, s.calls[0]), `\\`, ""), `\u0000`) {
				t.Error("the service was called with a NUL")
			}
		}
	})
}
