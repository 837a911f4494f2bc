package main

import "runtime"

// The shim chooses the application's pid by setting the namespace's last pid just before it says START. A
// thread takes a pid too, so from then until the fork the runtime must not make one. Package initialisation
// brings the runtime to a state in which it never needs another:
//
//   - one processor: at most one thread besides the main one has work;
//   - that other thread exists: handing the processor to a second goroutine has made it, and it stays parked;
//   - the main goroutine stays on the main thread, whose blocking calls are the only ones;
//   - no collection: it starts at 4 MiB of heap, and PID 1 allocates nothing once it waits.
func init() {
	runtime.GOMAXPROCS(1)
	done := make(chan struct{})
	go func() { close(done) }()
	<-done
	runtime.LockOSThread()
}
