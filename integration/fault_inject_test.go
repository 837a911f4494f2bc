package integration_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/shim/api"
)

// hangInit stops PID 1 as a debugger does, which its parent does not see, until
// somebody kills it.
func hangInit(s *subject) error {
	pid, err := s.initPid()
	if err != nil {
		return err
	}
	s.hung = pid
	seized := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the tracer is a thread; it ends with this function
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		for _, task := range tasks {
			tid, _ := strconv.Atoi(task.Name())
			serr := unix.PtraceSeize(tid)
			// CRIU traces what is in the cgroup of its dump for a moment.
			for tries := 0; serr == unix.EPERM && tries < 1000; tries++ {
				time.Sleep(time.Millisecond)
				serr = unix.PtraceSeize(tid)
			}
			if serr != nil {
				err = errors.Join(err, fmt.Errorf("trace thread %d: %w", tid, serr))
				continue
			}
			err = errors.Join(err, unix.PtraceInterrupt(tid))
		}
		seized <- err
		// The dead are the tracer's to wait for, before anybody else.
		for range 6000 {
			alive := false
			for _, task := range tasks {
				tid, _ := strconv.Atoi(task.Name())
				if _, err := unix.Wait4(tid, nil, unix.WALL|unix.WNOHANG, nil); err == nil {
					alive = true
				}
			}
			if !alive {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return <-seized
}

// hungReplaced waits until there is another PID 1 than the one that was hung.
func hungReplaced(s *subject) error {
	ctx, cancel := context.WithTimeout(s.lab.Context(), 20*time.Second)
	defer cancel()
	return harness.WaitFor(ctx, "a new PID 1", func(ctx context.Context) (bool, error) {
		st, err := s.api.Status(ctx)
		return err == nil && st.InitPid != s.hung && st.State != api.Recovering, err
	})
}

// Stores that fill up or hang are file systems of the node's machine, where its
// checkpoints are while their row runs.
const (
	fullDir = "/run/fastmig-full"
	hangDir = "/run/fastmig-hang"
)

func fullStore(t *testing.T, lab *harness.Lab) func() {
	check(t, lab.InMachine(func() error {
		if err := os.MkdirAll(fullDir, 0o700); err != nil {
			return err
		}
		return unix.Mount("tmpfs", fullDir, "tmpfs", 0, "size=8m,mode=700")
	}))
	check(t, lab.WriteConfig(faultConfig(faultNode{checkpoints: fullDir})))
	return func() {
		if err := lab.InMachine(func() error { return unix.Unmount(fullDir, unix.MNT_DETACH) }); err != nil {
			t.Error(err)
		}
	}
}

// fillStore leaves no byte in the store.
func fillStore(s *subject) error {
	s.dir = s.lab.HostPath(fullDir)
	return s.lab.InMachine(func() error {
		f, err := os.Create(filepath.Join(fullDir, "filler"))
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(f, zeros{})
		if !errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("fill the store: %v", err)
		}
		return nil
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func emptyStore(s *subject) error {
	return s.lab.InMachine(func() error { return os.Remove(filepath.Join(fullDir, "filler")) })
}

// gate is a file system that answers no request while it is shut, as one does whose
// server is gone: who waits for it can be killed, and nothing else.
type gate struct {
	fuse.RawFileSystem
	mu   sync.Mutex
	open chan struct{} // closed while it is open
}

var theGate = &gate{}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
		if shut {
			g.open = make(chan struct{})
		}
	default:
		if !shut {
			close(g.open)
		}
	}
}

// pass waits for the gate to be open. It is not OK if the caller was killed.
func (g *gate) pass(killed <-chan struct{}) fuse.Status {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	select {
	case <-open:
		return fuse.OK
	default:
	}
	select {
	case <-open:
		return fuse.OK
	case <-killed:
		return fuse.EINTR
	}
}

func (g *gate) Lookup(c <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if s := g.pass(c); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Lookup(c, h, name, out)
}

func (g *gate) GetAttr(c <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if s := g.pass(c); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.GetAttr(c, in, out)
}

func (g *gate) Mkdir(c <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := g.pass(c); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Mkdir(c, in, name, out)
}

func (g *gate) OpenDir(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if s := g.pass(c); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.OpenDir(c, in, out)
}

func (g *gate) Create(c <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if s := g.pass(c); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Create(c, in, name, out)
}

func (g *gate) Open(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if s := g.pass(c); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Open(c, in, out)
}

func (g *gate) Read(c <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if s := g.pass(c); s != fuse.OK {
		return nil, s
	}
	return g.RawFileSystem.Read(c, in, buf)
}

func (g *gate) Write(c <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if s := g.pass(c); s != fuse.OK {
		return 0, s
	}
	return g.RawFileSystem.Write(c, in, data)
}

func (g *gate) StatFs(c <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	if s := g.pass(c); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.StatFs(c, in, out)
}

func (g *gate) Fsync(c <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if s := g.pass(c); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Fsync(c, in)
}

func (g *gate) Rename(c <-chan struct{}, in *fuse.RenameIn, old, name string) fuse.Status {
	if s := g.pass(c); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Rename(c, in, old, name)
}

// hangingStore mounts a file system that can be made to hang, as a dead network
// makes one.
func hangingStore(t *testing.T, lab *harness.Lab) func() {
	root, err := fs.NewLoopbackRoot(t.TempDir())
	check(t, err)
	zero := time.Duration(0)
	theGate = &gate{open: make(chan struct{}), RawFileSystem: fs.NewNodeFS(root, &fs.Options{EntryTimeout: &zero, AttrTimeout: &zero})}
	theGate.set(false)
	var server *fuse.Server
	check(t, lab.InMachine(func() error {
		if err := os.MkdirAll(hangDir, 0o700); err != nil {
			return err
		}
		var err error
		server, err = fuse.NewServer(theGate, hangDir, &fuse.MountOptions{DirectMountStrict: true, FsName: "store", Name: "hang"})
		return err
	}))
	go server.Serve()
	check(t, lab.WriteConfig(faultConfig(faultNode{checkpoints: hangDir + "/checkpoints", storeTimeout: "2s"})))
	return func() {
		theGate.set(false)
		if err := lab.InMachine(func() error { return unix.Unmount(hangDir, unix.MNT_DETACH) }); err != nil {
			t.Error(err)
		}
		server.Wait()
	}
}

func hangStore(s *subject) error {
	s.dir = s.lab.HostPath(hangDir + "/checkpoints")
	theGate.set(true)
	return nil
}

func wakeStore(*subject) error { theGate.set(false); return nil }

// afterlife checks what is left of a container that ended with its shim, and that
// another one brings its service back from the last checkpoint, as after the loss
// of a machine.
func (s *subject) afterlife() error {
	ctx, cancel := context.WithTimeout(s.lab.Context(), 30*time.Second)
	defer cancel()
	err := harness.WaitFor(ctx, "nothing of the container to run", func(context.Context) (bool, error) {
		pids := s.pids()
		return len(pids) == 0, fmt.Errorf("%s", describe(pids))
	})
	if err != nil {
		return err
	}
	if st, err := s.c.Task.Status(ctx); err == nil && st.Status != containerd.Stopped {
		return fmt.Errorf("the task is %s", st.Status)
	}
	if err := s.c.Remove(ctx); err != nil {
		return err
	}
	heir := newSubject(s.t, s.lab, subjectOptions{
		annotations: map[string]string{"io.fastmig.startup": "restore", "io.fastmig.image-url": s.url},
	})
	if err := heir.counts(); err != nil {
		return err
	}
	was, is := s.since(s.mark()), heir.since(heir.mark())
	if was[0].life != is[0].life {
		return fmt.Errorf("the service was not restored on: it is %v, and was %v", is[0], was[0])
	}
	if err := heir.checkpoint(); err != nil {
		return err
	}
	if err := heir.stored(false); err != nil {
		return err
	}
	return heir.c.Remove(ctx)
}

// describe tells what processes are and do.
func describe(pids []int) string {
	var all []string
	for _, pid := range pids {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		head, _, _ := strings.Cut(string(status), "TracerPid")
		group, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		all = append(all, fmt.Sprintf("%d %q %q %q", pid, line, head, group))
	}
	return strings.Join(all, "\n")
}
