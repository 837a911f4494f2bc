//go:build linux

package httpd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/shim/api"
	fastmetrics "github.com/fastmig/fastmig/shim/metrics"
)

// The document, as far as the tests look at it.
type (
	openapi struct {
		OpenAPI    string                             `json:"openapi"`
		Paths      map[string]map[string]operationDoc `json:"paths"`
		Components struct {
			Schemas   schemas             `json:"schemas"`
			Responses map[string]response `json:"responses"`
		} `json:"components"`
	}
	operationDoc struct {
		ID          string              `json:"operationId"`
		RequestBody *response           `json:"requestBody"`
		Responses   map[string]response `json:"responses"`
	}
	response struct {
		Ref     string         `json:"$ref"`
		Headers map[string]any `json:"headers"`
		Content map[string]struct {
			Schema json.RawMessage `json:"schema"`
		} `json:"content"`
	}
)

func readDocument(t *testing.T) openapi {
	t.Helper()
	var doc openapi
	if err := json.Unmarshal(document, &doc); err != nil {
		t.Fatal(err)
	}
	// Once more, for the keywords that the validator does not know.
	var parts struct {
		Components struct{ Schemas map[string]json.RawMessage }
	}
	if err := json.Unmarshal(document, &parts); err != nil {
		t.Fatal(err)
	}
	for name, text := range parts.Components.Schemas {
		strictSchema(t, name, text)
	}
	return doc
}

func strictSchema(t *testing.T, name string, text []byte) *schema {
	t.Helper()
	s := new(schema)
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil {
		t.Fatalf("schema %s: %v", name, err)
	}
	return s
}

func (doc openapi) response(t *testing.T, r response) response {
	t.Helper()
	if r.Ref == "" {
		return r
	}
	r, ok := doc.Components.Responses[strings.TrimPrefix(r.Ref, "#/components/responses/")]
	if !ok {
		t.Fatalf("no response %s", r.Ref)
	}
	return r
}

func TestDocumentHasTheRoutes(t *testing.T) {
	doc := readDocument(t)
	if doc.OpenAPI != "3.0.3" {
		t.Errorf("OpenAPI %s", doc.OpenAPI)
	}
	ids := map[string]string{}
	for path, methods := range doc.Paths {
		r, ok := routes[path]
		if !ok {
			t.Errorf("%s is documented, and not there", path)
			continue
		}
		if got := slices.Collect(maps.Keys(methods)); len(got) != 1 || got[0] != strings.ToLower(r.method) {
			t.Errorf("%s: documented %v, there is %s", path, got, r.method)
		}
		for _, op := range methods {
			if (op.RequestBody != nil) != r.takesJSON {
				t.Errorf("%s: body documented: %v", path, op.RequestBody != nil)
			}
			if ids[op.ID] != "" || op.ID == "" {
				t.Errorf("%s and %s are both %q", path, ids[op.ID], op.ID)
			}
			ids[op.ID] = path
		}
	}
	for path := range routes {
		if doc.Paths[path] == nil {
			t.Errorf("%s is not documented", path)
		}
	}
}

func TestDocumentIsServed(t *testing.T) {
	s := newServed(t, &scripted{})
	for _, path := range []string{"/openapi.json", "/v1/openapi.json"} {
		if status, h, body := s.ask(t, "GET", path, ""); status != 200 || body != string(document) || h.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %v", path, status, h)
		}
	}
}

// fill sets all that can be set, so that no field goes unchecked for being absent.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0))
		fill(v.Index(1))
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(1, 5)))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.String:
		v.SetString("x")
		if v.Type() == reflect.TypeFor[api.State]() {
			v.SetString(string(api.Running))
		}
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint64:
		v.SetUint(7)
	case reflect.Float64:
		v.SetFloat(1.5)
	case reflect.Bool:
		v.SetBool(true)
	default:
		panic(v.Kind())
	}
}

func filled[T any]() T {
	var v T
	fill(reflect.ValueOf(&v).Elem())
	return v
}

// broken is a service that panics.
type broken struct{ *scripted }

func (broken) Events(context.Context, uint64) <-chan api.Event { panic("a bug") }

// situation is a way to make an operation answer.
type situation struct {
	name    string
	method  string
	body    string
	header  [2]string
	err     error
	broken  bool
	closing bool
	bare    bool
}

