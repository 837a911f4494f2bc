package integration_test

import (
	"testing"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/shim/api"
)

// TestRestoreThreadsAgain brings a service with threads back into its own container,
// twice: their numbers must be free again, CRIU's own processes included.
func TestRestoreThreadsAgain(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Memcached)
	c := lab.MustRun(harness.RunOptions{Image: images.Memcached.Ref(), Annotations: map[string]string{
		"io.fastmig.image-url": "node:threads", "io.fastmig.on-exit": "default",
	}})
	service, leave := c.Interface(), false
	if _, err := service.Checkpoint(lab.Context(), api.CheckpointRequest{LeaveRunning: &leave}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		r, err := service.Restore(lab.Context(), api.RestoreRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if r.State != api.Running {
			t.Fatalf("after a restore the service is %s", r.State)
		}
		if _, err := service.Standby(lab.Context(), api.StopRequest{}); err != nil {
			t.Fatal(err)
		}
	}
}
