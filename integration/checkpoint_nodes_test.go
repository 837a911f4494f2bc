package integration_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// A checkpoint moves to the other containerd of a node: as an image, and as a
// folder.
func TestRestoreOnOtherContainerd(t *testing.T) {
	first := harness.New(t, harness.Options{})
	second := harness.New(t, harness.Options{Beside: first.Node})
	for _, lab := range []*harness.Lab{first, second} {
		lab.MustImport(images.Busybox)
	}
	source := first.MustRun(tickOptions())
	check := ticking(first, t, source)

	archive := filepath.Join(t.TempDir(), "checkpoint.tar")
	if err := source.Checkpoint(first.Context(), "fastmig.test/moving:1", false); err != nil {
		t.Fatal(err)
	}
	first.MustCtr("images", "export", "--local", "--skip-manifest-json", archive, "fastmig.test/moving:1")
	second.MustCtr("images", "import", "--local", "--no-unpack", archive)
	second.MustCtr("container", "restore", "--rw", "--live", "moved", "fastmig.test/moving:1")
	check(load(second, t, "moved"))

	dir := filepath.Join(t.TempDir(), "images")
	first.MustCtr("task", "checkpoint", "--image-path", dir, source.ID())
	opts := tickOptions()
	opts.Task = []containerd.NewTaskOpts{containerd.WithRestoreImagePath(dir)}
	check(second.MustRun(opts))
	check(source)
}

// A node whose stock shim is replaced by ours keeps its old checkpoints: they
// come back as whole containers.
func TestRestoreOfStockCheckpoint(t *testing.T) {
	stock := harness.New(t, harness.Options{Runtime: harness.Stock})
	ours := harness.New(t, harness.Options{Runtime: harness.InPlace, Beside: stock.Node})
	for _, lab := range []*harness.Lab{stock, ours} {
		lab.MustImport(images.Busybox)
	}
	source := stock.MustRun(tickOptions())
	check := ticking(stock, t, source)
	archive := filepath.Join(t.TempDir(), "checkpoint.tar")
	if err := source.Checkpoint(stock.Context(), "fastmig.test/stock:1", true); err != nil {
		t.Fatal(err)
	}
	if _, err := source.WaitExit(stock.Context()); err != nil {
		t.Fatal(err)
	}
	stock.MustCtr("images", "export", "--local", "--skip-manifest-json", archive, "fastmig.test/stock:1")
	ours.MustCtr("images", "import", "--local", "--no-unpack", archive)
	restored := ours.MustRestore(harness.RestoreOptions{Ref: "fastmig.test/stock:1"})
	check(restored)
	if cmdline := ours.MustExec(restored, "sh", "-c", "tr '\\0' ' ' </proc/1/cmdline"); !strings.HasPrefix(cmdline, "sh -c read") {
		t.Errorf("PID 1 of the restored container is %q", cmdline)
	}
	// It stays what it is: plain.
	if err := restored.Checkpoint(ours.Context(), "fastmig.test/stock:2", false); err != nil {
		t.Fatal(err)
	}
	check(restored)
}

// An interactive shell with a stopped job and one in the background goes on on
// the new container's terminal, job control included.
func TestTerminal(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Shell)
	source := lab.MustRun(harness.RunOptions{Image: images.Shell.Ref(), Terminal: true, Args: []string{"bash", "--norc", "-i"}})
	// The answers are written so that the echo of the line is not one.
	say(t, lab, source, `state=$RANDOM; echo "pid:$((1+1)):$$:$state:"`, "pid:2:")
	answer := answerOf(t, lab, source, "pid:2:")
	say(t, lab, source, "sleep 4000")
	waitForeground(t, lab, source, "sleep 4000")
	write(t, lab, source, "\x1a") // Ctrl-Z
	say(t, lab, source, `sleep 5000 & echo "bg:$((1+1))"`, "Stopped", "bg:2")
	if err := source.Checkpoint(lab.Context(), "fastmig.test/terminal:1", true); err != nil {
		t.Fatal(err)
	}
	if _, err := source.WaitExit(lab.Context()); err != nil {
		t.Fatal(err)
	}
	mustRemove(lab, t, source)

	restored := lab.MustRestore(harness.RestoreOptions{Ref: "fastmig.test/terminal:1"})
	if err := restored.Task.Resize(lab.Context(), 132, 43); err != nil {
		t.Fatal(err)
	}
	say(t, lab, restored, `echo "pid:$((1+1)):$$:$state:"`, answer)
	say(t, lab, restored, `stty size`, "43 132")
	say(t, lab, restored, `jobs`, "Stopped", "Running")
	say(t, lab, restored, "fg %1")
	waitForeground(t, lab, restored, "sleep 4000")
	write(t, lab, restored, "\x1a") // Ctrl-Z
	say(t, lab, restored, `echo "status:$?:"`, "Stopped", "status:148:")
	say(t, lab, restored, "fg %1")
	waitForeground(t, lab, restored, "sleep 4000")
	write(t, lab, restored, "\x03") // Ctrl-C
	say(t, lab, restored, `echo "status:$?:"`, "status:130:")
	say(t, lab, restored, `kill %2; wait %2; echo "status:$?:"`, "status:143:")
	say(t, lab, restored, `tty; exit 7`)
	if code, err := restored.WaitExit(lab.Context()); err != nil || code != 7 {
		t.Errorf("the shell ended with %d, %v", code, err)
	}
}

// answerOf is the line of the output that begins so.
func answerOf(t *testing.T, lab *harness.Lab, c *harness.Container, begin string) string {
	t.Helper()
	answer := ""
	lab.WaitFor("the whole line "+begin, func(context.Context) (bool, error) {
		for _, line := range strings.Split(c.Output.String(), "\n") {
			if strings.HasPrefix(line, begin) && strings.HasSuffix(line, ":\r") {
				answer = strings.TrimSpace(line)
				return true, nil
			}
		}
		return false, nil
	})
	return answer
}

// write types keys without an Enter.
func write(t *testing.T, lab *harness.Lab, c *harness.Container, keys string) {
	t.Helper()
	if _, err := c.Stdin.Write([]byte(keys)); err != nil {
		t.Fatal(err)
	}
}

// waitForeground waits until the command's process group has the terminal of
// process 1000. (CRIU gives a restored child no controlling terminal of its
// own, so its own state does not tell.)
func waitForeground(t *testing.T, lab *harness.Lab, c *harness.Container, command string) {
	t.Helper()
	lab.WaitFor(command+" to be in the foreground", func(ctx context.Context) (bool, error) {
		out, err := c.Exec(ctx, "ps", "-eo", "pid,pgid,tpgid,args")
		if err != nil {
			return false, err
		}
		group, foreground := "", "none"
		for _, line := range strings.Split(out, "\n") {
			words := strings.Fields(line)
			if len(words) < 4 {
				continue
			}
			if strings.Join(words[3:], " ") == command {
				group = words[1]
			}
			if words[0] == "1000" {
				foreground = words[2]
			}
		}
		return group == foreground, fmt.Errorf("its group is %q, the foreground's %s", group, foreground)
	})
}
