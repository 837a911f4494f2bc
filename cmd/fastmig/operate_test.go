//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/shim/api"
)

var written = &api.Checkpoint{URL: "node:web", Bytes: 12345678}

func TestOperations(t *testing.T) {
	testNode(t)
	s := testShim(t, "default", "web")
	var result api.Result
	for _, name := range []string{"checkpoint", "restore", "start", "stop", "standby"} {
		s.operate(name, func(context.Context) (api.Result, error) { return result, nil })
	}
	running := api.Result{State: api.Running, AppPid: 4711, Seconds: 0.4321, Away: 0.21, Checkpoint: written}
	standby := api.Result{State: api.Standby, Seconds: 1.26, Checkpoint: written}
	for _, tc := range []struct {
		args    []string
		result  api.Result
		request string
		stdout  string
	}{
		{
			[]string{"checkpoint", "web"}, running,
			`POST /v1/checkpoint {"leave_running":true}`,
			"default/web: checkpointed to node:web, 11.8 MiB, in 432 ms, the service was away for 210 ms; the service is running, pid 4711\n",
		}, {
			[]string{"checkpoint", "web", "--stop", "--image-url", "node:a,b", "--tcp", "keep", "--preserve", "/a,b", "--preserve", "/c"}, standby,
			`POST /v1/checkpoint {"image_url":"node:a,b","leave_running":false,"tcp":"keep","preserved_paths":["/a,b","/c"]}`,
			"default/web: checkpointed to node:web, 11.8 MiB, in 1.3 s; the container is in standby\n",
		}, {
			[]string{"checkpoint", "--leave-running=false", "web", "--hook-before", "a 'b c'", "--hook-after", `d "e" \f`, "--hook-timeout", "90s"}, standby,
			`POST /v1/checkpoint {"leave_running":false,"hooks":{"before_checkpoint":["a","b c"],"after_checkpoint":["d","e","f"],"timeout":"1m30s"}}`,
			"default/web: checkpointed to node:web, 11.8 MiB, in 1.3 s; the container is in standby\n",
		}, {
			[]string{"restore", "web"}, api.Result{State: api.Running, AppPid: 7, Seconds: 0.0042, Checkpoint: written},
			`POST /v1/restore {}`,
			"default/web: restored from node:web, 11.8 MiB, in 4.2 ms; the service is running, pid 7\n",
		}, {
			[]string{"restore", "web", "--image-url=file:/c", "--leave-stopped", "--hook-after", "up"}, api.Result{State: api.Running, AppPid: 7, Seconds: 150},
			`POST /v1/restore {"image_url":"file:/c","leave_stopped":true,"hooks":{"after_restore":["up"]}}`,
			"default/web: restored, left stopped (SIGCONT to its processes lets them go on), in 2m30s; the service is running, pid 7\n",
		}, {
			[]string{"start", "web"}, api.Result{State: api.Running, AppPid: 7, Seconds: 0.02},
			`POST /v1/start {}`,
			"default/web: started in 20 ms; the service is running, pid 7\n",
		}, {
			[]string{"start", "web", "--env", "A=1,2", "-e", "B=", "--", "/bin/x", "--json", "--", "y z"}, api.Result{State: api.Running, AppPid: 7},
			`POST /v1/start {"args":["/bin/x","--json","--","y z"],"env":["A=1,2","B="]}`,
			"default/web: started in 0.0 ms; the service is running, pid 7\n",
		}, {
			[]string{"stop", "web"}, api.Result{State: api.Standby, Seconds: 10},
			`POST /v1/stop {}`,
			"default/web: stopped in 10.0 s; the container is in standby\n",
		}, {
			[]string{"stop", "web", "-s", "INT", "-t", "1m"}, api.Result{State: api.Standby, Seconds: 10},
			`POST /v1/stop {"signal":"INT","timeout":"1m0s"}`,
			"default/web: stopped in 10.0 s; the container is in standby\n",
		}, {
			[]string{"standby", "web"}, api.Result{State: api.Standby, Seconds: 0.05},
			`POST /v1/standby {}`,
			"default/web: put in standby in 50 ms; the container is in standby\n",
		}, {
			[]string{"standby", "web", "--quiet"}, api.Result{State: api.Standby, Notes: []string{"not told"}},
			`POST /v1/standby {}`, "",
		},
	} {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			result = tc.result
			code, stdout, stderr := fastmig(t, tc.args...)
			if code != 0 || stderr != "" || stdout != tc.stdout {
				t.Errorf("exit %d, %s\n%s\nwant\n%s", code, stderr, stdout, tc.stdout)
			}
			if got := s.last(); got != tc.request {
				t.Errorf("request\n%s\nwant\n%s", got, tc.request)
			}
		})
	}
}

