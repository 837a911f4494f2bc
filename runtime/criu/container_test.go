//go:build linux

package criu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fastmig/fastmig/runtime/romount"
	"golang.org/x/sys/unix"
)

// testApp is the static program that is PID 1 and application of the tests' containers.
var testApp string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "fastmig-criu-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		testApp = filepath.Join(dir, "testapp")
		build := exec.Command("go", "build", "-o", testApp, "./internal/testapp")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build internal/testapp: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// patience bounds every wait of the tests.
const patience = 30 * time.Second

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// realTool is the toolkit's CRIU.
func realTool(t testing.TB) *Tool {
	t.Helper()
	root := os.Getenv("FASTMIG_ROOT")
	if root == "" {
		root = "/opt/fastmig"
	}
	folder, err := romount.OpenReadOnly(filepath.Join(root, "criu"), 0)
	if err != nil {
		t.Fatalf("no toolkit: %v: run `fastmig install`, or name its folder in FASTMIG_ROOT", err)
	}
	t.Cleanup(func() { _ = folder.Close() })
	tool, err := New(Config{Folder: folder, Cache: filepath.Join(t.TempDir(), "kdat")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tool.Close() })
	return tool
}

// container is a PID 1 with namespaces, a root and a freezer cgroup of its own.
type container struct {
	t       testing.TB
	cmd     *exec.Cmd
	control *os.File
	ns      Namespaces
	freezer *freezer
	user    int           // on the host, of the container's root
	read    chan struct{} // closed when PID 1 says nothing more

	mu     sync.Mutex
	change *sync.Cond
	events []event
	gone   bool
}

// event mirrors internal/testapp's Event.
type event struct {
	Started, Exited int
	Status          int
	Err             string
}

func newContainer(t testing.TB) *container { return newContainerIn(t, newFreezer(t)) }

func newContainerIn(t testing.TB, f *freezer) *container {
	t.Helper()
	return newContainerAs(t, f, 0)
}

// newContainerAs makes the container's root the host's user root. Unless that is 0, it takes a
// user namespace.
func newContainerAs(t testing.TB, f *freezer, user int) *container {
	t.Helper()
	c := &container{t: t, freezer: f, read: make(chan struct{})}
	c.change = sync.NewCond(&c.mu)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "control")
	c.control = os.NewFile(uintptr(pair[0]), "control")
	root := t.TempDir()
	c.cmd = exec.Command(testApp, "init", root)
	c.cmd.ExtraFiles = []*os.File{theirs}
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
		Setsid:     true,
	}
	if user != 0 {
		ids := []syscall.SysProcIDMap{{HostID: user, Size: 65536}}
		c.cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		c.cmd.SysProcAttr.UidMappings, c.cmd.SysProcAttr.GidMappings = ids, ids
		c.cmd.SysProcAttr.Credential = &syscall.Credential{NoSetGroups: true}
		c.user = user
		for _, dir := range []string{filepath.Dir(testApp), root, filepath.Dir(root)} {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	t.Cleanup(c.stop)
	go c.listen()
	if e := c.wait(func(e event) bool { return e.Started == 1 }); e == nil {
		t.Fatal("the container's PID 1 did not come up")
	}
	c.freezer.add(c.cmd.Process.Pid)
	if c.ns, err = OpenNamespaces(c.cmd.Process.Pid, nil); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *container) stop() {
	c.freezer.thaw()
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	<-c.read
	_ = c.control.Close()
	c.ns.Close()
	c.freezer.remove()
}

func (c *container) listen() {
	defer close(c.read)
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(int(c.control.Fd()), buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		var e event
		c.mu.Lock()
		if err != nil || n == 0 || json.Unmarshal(buf[:n], &e) != nil {
			c.gone = true
		} else {
			c.events = append(c.events, e)
		}
		gone := c.gone
		c.change.Broadcast()
		c.mu.Unlock()
		if gone {
			return
		}
	}
}

// wait returns the first event that fits and takes it out, or nil when there will be none.
func (c *container) wait(fits func(event) bool) *event {
	late := false
	timer := time.AfterFunc(patience, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		late = true
		c.change.Broadcast()
	})
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for i, e := range c.events {
			if fits(e) {
				c.events = append(c.events[:i:i], c.events[i+1:]...)
				return &e
			}
		}
		if c.gone || late {
			return nil
		}
		c.change.Wait()
	}
}

// exited waits for the end of a child of PID 1 and returns its status.
func (c *container) exited(pid int) syscall.WaitStatus {
	c.t.Helper()
	e := c.wait(func(e event) bool { return e.Exited == pid })
	if e == nil {
		c.t.Fatalf("process %d did not end", pid)
	}
	return syscall.WaitStatus(e.Status)
}

func (c *container) place() Place { return Place{Namespaces: c.ns} }

