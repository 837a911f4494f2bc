//go:build linux

package httpd

import (
	"fmt"
	"strings"

	"github.com/fastmig/fastmig/shim/api"
)

// The checks of what a body says, as far as it can be told without the container: URLs,
// durations, signals and shell words are the service's to judge.

func checkRun(r *api.Run) error {
	if err := checkVerbose(r.Verbose); err != nil {
		return err
	}
	return checkEnv("envs", r.Envs)
}

func checkCheckpointRun(r *api.CheckpointRun) error {
	if r.NumShards != nil && *r.NumShards < 1 {
		return invalid(`field "num_shards": %d is less than 1`, *r.NumShards)
	}
	switch r.CPUBudget {
	case "", "low", "medium", "high":
	default:
		return invalid(`field "cpu_budget": low, medium or high is wanted, not %q`, clip(r.CPUBudget))
	}
	if err := checkVerbose(r.Verbose); err != nil {
		return err
	}
	return checkEnv("envs", r.Envs)
}

func checkCheckpoint(r *api.CheckpointRequest) error {
	switch r.TCP {
	case "", "close", "keep":
		return nil
	}
	return invalid(`field "tcp": close or keep is wanted, not %q`, clip(r.TCP))
}

func checkStart(r *api.StartRequest) error { return checkEnv("env", r.Env) }

func checkRestore(*api.RestoreRequest) error { return nil }

func checkStop(*api.StopRequest) error { return nil }

func checkVerbose(n int) error {
	if n < 0 {
		return invalid(`field "verbose": %d is less than 0`, n)
	}
	return nil
}

func checkEnv(field string, env []string) error {
	for i, kv := range env {
		if name, _, ok := strings.Cut(kv, "="); !ok || name == "" {
			return invalid("field %q: NAME=VALUE is wanted, with a name", fmt.Sprintf("%s[%d]", field, i))
		}
	}
	return nil
}
