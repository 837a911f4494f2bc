package integration_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// TestCheckpoint checkpoints by every way that containerd's tools and client
// have, and restores by every way that they have.
func TestCheckpoint(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *harness.Lab)
	}{
		{"ctr-container", ctrContainer},
		{"ctr-task", ctrTask},
		{"ctr-task-exit", ctrTaskExit},
		{"ctr-task-folder", ctrTaskFolder},
		{"paused-stays-paused", pausedStaysPaused},
		{"running-stays", runningStaysRunning},
		{"exit-by-client", exitByClient},
		{"exit-by-annotation", exitByAnnotation},
		{"three-at-once", threeAtOnce},
		{"three-generations", threeGenerations},
		{"concurrent", concurrentCheckpoints},
		{"kill-during", killDuring},
		{"stdio", stdioOfTheRestored},
		{"fastfreeze-not-plain", refusedAsPlain},
		{"plain", plainRoundTrip},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, lab.For(t)) })
	}
}

// startByCtr runs the counting shell with the real ctr.
func startByCtr(t *testing.T, lab *harness.Lab, args ...string) *harness.Container {
	t.Helper()
	id := harness.NewID("ctr")
	command := append([]string{"run", "-d"}, args...)
	lab.MustCtr(append(append(command, images.Busybox.Ref(), id), tickArgs...)...)
	return load(lab, t, id)
}

func ctrContainer(t *testing.T, lab *harness.Lab) {
	source := startByCtr(t, lab)
	check := ticking(lab, t, source)
	lab.MustCtr("container", "checkpoint", "--rw", "--image", "--task", source.ID(), "fastmig.test/ctr:1")
	wantStatus(lab, t, source, containerd.Running)
	check(source)
	mustRemove(lab, t, source)
	lab.MustCtr("container", "restore", "--rw", "--live", "restored", "fastmig.test/ctr:1")
	check(load(lab, t, "restored"))
}

func ctrTask(t *testing.T, lab *harness.Lab) {
	source := startByCtr(t, lab)
	check := ticking(lab, t, source)
	// ctr says how it named the checkpoint.
	ref := strings.TrimSpace(lab.MustCtr("task", "checkpoint", source.ID()))
	wantStatus(lab, t, source, containerd.Running)
	check(source)
	check(restoreTask(t, lab, ref))
}

// restoreTask restores a checkpoint of ctr's or the client's task checkpoint,
// which holds no container, into a new container.
func restoreTask(t *testing.T, lab *harness.Lab, ref string) *harness.Container {
	t.Helper()
	checkpoint, err := lab.Client().GetImage(lab.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	opts := tickOptions()
	opts.Task = []containerd.NewTaskOpts{containerd.WithTaskCheckpoint(checkpoint)}
	return lab.MustRun(opts)
}

func ctrTaskExit(t *testing.T, lab *harness.Lab) {
	source := startByCtr(t, lab)
	check := ticking(lab, t, source)
	ref := strings.TrimSpace(lab.MustCtr("task", "checkpoint", "--exit", source.ID()))
	if code, err := source.WaitExit(lab.Context()); err != nil || code != 128+uint32(unix.SIGKILL) {
		t.Errorf("after --exit the task ended with %d, %v", code, err)
	}
	check(restoreTask(t, lab, ref))
}

func ctrTaskFolder(t *testing.T, lab *harness.Lab) {
	source := startByCtr(t, lab)
	check := ticking(lab, t, source)
	dir, work := filepath.Join(t.TempDir(), "images"), filepath.Join(t.TempDir(), "work")
	lab.MustCtr("task", "checkpoint", "--image-path", dir, "--work-path", work, source.ID())
	check(source)
	if _, err := os.Stat(filepath.Join(dir, "fastmig.json")); err != nil {
		t.Errorf("no manifest in the folder: %v", err)
	}
	for _, name := range folderNames(t, dir) {
		if info, err := os.Lstat(filepath.Join(dir, name)); err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s in the folder: %v, %v; want a file for its owner only", name, info.Mode(), err)
		}
	}
	if logs, _ := filepath.Glob(filepath.Join(work, "*.log")); len(logs) != 1 {
		t.Errorf("CRIU's logs in the work folder: %v", logs)
	}

	restoreWork := filepath.Join(t.TempDir(), "work")
	opts := tickOptions()
	opts.Task = []containerd.NewTaskOpts{containerd.WithRestoreImagePath(dir), containerd.WithRestoreWorkPath(restoreWork)}
	check(lab.MustRun(opts))
	if logs, _ := filepath.Glob(filepath.Join(restoreWork, "*.log")); len(logs) != 1 {
		t.Errorf("CRIU's logs of the restore in its work folder: %v", logs)
	}

	// The same through the options of the container, as CRI gives them.
	opts = tickOptions()
	opts.RuntimeOptions = &harness.RuncOptions{CriuImagePath: dir}
	check(lab.MustRun(opts))
}

