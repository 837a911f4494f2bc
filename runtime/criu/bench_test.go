//go:build linux

package criu

import "testing"

// The benchmarks time one operation on a small process, CRIU's start included.

func BenchmarkDump(b *testing.B) {
	tool := realTool(b)
	if err := tool.Prepare(b.Context()); err != nil {
		b.Fatal(err)
	}
	c := newContainer(b)
	app := c.start(1000)
	external := app.pipes()
	b.ResetTimer()
	for b.Loop() {
		b.StopTimer()
		cp := newCheckpoint(b)
		b.StartTimer()
		if _, err := tool.Dump(b.Context(), DumpOptions{
			Place: c.place(), Pid: 1000, Images: cp.images, Log: cp.log, External: external,
		}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRestore(b *testing.B) {
	tool := realTool(b)
	a := newContainer(b)
	app := a.start(1000)
	cp := newCheckpoint(b)
	if _, err := tool.Dump(b.Context(), DumpOptions{
		Place: a.place(), Pid: 1000, Images: cp.images, Log: cp.log, External: app.pipes(),
	}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		c := newContainer(b)
		again := newService(b)
		b.StartTimer()
		if _, err := tool.Restore(b.Context(), RestoreOptions{
			Place: c.place(), Images: cp.images, Log: cp.log, InheritFD: inherit(app.pipes(), again),
		}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSetLastPid(b *testing.B) {
	c := newContainer(b)
	fastfreeze := openTestApp(b)
	for b.Loop() {
		if err := SetLastPid(c.ns.PID, fastfreeze, 4000); err != nil {
			b.Fatal(err)
		}
	}
}
