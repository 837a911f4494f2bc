//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fastmig/fastmig/runtime/node"
)

func TestCommandLine(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	for _, tc := range []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"", 0, "fastmig install", ""},
		{"--help", 0, "Exit codes", ""},
		{"install --help", 0, "Examples:", ""},
		{"check --help", 0, "--json", ""},
		{"version", 0, "fastmig ", ""},
		{"completion bash", 0, "fastmig", ""},
		{"nonsense", exitUsage, "", `no command "nonsense"`},
		{"install --nonsense", exitUsage, "", "nonsense"},
		{"install here", exitUsage, "", `install takes no argument, got "here"`},
		{"check --root", exitUsage, "", "root"},
		{"check --json=maybe", exitUsage, "", "maybe"},
		{"--nonsense", exitUsage, "", "nonsense"},
		{"uninstall --root " + missing, exitFailed, "", "not found"},
		{"install --root relative", exitFailed, "", "relative"},
		{"install --fastfreeze " + missing, exitFailed, "", missing},
		{"check --root " + missing, exitFailed, "run `fastmig install`", ""},
	} {
		t.Run(tc.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), append([]string{"fastmig"}, strings.Fields(tc.args)...), &stdout, &stderr)
			if code != tc.code || !strings.Contains(stdout.String(), tc.stdout) || !strings.Contains(stderr.String(), tc.stderr) {
				t.Errorf("exit %d, want %d\nstdout (want %q):\n%s\nstderr (want %q):\n%s", code, tc.code, tc.stdout, &stdout, tc.stderr, &stderr)
			}
			if tc.stderr == "" && stderr.Len() > 0 {
				t.Errorf("unwanted on stderr: %s", &stderr)
			}
		})
	}
}

func TestCheckJSON(t *testing.T) {
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"fastmig", "check", "--json", "--root", filepath.Join(t.TempDir(), "missing")}, &stdout, &stderr)
	var r node.Report
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatalf("%v\n%s", err, &stdout)
	}
	if code != exitFailed || r.Verdicts[node.Run].Verdict != node.No {
		t.Errorf("exit %d, %v; want a no without a toolkit", code, r.Verdicts)
	}
	if f, ok := r.Feature(node.Toolkit); !ok || f.Status != node.No || f.Remedy == "" {
		t.Errorf("toolkit: %+v", f)
	}
}

func TestInterrupted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stdout, stderr bytes.Buffer
	if code := run(ctx, []string{"fastmig", "check"}, &stdout, &stderr); code != exitInterrupted {
		t.Errorf("exit %d, want %d\n%s", code, exitInterrupted, &stderr)
	}
}