func pausedStaysPaused(t *testing.T, lab *harness.Lab) {
	source := lab.MustRun(tickOptions())
	check := ticking(lab, t, source)
	if err := source.Task.Pause(lab.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := source.Task.Checkpoint(lab.Context(), containerd.WithCheckpointName("fastmig.test/paused:1")); err != nil {
		t.Fatal(err)
	}
	wantStatus(lab, t, source, containerd.Paused)
	if err := source.Task.Resume(lab.Context()); err != nil {
		t.Fatal(err)
	}
	check(source)
	// What was paused when it was checkpointed runs when it is restored.
	check(restoreTask(t, lab, "fastmig.test/paused:1"))
}

func runningStaysRunning(t *testing.T, lab *harness.Lab) {
	source := lab.MustRun(tickOptions())
	check := ticking(lab, t, source)
	if _, err := source.Task.Checkpoint(lab.Context(), containerd.WithCheckpointName("fastmig.test/running:1")); err != nil {
		t.Fatal(err)
	}
	wantStatus(lab, t, source, containerd.Running)
	check(source)
	if _, err := source.Task.Checkpoint(lab.Context(), containerd.WithCheckpointName("fastmig.test/running:2")); err != nil {
		t.Fatalf("a second checkpoint: %v", err)
	}
	check(source)
	check(restoreTask(t, lab, "fastmig.test/running:2"))
}

func exitByClient(t *testing.T, lab *harness.Lab) {
	source := lab.MustRun(tickOptions())
	check := ticking(lab, t, source)
	if err := source.Checkpoint(lab.Context(), "fastmig.test/exit:1", true); err != nil {
		t.Fatal(err)
	}
	if _, err := source.WaitExit(lab.Context()); err != nil {
		t.Fatal(err)
	}
	check(lab.MustRestore(harness.RestoreOptions{Ref: "fastmig.test/exit:1"}))
}

// Clients that know our name only send no options.
func exitByAnnotation(t *testing.T, lab *harness.Lab) {
	for value, want := range map[string]containerd.ProcessStatus{"true": containerd.Stopped, "false": containerd.Running} {
		opts := tickOptions()
		opts.Annotations = map[string]string{"io.fastmig.checkpoint-exit": value}
		source := lab.MustRun(opts)
		check := ticking(lab, t, source)
		ref := "fastmig.test/annotated:" + value
		if _, err := source.Task.Checkpoint(lab.Context(), containerd.WithCheckpointName(ref)); err != nil {
			t.Fatal(err)
		}
		wantStatus(lab, t, source, want)
		check(restoreTask(t, lab, ref))
	}
}

func threeAtOnce(t *testing.T, lab *harness.Lab) {
	source := lab.MustRun(tickOptions())
	check := ticking(lab, t, source)
	if err := source.Checkpoint(lab.Context(), "fastmig.test/thrice:1", false); err != nil {
		t.Fatal(err)
	}
	var restored [3]*harness.Container
	var errs [3]error
	var group sync.WaitGroup
	for i := range restored {
		group.Go(func() {
			restored[i], errs[i] = lab.Restore(lab.Context(), harness.RestoreOptions{Ref: "fastmig.test/thrice:1"})
		})
	}
	group.Wait()
	for i, c := range restored {
		if errs[i] != nil {
			t.Error(errs[i])
			continue
		}
		lab.RemoveAtEnd(c)
		check(c)
	}
	check(source)
}

func threeGenerations(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(tickOptions())
	for _, ref := range []string{"fastmig.test/generation:1", "fastmig.test/generation:2", "fastmig.test/generation:3"} {
		// Each generation must be where its parent was, not its grandparent.
		check := ticking(lab, t, c)
		if err := c.Checkpoint(lab.Context(), ref, false); err != nil {
			t.Fatal(err)
		}
		mustRemove(lab, t, c)
		c = lab.MustRestore(harness.RestoreOptions{Ref: ref})
		check(c)
	}
}

func concurrentCheckpoints(t *testing.T, lab *harness.Lab) {
	var sources [2]*harness.Container
	var checks [2]func(*harness.Container)
	for i := range sources {
		sources[i] = lab.MustRun(tickOptions())
		checks[i] = ticking(lab, t, sources[i])
	}
	var errs [2]error
	var group sync.WaitGroup
	refs := []string{"fastmig.test/both:1", "fastmig.test/both:2"}
	for i, c := range sources {
		group.Go(func() { errs[i] = c.Checkpoint(lab.Context(), refs[i], false) })
	}
	group.Wait()
	for i, c := range sources {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		checks[i](c)
		checks[i](lab.MustRestore(harness.RestoreOptions{Ref: refs[i]}))
	}
}

// A user gets out of a checkpoint by killing the task; what is on the disk then
// is a whole checkpoint or none.
func killDuring(t *testing.T, lab *harness.Lab) {
	opts := tickOptions()
	// So many processes that CRIU is at work for a while.
	opts.Args = []string{"sh", "-c", "for i in $(seq 200); do sleep 10000 & done; echo ready; wait"}
	source := lab.MustRun(opts)
	if err := source.Output.WaitForText(lab.Context(), "ready"); err != nil {
		t.Fatal(err)
	}
	shim := shimOf(lab, t, source)
	dir := filepath.Join(t.TempDir(), "images")
	result := make(chan error, 1)
	go func() {
		_, err := source.Task.Checkpoint(lab.Context(), containerd.WithCheckpointImagePath(dir))
		result <- err
	}()
	lab.WaitFor("CRIU to be at work", func(context.Context) (bool, error) {
		select {
		case err := <-result:
			return false, harness.Final(fmt.Errorf("the checkpoint ended first: %w", err))
		default:
			return criuOf(shim) != 0, nil
		}
	})
	if err := source.Task.Kill(lab.Context(), unix.SIGKILL); err != nil {
		t.Errorf("kill a task that is being checkpointed: %v", err)
	}
	if code, err := source.WaitExit(lab.Context()); err != nil || code != 128+uint32(unix.SIGKILL) {
		t.Errorf("the killed task ended with %d, %v", code, err)
	}
	err := <-result
	names := folderNames(t, dir)
	whole := strings.Contains(strings.Join(names, " "), "fastmig.json")
	if err == nil && !whole || err != nil && len(names) > 0 {
		t.Errorf("the checkpoint says %v, and the folder holds %v", err, names)
	}
}

// The restored process's standard streams are those of its new container.
func stdioOfTheRestored(t *testing.T, lab *harness.Lab) {
	opts := tickOptions()
	opts.Args = []string{"sh", "-c", `while read line; do n=$((n+1)); echo "out $n $line"; echo "err $n $line" >&2; done; echo "end $n"`}
	source := lab.MustRun(opts)
	say(t, lab, source, "one", "out 1 one", "err 1 one")
	if err := source.Checkpoint(lab.Context(), "fastmig.test/stdio:1", false); err != nil {
		t.Fatal(err)
	}
	restored := lab.MustRestore(harness.RestoreOptions{Ref: "fastmig.test/stdio:1"})
	say(t, lab, restored, "two", "out 2 two", "err 2 two")
	say(t, lab, source, "three", "out 2 three", "err 2 three")
	for _, wrong := range []string{"one", "three"} {
		if strings.Contains(restored.Output.String(), wrong) {
			t.Errorf("the restored container shows what belongs to the source: %q", restored.Output)
		}
	}
	// The end of the input arrives, too.
	restored.Stdin.Close()
	if err := restored.Task.CloseIO(lab.Context(), containerd.WithStdinCloser); err != nil {
		t.Fatal(err)
	}
	if code, err := restored.WaitExit(lab.Context()); err != nil || code != 0 {
		t.Errorf("after the end of its input the restored task ended with %d, %v", code, err)
	}
	if err := restored.Output.WaitForText(lab.Context(), "end 2"); err != nil {
		t.Error(err)
	}
}

// say writes a line to the container's input and waits for its answers.
func say(t *testing.T, lab *harness.Lab, c *harness.Container, line string, answers ...string) {
	t.Helper()
	written := make(chan error, 1)
	go func() {
		_, err := c.Stdin.Write([]byte(line + "\n"))
		written <- err
	}()
	select {
	case err := <-written:
		if err != nil {
			t.Fatal(err)
		}
	case <-lab.Context().Done():
		t.Fatalf("nobody reads the input of %s", c.ID())
	}
	for _, answer := range answers {
		if err := c.Output.WaitForText(lab.Context(), answer); err != nil {
			t.Fatalf("%s: %v", c.ID(), err)
		}
	}
}

func refusedAsPlain(t *testing.T, lab *harness.Lab) {
	source := lab.MustRun(tickOptions())
	check := ticking(lab, t, source)
	if err := source.Checkpoint(lab.Context(), "fastmig.test/notplain:1", false); err != nil {
		t.Fatal(err)
	}
	_, err := lab.Restore(lab.Context(), harness.RestoreOptions{
		Ref:         "fastmig.test/notplain:1",
		Annotations: map[string]string{"io.fastmig.mode": "plain"},
	})
	if err == nil {
		t.Fatal("a container in plain mode took it")
	}
	wantText(t, err.Error(), "io.fastmig.mode", "plain", "FastFreeze")
	check(source)
}

func plainRoundTrip(t *testing.T, lab *harness.Lab) {
	opts := tickOptions()
	opts.Annotations = map[string]string{"io.fastmig.mode": "plain"}
	source := lab.MustRun(opts)
	check := ticking(lab, t, source)
	if pid := strings.TrimSpace(lab.MustExec(source, "sh", "-c", "tr '\\0' ' ' </proc/1/cmdline")); !strings.HasPrefix(pid, "sh ") {
		t.Errorf("PID 1 of a plain container is %q", pid)
	}
	if err := source.Checkpoint(lab.Context(), "fastmig.test/plain:1", false); err != nil {
		t.Fatal(err)
	}
	check(source)
	if err := source.Checkpoint(lab.Context(), "fastmig.test/plain:2", true); err != nil {
		t.Fatal(err)
	}
	if _, err := source.WaitExit(lab.Context()); err != nil {
		t.Fatal(err)
	}
	mustRemove(lab, t, source)
	for _, ref := range []string{"fastmig.test/plain:1", "fastmig.test/plain:2"} {
		restored := lab.MustRestore(harness.RestoreOptions{Ref: ref})
		check(restored)
		mustRemove(lab, t, restored)
	}
}
