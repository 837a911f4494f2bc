//go:build linux

package criu

import (
	"os"
	"testing"
)

func inherit(from []string, to *service) map[string]*os.File {
	files := map[string]*os.File{}
	for i, name := range from {
		files[name] = to.theirs[i]
	}
	return files
}

func TestDumpRestore(t *testing.T) {
	tool := realTool(t)
	a, b := newContainer(t), newContainer(t)
	app := a.start(1000)
	app.ask("set color green")

	cp := newCheckpoint(t)
	r, err := tool.Dump(testContext(t), DumpOptions{
		Place: a.place(), Pid: 1000, Images: cp.images, Log: cp.log, External: app.pipes(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log("dump took", r.Took)
	if got := app.ask("get color"); got != "green" {
		t.Fatalf("after the dump: %q", got)
	}

	again := newService(t)
	r2, err := tool.Restore(testContext(t), RestoreOptions{
		Place: b.place(), Images: cp.images, Log: cp.log, InheritFD: inherit(app.pipes(), again), Pid: 1000,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log("restore took", r2.Took)
	if got := again.ask("get color"); got != "green" {
		t.Fatalf("after the restore: %q", got)
	}
	if got := again.ask("ppid"); got != "1" {
		t.Errorf("parent of the restored process: %s", got)
	}
}
