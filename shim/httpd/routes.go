//go:build linux

package httpd

import (
	"context"
	"net/http"

	"github.com/fastmig/fastmig/shim/api"
)

// route is one operation of the interface.
type route struct {
	method string
	// network: it is there in the container's network, too.
	network bool
	// text: it answers in plain words, as FastMig's daemon did.
	text bool
	// takesJSON: it has a body.
	takesJSON bool
	serve     func(*call)
}

// routes are all there is, by their paths. They are the process's, not the server's: a
// container costs no table of its own.
var routes = map[string]route{
	"/run": {method: http.MethodPost, network: true, text: true, takesJSON: true,
		serve: textual(checkRun, Service.Run, describeRun)},
	"/checkpoint": {method: http.MethodPost, network: true, text: true, takesJSON: true,
		serve: textual(checkCheckpointRun, Service.CheckpointRun, describeCheckpoint)},
	"/status":          {method: http.MethodGet, network: true, serve: status},
	"/v1/status":       {method: http.MethodGet, network: true, serve: status},
	"/v1/checkpoint":   {method: http.MethodPost, takesJSON: true, serve: operation(checkCheckpoint, Service.Checkpoint)},
	"/v1/restore":      {method: http.MethodPost, takesJSON: true, serve: operation(checkRestore, Service.Restore)},
	"/v1/start":        {method: http.MethodPost, takesJSON: true, serve: operation(checkStart, Service.Start)},
	"/v1/stop":         {method: http.MethodPost, takesJSON: true, serve: operation(checkStop, Service.Stop)},
	"/v1/standby":      {method: http.MethodPost, takesJSON: true, serve: operation(checkStop, Service.Standby)},
	"/v1/events":       {method: http.MethodGet, serve: events},
	"/metrics":         {method: http.MethodGet, serve: metrics},
	"/v1/openapi.json": {method: http.MethodGet, serve: openAPI},
	"/openapi.json":    {method: http.MethodGet, serve: openAPI},
}

// operation serves one under /v1: JSON in, JSON out, and not before it has ended.
func operation[T any](check func(*T) error, do func(Service, context.Context, T) (api.Result, error)) func(*call) {
	return func(c *call) {
		var request T
		if !decodeBody(c, &request, check) {
			return
		}
		result, err := do(c.server.service, c.r.Context(), request)
		if err != nil {
			c.fail(err)
			return
		}
		c.json(http.StatusOK, result)
	}
}

// textual serves one of FastMig's published operations.
func textual[T any](check func(*T) error, do func(Service, context.Context, T, Origin) (api.Result, error), describe func(api.Result) string) func(*call) {
	return func(c *call) {
		var request T
		if !decodeBody(c, &request, check) {
			return
		}
		result, err := do(c.server.service, c.r.Context(), request, c.origin)
		if err != nil {
			c.fail(err)
			return
		}
		c.plain(http.StatusOK, describe(result))
	}
}

func decodeBody[T any](c *call, request *T, check func(*T) error) bool {
	body, err := c.body()
	if err == nil {
		err = decode(body, request)
	}
	if err == nil {
		err = check(request)
	}
	if err != nil {
		c.fail(err)
	}
	return err == nil
}

func status(c *call) {
	s := c.server.service.Status()
	if s.History == nil {
		s.History = []api.Transition{} // an array, never null
	}
	c.json(http.StatusOK, s)
}

func metrics(c *call) {
	if c.server.metrics == nil {
		c.fail(errNoMetrics)
		return
	}
	c.server.metrics.ServeHTTP(c.w, c.r)
}
