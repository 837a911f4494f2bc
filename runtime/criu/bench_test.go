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
	for b.Loop() {
		b.StopTimer()
		o := c.dumpOf(app, newCheckpoint(b))
		b.StartTimer()
		if _, err := tool.Dump(b.Context(), o); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRestore(b *testing.B) { benchmarkRestore(b, 0, nil) }

func BenchmarkRestoreShieldedV1(b *testing.B) { benchmarkRestore(b, 0, newFreezer) }

func BenchmarkRestoreShieldedV2(b *testing.B) { benchmarkRestore(b, 0, newFreezerV2) }

func BenchmarkRestore16(b *testing.B) { benchmarkRestore(b, 15, nil) }

func benchmarkRestore(b *testing.B, children int, newFreezer func(testing.TB) *freezer) {
	tool := realTool(b)
	a := newContainer(b)
	app := a.start(1000)
	app.ask("fanout %d", children)
	cp := a.dump(tool, app)
	for b.Loop() {
		b.StopTimer()
		var o RestoreOptions
		if newFreezer != nil {
			c := newContainerIn(b, newFreezer(b))
			var service *freezer
			o, service = c.shielded(cp, app, newService(b), newFreezer)
			b.Cleanup(func() { _ = service.control().killAll(b.Context()) })
		} else {
			c := newContainer(b)
			o = c.restoreOf(cp, app, newService(b))
		}
		b.StartTimer()
		r, err := tool.Restore(b.Context(), o)
		if err != nil {
			b.Fatal(err)
		}
		_ = r.Process.Close()
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
