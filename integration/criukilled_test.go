package integration_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// crowd is the counting shell with so many children that CRIU is at work for a
// while.
func crowd() harness.RunOptions {
	opts := tickOptions()
	opts.Args = []string{"sh", "-c", "for i in $(seq 150); do sleep 10000 & done\n" + tickScript}
	return opts
}

// A CRIU that dies in the middle of a dump costs the checkpoint; the service
// goes on.
func TestCRIUKilledWhileDumping(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	source := lab.MustRun(crowd())
	check := ticking(lab, t, source)
	shim := shimOf(lab, t, source)
	dir := filepath.Join(t.TempDir(), "images")
	result := make(chan error, 1)
	go func() {
		_, err := lab.Ctr(lab.Context(), "task", "checkpoint", "--exit", "--image-path", dir, source.ID())
		result <- err
	}()
	lab.WaitFor("CRIU to have dumped some processes", func(context.Context) (bool, error) {
		cores, _ := filepath.Glob(filepath.Join(dir, ".fastmig-partial-*", "core-*.img"))
		return len(cores) > 10, nil
	})
	kill(t, criuOf(shim))
	err := <-result
	if err == nil {
		t.Fatal("the checkpoint succeeded without CRIU")
	}
	message := stderrOf(t, err)
	wantText(t, message, "dump", "kill")
	logOf(t, lab, message)
	if _, err := os.Lstat(dir); err == nil {
		t.Errorf("the folder is there, with %v", folderNames(t, dir))
	}
	wantStatus(lab, t, source, containerd.Running)
	check(source)
	// Nothing is left in it that hinders the next one.
	if err := source.Checkpoint(lab.Context(), "fastmig.test/next:1", false); err != nil {
		t.Fatal(err)
	}
	check(lab.MustRestore(harness.RestoreOptions{Ref: "fastmig.test/next:1"}))
}

// A CRIU that dies in the middle of a restore is run once more; when that one dies
// too, no process of it is left.
func TestCRIUKilledWhileRestoring(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	source := lab.MustRun(crowd())
	check := ticking(lab, t, source)
	checkpoint, err := source.Task.Checkpoint(lab.Context())
	must(t, err)
	for _, times := range []int{1, 2} {
		opts := tickOptions()
		opts.Task = []containerd.NewTaskOpts{containerd.WithTaskCheckpoint(checkpoint)}
		target := lab.MustCreate(opts)
		shim, init := shimOf(lab, t, target), int(target.Task.Pid())
		result := make(chan error, 1)
		go func() { result <- target.Start(lab.Context()) }()
		busy := func(context.Context) (bool, error) { return criuOf(shim) != 0 && len(below(shim)) > 20, nil }
		lab.WaitFor("CRIU to have restored some processes", busy)
		kill(t, criuOf(shim))
		if times == 1 {
			err = <-result
		} else {
			lab.WaitFor("the restore to end, whose CRIUs are killed", func(context.Context) (bool, error) {
				select {
				case err = <-result:
					return true, nil
				default:
				}
				// It may be gone already; what is not is a CRIU, or one to be.
				if pid := criuOf(shim); pid != 0 && len(below(shim)) > 20 {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
				return false, nil
			})
		}
		if times == 1 {
			must(t, err)
			check(target)
			mustRemove(lab, t, target)
			continue
		}
		if err == nil {
			t.Fatal("the restore succeeded without CRIU")
		}
		wantText(t, err.Error(), "restore", "kill")
		logOf(t, lab, err.Error())
		lab.WaitFor("all that was restored to be gone", func(ctx context.Context) (bool, error) {
			pids, err := target.Task.Pids(ctx)
			return err == nil && len(pids) == 1 && int(pids[0].Pid) == init && len(below(init)) == 0, err
		})
		mustRemove(lab, t, target)
	}
	check(source)
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if pid == 0 {
		t.Fatal("CRIU has ended already")
	}
	must(t, unix.Kill(pid, unix.SIGKILL))
}
