//go:build linux

// Package metrics counts what one container's service goes through, for Prometheus.
package metrics

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/fastmig/fastmig/shim/api"
)

// The outcomes of an operation.
const (
	success   = "success"
	refused   = "refused"   // nothing was done: a bad request, or a wrong moment
	cancelled = "cancelled" // its client went away
	failed    = "failed"
)

// The operations whose bytes are counted.
const (
	checkpoint = "checkpoint"
	restore    = "restore"
)

// states are all that a service can be in.
var states = []api.State{
	api.Standby, api.Starting, api.Restoring, api.Running, api.Paused,
	api.Checkpointing, api.Stopping, api.Exited, api.Recovering, api.Ended,
}

// buckets, in seconds: a warm restore takes milliseconds, a large checkpoint minutes.
var buckets = []float64{.005, .01, .02, .03, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60, 120, 300}

// Recorder is one container's. It costs a few words until the first operation or the
// first scrape. Its methods may be called at any time, and do not block.
type Recorder struct {
	namespace, id string
	state         atomic.Pointer[func() api.State]

	make sync.Once
	set  *set
}

// New makes the recorder of a container.
func New(namespace, id string) *Recorder {
	return &Recorder{namespace: namespace, id: id}
}

// set is a container's collectors.
type set struct {
	registry       *prometheus.Registry
	operations     *prometheus.CounterVec
	duration, away *prometheus.HistogramVec
	checkpoints    prometheus.Counter
	restores       prometheus.Counter
	recoveries     *prometheus.CounterVec
	recoveryAway   prometheus.Histogram
}

func (r *Recorder) collectors() *set {
	r.make.Do(func() {
		labels := prometheus.Labels{"namespace": r.namespace, "id": r.id}
		counter := func(name, help string) prometheus.CounterOpts {
			return prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}
		}
		histogram := func(name, help string) prometheus.HistogramOpts {
			return prometheus.HistogramOpts{Name: name, Help: help, ConstLabels: labels, Buckets: buckets}
		}
		s := &set{
			registry: prometheus.NewRegistry(),
			operations: prometheus.NewCounterVec(counter("fastmig_operations_total",
				"Operations on the service that have ended, by outcome: success, refused, cancelled or failed."),
				[]string{"operation", "outcome"}),
			duration: prometheus.NewHistogramVec(histogram("fastmig_operation_duration_seconds",
				"How long operations took; those that were refused are not in it."), []string{"operation"}),
			away: prometheus.NewHistogramVec(histogram("fastmig_operation_away_seconds",
				"How long the service stood still or was away in operations; those that did not touch it are not in it."), []string{"operation"}),
			checkpoints: prometheus.NewCounter(counter("fastmig_checkpoint_bytes_total",
				"Bytes of the checkpoints that were written whole.")),
			restores: prometheus.NewCounter(counter("fastmig_restore_bytes_total",
				"Bytes of the checkpoints that were restored.")),
			recoveries: prometheus.NewCounterVec(counter("fastmig_recoveries_total",
				"Recoveries of a service whose FastFreeze was lost, by cause and outcome."), []string{"cause", "outcome"}),
			recoveryAway: prometheus.NewHistogram(histogram("fastmig_recovery_away_seconds",
				"How long the service was away until it was recovered.")),
		}
		s.registry.MustRegister(s.operations, s.duration, s.away, s.checkpoints, s.restores,
			s.recoveries, s.recoveryAway, &stateCollector{r, prometheus.NewDesc("fastmig_service_state",
				"The service's state: 1 for the one that it is in, 0 for the others.", []string{"state"}, labels)})
		r.set = s
	})
	return r.set
}

// Operation counts an operation that has ended: checkpoint, restore, start, …. Took is how
// long it lasted, away how long the service stood still or was away in it, 0 if it was
// not touched; bytes are the checkpoint's that it wrote or read. The name becomes a
// label: it must be one of a few.
func (r *Recorder) Operation(name string, err error, took, away time.Duration, bytes int64) {
	s := r.collectors()
	outcome := outcomeOf(err)
	s.operations.WithLabelValues(name, outcome).Inc()
	if outcome != refused {
		s.duration.WithLabelValues(name).Observe(took.Seconds())
	}
	if away > 0 {
		s.away.WithLabelValues(name).Observe(away.Seconds())
	}
	if err != nil || bytes <= 0 {
		return
	}
	switch name {
	case checkpoint:
		s.checkpoints.Add(float64(bytes))
	case restore:
		s.restores.Add(float64(bytes))
	}
}

// Recovery counts an attempt to bring a lost FastFreeze and its service back. Away is how
// long the service was gone; it counts when the recovery succeeded. The cause becomes a
// label: it must be one of a few, never a text that the container has a say in.
func (r *Recorder) Recovery(cause string, err error, away time.Duration) {
	s := r.collectors()
	s.recoveries.WithLabelValues(cause, outcomeOf(err)).Inc()
	if err == nil {
		s.recoveryAway.Observe(away.Seconds())
	}
}

func outcomeOf(err error) string {
	switch {
	case err == nil:
		return success
	case errdefs.IsCanceled(err), errors.Is(err, context.Canceled):
		return cancelled
	case errdefs.IsInvalidArgument(err), errdefs.IsFailedPrecondition(err), errdefs.IsNotFound(err),
		errdefs.IsAlreadyExists(err), errdefs.IsNotImplemented(err), errdefs.IsPermissionDenied(err):
		return refused
	default:
		return failed
	}
}

// Handler answers scrapes. State gives the service's present state; it must not block. A
// later call of Handler replaces it.
func (r *Recorder) Handler(state func() api.State) http.Handler {
	r.state.Store(&state)
	return http.HandlerFunc(r.scrape)
}

// scrape writes the metrics in the format that the client asks for. The library's own
// handler would do, and bring in two compressors for what never leaves the host.
func (r *Recorder) scrape(w http.ResponseWriter, req *http.Request) {
	families, err := r.collectors().registry.Gather()
	if err != nil {
		log.G(req.Context()).WithError(err).Error("gather the metrics")
		http.Error(w, "gather the metrics: "+err.Error(), http.StatusInternalServerError)
		return
	}
	format := expfmt.NegotiateAccept(req.Header, expfmt.NewFormat(expfmt.TypeTextPlain), expfmt.NewFormat(expfmt.TypeOpenMetrics))
	var buf bytes.Buffer
	enc := expfmt.NewEncoder(&buf, format)
	for _, f := range families {
		if err = enc.Encode(f); err != nil {
			break
		}
	}
	if closer, ok := enc.(expfmt.Closer); ok && err == nil { // OpenMetrics has a last line
		err = closer.Close()
	}
	if err != nil {
		log.G(req.Context()).WithError(err).Error("write the metrics")
		http.Error(w, "write the metrics: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", string(format))
	w.Header().Set("Content-Length", strconv.Itoa(buf.Len()))
	w.Write(buf.Bytes())
}

// stateCollector looks at the service's state when it is asked.
type stateCollector struct {
	r    *Recorder
	desc *prometheus.Desc
}

func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	state := c.r.state.Load()
	if state == nil {
		return
	}
	present := (*state)()
	for _, s := range states {
		value := 0.0
		if s == present {
			value = 1
		}
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, value, string(s))
	}
}