func situations() []situation {
	list := []situation{
		{name: "as it should be"},
		{name: "nothing to say", bare: true},
		{name: "another method", method: "PATCH"},
		{name: "too large", body: strings.Repeat("x", maxBody+1)},
		{name: "no JSON", body: "{"},
		{name: "another type", header: [2]string{"Content-Type", "text/plain"}},
		{name: "another site", header: [2]string{"Sec-Fetch-Site", "cross-site"}},
		{name: "fault", broken: true},
		{name: "closing", closing: true},
	}
	for _, err := range []error{
		errdefs.ErrInvalidArgument, errdefs.ErrDataLoss, errdefs.ErrResourceExhausted, errdefs.ErrPermissionDenied,
		errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition, errdefs.ErrNotImplemented, errdefs.ErrNotFound,
		errdefs.ErrUnavailable, errdefs.ErrAborted, context.Canceled, context.DeadlineExceeded, errors.New("boom"),
	} {
		list = append(list, situation{name: err.Error(), err: err})
	}
	return list
}

func (st situation) answer(method, path string) *httptest.ResponseRecorder {
	result, status := filled[api.Result](), filled[api.Status]()
	status.LastError.Error.Kind = "not_found"
	event := filled[api.Event]()
	event.Kind = api.EventNote
	if st.bare {
		result, status = api.Result{State: api.Standby}, api.Status{State: api.Standby}
		event = api.Event{Kind: api.EventState}
	}
	s := &scripted{status: status, do: func(context.Context, any) (api.Result, error) {
		if st.broken {
			panic("a bug")
		}
		return result, st.err
	}, events: func(context.Context, uint64) <-chan api.Event {
		ch := make(chan api.Event, 1)
		ch <- event
		close(ch)
		return ch
	}}
	recorder := fastmetrics.New("ns", "id")
	recorder.Operation("checkpoint", nil, time.Second, time.Second, 1)
	server := &Server{service: s, timing: defaultTiming, idle: make(chan struct{}), closing: st.closing,
		metrics: recorder.Handler(func() api.State { return api.Running })}
	if st.bare {
		server.metrics = nil
	}
	if st.broken {
		server.service = broken{s}
		server.metrics = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("a bug") })
		if strings.HasSuffix(path, "/status") {
			server.service = nil
		}
	}
	if st.method != "" {
		method = st.method
	}
	r := httptest.NewRequest(method, path, strings.NewReader(st.body))
	if st.header[0] != "" {
		r.Header.Set(st.header[0], st.header[1])
	}
	w := httptest.NewRecorder()
	handler{server, Host}.ServeHTTP(patient{w}, r)
	return w
}

// Every answer that an operation can give is documented, and every documented one is
// given.
func TestDocumentHasTheAnswers(t *testing.T) {
	doc := readDocument(t)
	for path, route := range routes {
		op := doc.Paths[path][strings.ToLower(route.method)]
		seen := map[string]bool{}
		for _, st := range situations() {
			w := st.answer(route.method, path)
			status := strconv.Itoa(w.Code)
			seen[status] = true
			documented, ok := op.Responses[status]
			if !ok {
				t.Errorf("%s, %s: %s is not documented: %s", path, st.name, status, w.Body)
				continue
			}
			documented = doc.response(t, documented)
			kind, _, err := mime.ParseMediaType(w.Header().Get("Content-Type"))
			content, ok := documented.Content[kind]
			if err != nil || !ok {
				t.Errorf("%s, %s: %s: Content-Type %q is not documented", path, st.name, status, w.Header().Get("Content-Type"))
				continue
			}
			for h := range documented.Headers {
				if w.Header().Get(h) == "" {
					t.Errorf("%s, %s: %s: no header %s", path, st.name, status, h)
				}
			}
			s := strictSchema(t, path+" "+status, content.Schema)
			switch kind {
			case "application/json":
				err = doc.Components.Schemas.validateText(s, w.Body.String())
			case "text/event-stream":
				err = errors.New("no event")
				for line := range strings.Lines(w.Body.String()) {
					if data, ok := strings.CutPrefix(line, "data: "); ok {
						err = doc.Components.Schemas.validateText(s, data)
					}
				}
			default:
				if s.Type != "string" || w.Body.Len() == 0 {
					err = fmt.Errorf("%q is no %s", w.Body, s.Type)
				}
			}
			if err != nil {
				t.Errorf("%s, %s: %s: %v\n%s", path, st.name, status, err, w.Body)
			}
		}
		for status := range op.Responses {
			if !seen[status] {
				t.Errorf("%s: %s is documented and never given", path, status)
			}
		}
	}
}