// openTestApp is the stand-in for the toolkit's fastfreeze.
func openTestApp(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Open(testApp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// service is an application in a container and our ends of its pipes.
type service struct {
	t      testing.TB
	pid    int // in the container
	in     *os.File
	out    *os.File
	reader *bufio.Reader
	// theirs are the application's ends, which a restore takes as well.
	theirs []*os.File
}

// request mirrors internal/testapp's Request.
type request struct {
	Args        []string
	Pid         int
	TTY         bool
	SameSession bool
}

// start runs the application at a pid, with pipes.
func (c *container) start(pid int) *service {
	c.t.Helper()
	s := newService(c.t)
	c.startWith(s, request{Pid: pid})
	return s
}

func newService(t testing.TB) *service {
	t.Helper()
	stdin, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s := &service{t: t, in: in, out: out, reader: bufio.NewReader(out), theirs: []*os.File{stdin, stdout, stdout}}
	t.Cleanup(func() {
		for _, f := range append([]*os.File{in, out}, s.theirs...) {
			_ = f.Close()
		}
	})
	return s
}

func (c *container) startWith(s *service, r request) {
	c.t.Helper()
	if r.Args == nil {
		r.Args = []string{"/app", "app"}
	}
	req, err := json.Marshal(r)
	if err != nil {
		c.t.Fatal(err)
	}
	rights := unix.UnixRights(int(s.theirs[0].Fd()), int(s.theirs[1].Fd()), int(s.theirs[2].Fd()))
	if err := unix.Sendmsg(int(c.control.Fd()), req, rights, nil, 0); err != nil {
		c.t.Fatal(err)
	}
	e := c.wait(func(e event) bool { return e.Started != 0 || e.Err != "" })
	if e == nil || e.Err != "" {
		c.t.Fatalf("start the application: %+v", e)
	}
	s.pid = e.Started
}

// ask sends a command and returns the answer without its "ok".
func (s *service) ask(format string, args ...any) string {
	s.t.Helper()
	answer, err := s.try(format, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer
}

func (s *service) try(format string, args ...any) (string, error) {
	line := fmt.Sprintf(format, args...)
	if err := s.in.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(s.in, line); err != nil {
		return "", fmt.Errorf("%s: %w", line, err)
	}
	if err := s.out.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	answer, err := s.reader.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("%s: %w", line, err)
	}
	answer = strings.TrimSpace(answer)
	if answer != "ok" && !strings.HasPrefix(answer, "ok ") {
		return "", fmt.Errorf("%s: %s", line, answer)
	}
	return strings.TrimPrefix(strings.TrimPrefix(answer, "ok"), " "), nil
}

// stop ends the application.
func (s *service) stop() { _ = s.in.Close() }

// pipes names the application's stdio as CRIU does.
func (s *service) pipes() []string {
	s.t.Helper()
	var names []string
	for _, f := range s.theirs[:2] {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			s.t.Fatal(err)
		}
		names = append(names, fmt.Sprintf("pipe:[%d]", st.Ino))
	}
	return names
}

// freezer is a cgroup that can freeze: of v1's hierarchy where it is mounted, else of v2.
type freezer struct {
	t    testing.TB
	path string
	v2   bool
	dir  *os.File
}

func newFreezer(t testing.TB) *freezer {
	t.Helper()
	f := &freezer{t: t}
	parent := "/sys/fs/cgroup/freezer"
	if _, err := os.Stat(parent); err != nil {
		parent, f.v2 = "/sys/fs/cgroup", true
	}
	return f.make(parent)
}

// newFreezerV2 uses v2 also on a hybrid machine.
func newFreezerV2(t testing.TB) *freezer {
	t.Helper()
	f := &freezer{t: t, v2: true}
	parent := "/sys/fs/cgroup/unified"
	if _, err := os.Stat(parent); err != nil {
		parent = "/sys/fs/cgroup"
	}
	return f.make(parent)
}

func (f *freezer) make(parent string) *freezer {
	f.t.Helper()
	var err error
	if f.path, err = os.MkdirTemp(parent, "fastmig-criu-test-"); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Chmod(f.path, 0o755); err != nil {
		f.t.Fatal(err)
	}
	if f.dir, err = os.Open(f.path); err != nil {
		f.t.Fatal(err)
	}
	return f
}

func (f *freezer) add(pid int) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.path, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		f.t.Fatal(err)
	}
}

func (f *freezer) set(v1, v2 string) error {
	if f.v2 {
		return os.WriteFile(filepath.Join(f.path, "cgroup.freeze"), []byte(v2), 0)
	}
	return os.WriteFile(filepath.Join(f.path, "freezer.state"), []byte(v1), 0)
}

func (f *freezer) freeze() {
	f.t.Helper()
	if err := f.set("FROZEN", "1"); err != nil {
		f.t.Fatal(err)
	}
	eventually(f.t, "the cgroup is frozen", f.frozen)
}

func (f *freezer) thaw() { _ = f.set("THAWED", "0") }

func (f *freezer) frozen() bool {
	if f.v2 {
		b, _ := os.ReadFile(filepath.Join(f.path, "cgroup.events"))
		return strings.Contains(string(b), "frozen 1")
	}
	b, _ := os.ReadFile(filepath.Join(f.path, "freezer.state"))
	return strings.TrimSpace(string(b)) == "FROZEN"
}

func (f *freezer) remove() {
	_ = f.dir.Close()
	eventually(f.t, "the test's cgroup is empty", func() bool { return os.Remove(f.path) == nil })
}

// eventually polls for a condition that nothing reports.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !is() {
		if time.Now().After(deadline) {
			t.Errorf("it did not come about that %s", what)
			return
		}
		<-tick.C
	}
}

// checkpoint is a folder with images and a log.
type checkpoint struct {
	images *os.File
	log    *os.File
}

func newCheckpoint(t testing.TB) *checkpoint {
	t.Helper()
	images, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = images.Close() })
	return &checkpoint{images: images, log: newLog(t)}
}

func newLog(t testing.TB) *os.File {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "criu.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	return log
}