func TestOperationJSON(t *testing.T) {
	testNode(t)
	s := testShim(t, "default", "web")
	s.operate("checkpoint", func(context.Context) (api.Result, error) {
		return api.Result{State: api.Running, AppPid: 3, Seconds: 1, Notes: []string{"a note"}}, nil
	})
	s.operate("restore", func(context.Context) (api.Result, error) {
		return api.Result{}, fmt.Errorf("the service is there already: stop it first: %w", errdefs.ErrFailedPrecondition)
	})
	code, stdout, stderr := fastmig(t, "checkpoint", "web", "--json")
	var r api.Result
	if err := json.Unmarshal([]byte(stdout), &r); err != nil || code != 0 || stderr != "" || r.AppPid != 3 || len(r.Notes) != 1 {
		t.Errorf("exit %d, %v\n%s%s", code, err, stdout, stderr)
	}
	code, stdout, stderr = fastmig(t, "restore", "web", "--json")
	var e api.Error
	if err := json.Unmarshal([]byte(stderr), &e); err != nil || code != exitFailed || stdout != "" ||
		e.State != api.Standby || !errors.Is(&e, errdefs.ErrFailedPrecondition) {
		t.Errorf("exit %d, %v\n%s%s", code, err, stdout, stderr)
	}
	if s.asked("GET /v1/events") {
		t.Error("it follows events that it does not show")
	}
	code, stdout, stderr = fastmig(t, "restore", "web")
	if code != exitFailed || stdout != "" || stderr != "fastmig: the service is there already: stop it first: failed precondition\n" {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
}

func progress(step string, done, total int64) api.Event {
	return api.Event{Seq: 1, At: time.Now(), Kind: api.EventProgress,
		Progress: &api.Progress{Operation: "checkpoint", Step: step, Bytes: done, Total: total, Percent: -1}}
}

func TestPlainProgress(t *testing.T) {
	testNode(t)
	s := testShim(t, "default", "web")
	var stdout, stderr buffer
	s.events <- api.Event{At: time.Now().Add(-time.Hour), Kind: api.EventNote, Note: "of an hour ago"}
	s.operate("checkpoint", func(context.Context) (api.Result, error) {
		s.events <- progress("freeze", 0, 0)
		s.events <- progress("dump", 0, 1<<20)
		s.events <- progress("dump", 1<<19, 1<<20)
		s.events <- api.Event{At: time.Now(), Kind: api.EventNote, Note: "a hook\x1b[31m failed"}
		s.events <- progress("commit", 0, 0)
		eventually(t, "the last step", func() bool { return strings.Contains(stderr.String(), "commit") })
		return api.Result{State: api.Running, AppPid: 1, Seconds: 2, Notes: []string{"a hook\x1b[31m failed", "and more"}}, nil
	})
	code := run(t.Context(), []string{"fastmig", "checkpoint", "web"}, &stdout, &stderr)
	want := `checkpoint of default/web: freeze
checkpoint of default/web: dump, 1.0 MiB
checkpoint of default/web: commit
fastmig: warning: a hook?[31m failed
fastmig: warning: and more
`
	if code != 0 || stderr.String() != want || stdout.String() != "default/web: checkpointed in 2.0 s; the service is running, pid 1\n" {
		t.Errorf("exit %d\n%s\n%s\nwant\n%s", code, &stdout, &stderr, want)
	}
}

func TestBarOnTerminal(t *testing.T) {
	testNode(t)
	t.Setenv("TERM", "xterm")
	master, slave, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := master.Resize(console.WinSize{Width: 100, Height: 24}); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(slave, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	var screen, stdout buffer
	read := make(chan struct{})
	go func() { // until the last one closes the other side
		defer close(read)
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			screen.Write(b[:n])
			if err != nil {
				return
			}
		}
	}()
	s := testShim(t, "default", "web")
	s.operate("checkpoint", func(context.Context) (api.Result, error) {
		s.events <- progress("dump", 0, 1<<21)
		s.events <- progress("dump", 1<<20, 1<<21)
		eventually(t, "the half", func() bool { return strings.Contains(screen.String(), "50%") })
		return api.Result{State: api.Running, AppPid: 1}, nil
	})
	code := run(t.Context(), []string{"fastmig", "checkpoint", "web"}, &stdout, tty)
	tty.Close()
	<-read
	got := screen.String()
	if code != 0 || !strings.HasPrefix(stdout.String(), "default/web: checkpointed") {
		t.Errorf("exit %d\n%s", code, &stdout)
	}
	for _, want := range []string{"\rcheckpoint of default/web  dump   50%  1.0 MiB of 2.0 MiB  ", "iB/s", "[====", "\x1b[K"} {
		if !strings.Contains(got, want) {
			t.Errorf("the screen lacks %q: %q", want, got)
		}
	}
	if !strings.HasSuffix(got, "\r\x1b[K") || strings.Contains(got, "\n") {
		t.Errorf("the bar is left on the screen: %q", got)
	}
}

func TestInterruptedOperation(t *testing.T) {
	for _, flag := range []string{"", "--json", "--quiet"} {
		t.Run(flag, func(t *testing.T) {
			testNode(t)
			s := testShim(t, "default", "web")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var takenBack sync.WaitGroup
			defer takenBack.Wait()
			s.operate("checkpoint", func(ctx context.Context) (api.Result, error) {
				s.set(func(s *api.Status) { s.State = api.Checkpointing })
				cancel()
				<-ctx.Done()          // it is the request that ends
				takenBack.Go(func() { // taken back when it has been asked for
					eventually(t, "a question for the status", func() bool { return s.asked("GET /v1/status") })
					s.set(func(s *api.Status) { s.State = api.Running })
				})
				return api.Result{}, ctx.Err()
			})
			var stdout, stderr buffer
			args := []string{"fastmig", "checkpoint", "web"}
			if flag != "" {
				args = append(args, flag)
			}
			code := run(ctx, args, &stdout, &stderr)
			const cancelled = "the checkpoint of default/web was cancelled, the service is running"
			want := "fastmig: interrupted: " + cancelled + "\n"
			switch flag {
			case "":
				want = "fastmig: the checkpoint of default/web is being taken back; interrupt again not to wait for it\n" + want
			case "--json":
				want = "{\n  \"kind\": \"cancelled\",\n  \"message\": \"" + cancelled + "\",\n  \"state\": \"running\"\n}\n"
			}
			if code != exitInterrupted || stdout.String() != "" || stderr.String() != want {
				t.Errorf("exit %d\n%s%s\nwant\n%s", code, &stdout, &stderr, want)
			}
		})
	}
}

// The first signal cancels, the second ends the command at once.
func TestSignals(t *testing.T) {
	testNode(t)
	s := testShim(t, "default", "web")
	begun, cancelled := make(chan struct{}), make(chan struct{})
	s.operate("checkpoint", func(ctx context.Context) (api.Result, error) {
		s.set(func(s *api.Status) { s.State = api.Checkpointing }) // for ever
		close(begun)
		<-ctx.Done()
		close(cancelled)
		return api.Result{}, ctx.Err()
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var stderr buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "checkpoint", "web")
	cmd.Env = append(os.Environ(), mainEnv+"="+string(sockets))
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await := func(what string, c <-chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-ctx.Done():
			t.Errorf("waited in vain for %s", what)
		}
	}
	await("the request", begun)
	cmd.Process.Signal(os.Interrupt)
	await("its end", cancelled)
	eventually(t, "its being said", func() bool { return strings.Contains(stderr.String(), "taken back") })
	cmd.Process.Signal(os.Interrupt)
	cmd.Wait()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGINT {
		t.Errorf("%v\n%s", cmd.ProcessState, &stderr)
	}
}

// A shim that dies in the middle of an operation is told as such.
func TestShimDies(t *testing.T) {
	testNode(t)
	s := testShim(t, "default", "web")
	s.operate("stop", func(context.Context) (api.Result, error) {
		s.server.Close()
		return api.Result{}, nil
	})
	code, _, stderr := fastmig(t, "stop", "web")
	if code != exitFailed || !strings.Contains(stderr, "ended the conversation") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
