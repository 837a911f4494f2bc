package integration_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/shim/api"
)

// heavy is the counting shell with a child that has some 64 MiB.
func heavy() harness.RunOptions {
	opts := tickOptions()
	opts.Args = []string{"sh", "-c", `awk 'BEGIN { x = "x"; while (length(x) < 64000000) x = x x; print "full"; fflush(); while (1) system("sleep 1") }' & ` + tickScript}
	return opts
}

// TestServiceEvents follows a checkpoint and a restore by their events.
func TestServiceEvents(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	c := lab.MustRun(heavy())
	waitText(t, lab, c.Output, "full\n")
	continues := ticking(lab, t, c)
	watch, err := c.Interface().Watch(lab.Context())
	check(t, err)
	url := nodeURL()
	saved := saveTo(t, lab, c, url, false)
	restoreFrom(t, lab, c, url)
	continues(c)
	is := func(to api.State) func(api.Event) bool {
		return func(e api.Event) bool {
			return e.Transition != nil && e.Transition.To == to && e.Transition.From == api.Restoring
		}
	}
	last, err := watch.WaitEvent(lab.Context(), "the end of the restore", is(api.Running))
	check(t, err)
	want := []api.State{api.Starting, api.Running, api.Checkpointing, api.Stopping, api.Standby, api.Restoring, api.Running}
	if got := watch.States(); !slices.Equal(got, want) {
		t.Errorf("the states are %v, not %v", got, want)
	}
	events := watch.Events()
	steps := map[string][]string{}
	var seq uint64
	var dumped int64
	for _, e := range events {
		if e.Seq <= seq {
			t.Errorf("event %d comes after %d", e.Seq, seq)
		}
		seq = e.Seq
		if e.At.IsZero() || time.Since(e.At) > time.Hour {
			t.Errorf("event %d is of %v", e.Seq, e.At)
		}
		p := e.Progress
		if (e.Kind == api.EventProgress) != (p != nil) || (e.Kind == api.EventState) != (e.Transition != nil) {
			t.Errorf("an event of kind %q is %+v", e.Kind, e)
		}
		if p == nil {
			continue
		}
		if p.Percent < -1 || p.Percent > 100 || p.Bytes < 0 || p.Total > 0 && p.Bytes > p.Total {
			t.Errorf("the progress is %+v", *p)
		}
		if known := steps[p.Operation]; !slices.Contains(known, p.Step) {
			steps[p.Operation] = append(known, p.Step)
		} else if known[len(known)-1] != p.Step {
			t.Errorf("the step %s comes back after %v", p.Step, known)
		}
		if p.Step == "commit" {
			dumped = p.Bytes
		}
	}
	equal(t, "the steps of the checkpoint", fmt.Sprint(steps["checkpoint"]), "[freeze dump digest commit]")
	equal(t, "the steps of the restore", fmt.Sprint(steps["restore"]), "[verify restore resume]")
	if dumped < 64_000_000 || dumped > saved.Checkpoint.Bytes {
		t.Errorf("the checkpoint's progress ended at %d bytes of %d", dumped, saved.Checkpoint.Bytes)
	}
	// Who comes later is told what is known, or what is new to them.
	for after, first := range map[uint64]uint64{0: events[0].Seq, events[2].Seq: events[3].Seq} {
		seq, err := c.Interface().Events(lab.Context(), after)
		check(t, err)
		for e, err := range seq {
			check(t, err)
			equal(t, "the first event", e.Seq, first)
			break
		}
	}
	// The stream ends with the container.
	check(t, c.Task.Kill(lab.Context(), 9))
	exitOf(t, lab, c)
	mustRemove(lab, t, c)
	select {
	case <-watch.Done():
		check(t, watch.Err())
	case <-lab.Context().Done():
		t.Error("the stream goes on without its container")
	}
	equal(t, "the last state", watch.States()[len(watch.States())-1], api.Ended)
	equal(t, "the events since", watch.Events()[len(watch.Events())-1].Seq > last.Seq, true)
}

// TestServiceMetrics reads a container's metrics as Prometheus does.
func TestServiceMetrics(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	c := lab.MustRun(tickOptions())
	continues := ticking(lab, t, c)
	url := nodeURL()
	first := saveTo(t, lab, c, url, true)
	second := saveTo(t, lab, c, url, false)
	if a := post(t, lab, c, "/v1/restore", `{"image_url":"node:nothing"}`); a.Status != 404 {
		t.Errorf("a restore of nothing: %d %s", a.Status, a.Text)
	}
	restoreFrom(t, lab, c, url)
	continues(c)
	a, err := c.Interface().Do(lab.Context(), "GET", "/metrics", "")
	check(t, err)
	done(t, "metrics", a, 200)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(a.Text))
	check(t, err)
	find := func(name string, labels ...string) *dto.Metric {
		t.Helper()
		var found *dto.Metric
		for _, m := range families[name].GetMetric() {
			has := map[string]string{}
			for _, l := range m.GetLabel() {
				has[l.GetName()] = l.GetValue()
			}
			fits := has["id"] == c.ID() && has["namespace"] == lab.Namespace
			for i := 0; i < len(labels); i += 2 {
				fits = fits && has[labels[i]] == labels[i+1]
			}
			if fits {
				found = m
			}
		}
		if found == nil {
			t.Fatalf("there is no %s with %v in\n%s", name, labels, a.Text)
		}
		return found
	}
	equal(t, "the checkpoints", find("fastmig_operations_total", "operation", "checkpoint", "outcome", "success").GetCounter().GetValue(), 2)
	equal(t, "the restores", find("fastmig_operations_total", "operation", "restore", "outcome", "success").GetCounter().GetValue(), 1)
	equal(t, "the refused restores", find("fastmig_operations_total", "operation", "restore", "outcome", "refused").GetCounter().GetValue(), 1)
	equal(t, "the durations of checkpoints", find("fastmig_operation_duration_seconds", "operation", "checkpoint").GetHistogram().GetSampleCount(), 2)
	bytes := find("fastmig_checkpoint_bytes_total").GetCounter().GetValue()
	equal(t, "the bytes", int64(bytes), first.Checkpoint.Bytes+second.Checkpoint.Bytes)
	equal(t, "the state running", find("fastmig_service_state", "state", "running").GetGauge().GetValue(), 1)
	equal(t, "the state standby", find("fastmig_service_state", "state", "standby").GetGauge().GetValue(), 0)

	// The description of the interface is served with it.
	a, err = c.Interface().Do(lab.Context(), "GET", "/v1/openapi.json", "")
	check(t, err)
	var doc struct {
		OpenAPI string         `json:"openapi"`
		Paths   map[string]any `json:"paths"`
	}
	check(t, json.Unmarshal([]byte(done(t, "openapi", a, 200)), &doc))
	if !strings.HasPrefix(doc.OpenAPI, "3.") || doc.Paths["/run"] == nil || doc.Paths["/v1/restore"] == nil {
		t.Errorf("the document is of %q and has %d paths", doc.OpenAPI, len(doc.Paths))
	}
}
