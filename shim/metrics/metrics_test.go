//go:build linux

package metrics

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	dto "github.com/prometheus/client_model/go"

	"github.com/fastmig/fastmig/shim/api"
)

func running() api.State { return api.Running }

// scrape gives all samples, by name and labels (without the constant ones).
func scrape(t *testing.T, h http.Handler) map[string]float64 {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusOK || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Fatalf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	samples := map[string]float64{}
	for name, f := range families {
		for _, m := range f.Metric {
			key, constant := name, 0
			for _, l := range m.Label {
				switch l.GetName() + "=" + l.GetValue() {
				case "namespace=ns", "id=c1":
					constant++
				default:
					key += " " + l.GetValue()
				}
			}
			if constant != 2 {
				t.Errorf("%s has the labels %v", name, m.Label)
			}
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				samples[key] = m.Counter.GetValue()
			case dto.MetricType_GAUGE:
				samples[key] = m.Gauge.GetValue()
			case dto.MetricType_HISTOGRAM:
				samples[key+" count"] = float64(m.Histogram.GetSampleCount())
				samples[key+" sum"] = m.Histogram.GetSampleSum()
				if b := m.Histogram.Bucket; b[0].GetUpperBound() != .005 || len(b) < 2 || b[len(buckets)-1].GetUpperBound() != 300 {
					t.Errorf("%s has the buckets %v", name, b)
				}
			default:
				t.Errorf("%s is a %v", name, f.GetType())
			}
		}
	}
	return samples
}

func expect(t *testing.T, got, want map[string]float64) {
	t.Helper()
	for k, v := range want {
		if g, ok := got[k]; !ok || g != v {
			t.Errorf("%s: %v (there: %v), want %v", k, g, ok, v)
		}
	}
}

func TestOperation(t *testing.T) {
	r := New("ns", "c1")
	h := r.Handler(running)
	r.Operation("checkpoint", nil, 2*time.Second, 500*time.Millisecond, 1000)
	r.Operation("checkpoint", nil, time.Second, 250*time.Millisecond, 24)
	r.Operation("checkpoint", errors.New("boom"), time.Second, time.Second, 5000)
	r.Operation("checkpoint", fmt.Errorf("now: %w", errdefs.ErrFailedPrecondition), time.Hour, 0, 0)
	r.Operation("checkpoint", fmt.Errorf("gone: %w", context.Canceled), time.Second, 0, 0)
	r.Operation("restore", nil, 20*time.Millisecond, 20*time.Millisecond, 77)
	r.Operation("start", nil, time.Second, 0, 99)
	got := scrape(t, h)
	expect(t, got, map[string]float64{
		"fastmig_operations_total checkpoint success":         2,
		"fastmig_operations_total checkpoint failed":          1,
		"fastmig_operations_total checkpoint refused":         1,
		"fastmig_operations_total checkpoint cancelled":       1,
		"fastmig_operations_total restore success":            1,
		"fastmig_operation_duration_seconds checkpoint count": 4, // the refused one took nothing
		"fastmig_operation_duration_seconds checkpoint sum":   5,
		"fastmig_operation_away_seconds checkpoint count":     3,
		"fastmig_operation_away_seconds checkpoint sum":       1.75,
		"fastmig_operation_away_seconds restore count":        1,
		"fastmig_checkpoint_bytes_total":                      1024, // not those of the failed one
		"fastmig_restore_bytes_total":                         77,
	})
	if _, ok := got["fastmig_operation_away_seconds start count"]; ok {
		t.Error("an operation that did not touch the service counts as away")
	}
}

func TestRecovery(t *testing.T) {
	r := New("ns", "c1")
	h := r.Handler(running)
	r.Recovery("killed", nil, 200*time.Millisecond)
	r.Recovery("killed", nil, 300*time.Millisecond)
	r.Recovery("hung", errors.New("boom"), time.Minute)
	expect(t, scrape(t, h), map[string]float64{
		"fastmig_recoveries_total killed success": 2,
		"fastmig_recoveries_total hung failed":    1,
		"fastmig_recovery_away_seconds count":     2,
		"fastmig_recovery_away_seconds sum":       0.5,
	})
}

func TestState(t *testing.T) {
	state := api.Standby
	h := New("ns", "c1").Handler(func() api.State { return state })
	for _, state = range states {
		got := scrape(t, h)
		for _, s := range states {
			want := 0.0
			if s == state {
				want = 1
			}
			expect(t, got, map[string]float64{"fastmig_service_state " + string(s): want})
		}
	}
}

// The states here are those that package api has.
func TestStatesAreAll(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../api/api.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, s := range states {
		known[string(s)] = true
	}
	n := 0
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); ok && typ.Name == "State" {
			n++
			if s, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value); err != nil || !known[s] {
				t.Errorf("state %q is not counted: %v", s, err)
			}
		}
		return true
	})
	if n != len(states) {
		t.Errorf("package api has %d states, %d are counted", n, len(states))
	}
}

// An idle container has no registry, and two containers do not share theirs.
func TestLazy(t *testing.T) {
	a, b := New("ns", "a"), New("ns", "b")
	h := a.Handler(running)
	if a.set != nil {
		t.Error("the collectors are made before they are needed")
	}
	b.Operation("start", nil, time.Second, 0, 0)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if text := w.Body.String(); strings.Contains(text, `id="b"`) || !strings.Contains(text, `id="a"`) {
		t.Errorf("%s", text)
	}
}

func TestFormats(t *testing.T) {
	r := New("ns", "c1")
	h := r.Handler(running)
	r.Operation("start", nil, time.Second, 0, 0)
	for accept, want := range map[string]struct{ kind, end string }{
		"": {"text/plain", ""},
		"application/openmetrics-text; version=1.0.0":     {"application/openmetrics-text", "# EOF\n"},
		"text/html,application/xhtml+xml;q=0.9,*/*;q=0.8": {"text/plain", ""},
	} {
		req := httptest.NewRequest("GET", "/metrics", nil)
		req.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		body, _ := io.ReadAll(w.Body)
		if !strings.HasPrefix(w.Header().Get("Content-Type"), want.kind) || !strings.HasSuffix(string(body), want.end) || len(body) == 0 {
			t.Errorf("Accept %q: %v\n%s", accept, w.Header(), body)
		}
		if w.Header().Get("Content-Length") != strconv.Itoa(len(body)) {
			t.Errorf("Accept %q: %s bytes announced, %d came", accept, w.Header().Get("Content-Length"), len(body))
		}
	}
}

func TestTogether(t *testing.T) {
	r := New("ns", "c1")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r.Operation("start", nil, time.Second, 0, 0)
			scrape(t, r.Handler(running))
			r.Recovery("killed", nil, time.Second)
		})
	}
	wg.Wait()
	expect(t, scrape(t, r.Handler(running)), map[string]float64{
		"fastmig_operations_total start success":  8,
		"fastmig_recoveries_total killed success": 8,
	})
}
