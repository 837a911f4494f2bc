package integration_test

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	seccompimage "github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/pkg/oci"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/integration/workloads"
	"github.com/fastmig/fastmig/runtime/image"
)

// TestSeccomp restores under the default profile what was checkpointed under it,
// and what somebody else has put into a checkpoint.
func TestSeccomp(t *testing.T) {
	runSuite(t, []images.Image{images.Shell, images.Redis}, []labTest{
		{"honest", testHonestFilter},
		{"own filter on top", testOwnFilter},
		{"redis", testFilteredRedis},
		{"forged", testForgedFilter},
	})
}

// The default profile allows few values of personality(2), whatever capabilities
// there are; the kernel allows this one to everybody.
const noRandomize = 0x40000

// The service counts as tickScript does, and adds what comes of that call.
const filteredScript = `read -r nonce </proc/sys/kernel/random/uuid; n=0
while :; do
	n=$((n+1)); if setarch -R true 2>/dev/null; then a=allowed; else a=forbidden; fi
	ln -sfn "$nonce $n $a" /tick; sleep 0.02
done`

func filteredOptions(profile bool) harness.RunOptions {
	opts := harness.RunOptions{Image: images.Shell.Ref(), Args: []string{"bash", "-c", filteredScript}}
	if profile {
		opts.Spec = []oci.SpecOpts{seccomp.WithDefaultProfile()}
	}
	return opts
}

// wantAnswer checks what comes of the calls that the service makes from now on.
func wantAnswer(t *testing.T, lab *harness.Lab, c *harness.Container, want string) {
	t.Helper()
	_, count := tickSeen(lab, t, c, 0)
	// That call may have been made before, and the next has begun.
	tickSeen(lab, t, c, count+1)
	got := strings.TrimSpace(lab.MustExec(c, "readlink", "/tick"))
	if !strings.HasSuffix(got, " "+want) {
		t.Errorf("the service in %s says %q, not %s", c.ID(), got, want)
	}
}

// filtersOf is how many seccomp filters the container's application has, in each
// of its threads.
func filtersOf(t *testing.T, lab *harness.Lab, c *harness.Container) (counts []string) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", applicationPid(t, lab, c)))
	check(t, err)
	for _, task := range tasks {
		data, err := os.ReadFile(task)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		check(t, err)
		for line := range strings.Lines(string(data)) {
			if n, found := strings.CutPrefix(line, "Seccomp_filters:"); found && !slices.Contains(counts, strings.TrimSpace(n)) {
				counts = append(counts, strings.TrimSpace(n))
			}
		}
	}
	return counts
}

func wantFilters(t *testing.T, lab *harness.Lab, c *harness.Container, want string) {
	t.Helper()
	if got := filtersOf(t, lab, c); !slices.Equal(got, []string{want}) {
		t.Errorf("the threads of the application in %s have %v seccomp filters, not %s", c.ID(), got, want)
	}
}

func testHonestFilter(t *testing.T, lab *harness.Lab) {
	source := lab.MustRun(filteredOptions(true))
	continues := ticking(lab, t, source)
	wantAnswer(t, lab, source, "forbidden")
	wantFilters(t, lab, source, "1")
	for range 2 { // also of what was restored
		url := nodeURL()
		saveTo(t, lab, source, url, true)
		target := lab.MustRun(standby(filteredOptions(true)))
		restoreFrom(t, lab, target, url)
		continues(target)
		wantAnswer(t, lab, target, "forbidden")
		wantFilters(t, lab, target, "1")
		source = target
	}
}

func testFilteredRedis(t *testing.T, lab *harness.Lab) {
	opts := harness.RunOptions{Image: images.Redis.Ref(), Spec: []oci.SpecOpts{seccomp.WithDefaultProfile()}}
	source := lab.MustRun(opts)
	run, err := workloads.FillRedis(lab.Context(), source, 1000)
	check(t, err)
	url := nodeURL()
	saveTo(t, lab, source, url, false)
	target := lab.MustRun(standby(opts))
	restoreFrom(t, lab, target, url)
	check(t, workloads.CheckRedis(lab.Context(), target, run, 1000))
	wantFilters(t, lab, target, "1")
}

// filterWord makes the test's own program a service with a filter of its own.
const filterWord = "fastmig-test-filter"

func init() {
	if len(os.Args) < 2 || os.Args[1] != filterWord {
		return
	}
	if err := runFiltered(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runFiltered forbids itself getpriority(2) by an error of its own, and tells what
// comes of this call and of the one that the container forbids.
func runFiltered() error {
	steps := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_GETPRIORITY, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOTUNIQ)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	program := unix.SockFprog{Len: uint16(len(steps)), Filter: &steps[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return errno
	}
	nonce := rand.Text()
	for n := 1; ; n++ {
		_, _, personality := unix.Syscall(unix.SYS_PERSONALITY, noRandomize, 0, 0)
		_, _, own := unix.Syscall(unix.SYS_GETPRIORITY, unix.PRIO_PROCESS, 0, 0)
		answer := fmt.Sprintf("%s/%s", unix.ErrnoName(personality), unix.ErrnoName(own))
		_ = os.Remove("/tick.new")
		if err := os.Symlink(fmt.Sprintf("%s %d %s", nonce, n, answer), "/tick.new"); err != nil {
			return err
		}
		// In the container that it is restored into, what it has just made is not there.
		if err := os.Rename("/tick.new", "/tick"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func testOwnFilter(t *testing.T, lab *harness.Lab) {
	opts := withProbe(t, harness.RunOptions{Args: []string{"/probe", filterWord}, Spec: []oci.SpecOpts{seccomp.WithDefaultProfile()}})
	source := lab.MustRun(opts)
	continues := ticking(lab, t, source)
	wantAnswer(t, lab, source, "EPERM/ENOTUNIQ")
	wantFilters(t, lab, source, "2")
	url := nodeURL()
	saveTo(t, lab, source, url, false)
	target := lab.MustRun(standby(opts))
	restoreFrom(t, lab, target, url)
	continues(target)
	wantAnswer(t, lab, target, "EPERM/ENOTUNIQ")
	wantFilters(t, lab, target, "2")
}

// A checkpoint in the container's own files is whatever the container wants. Its
// filters then do not take the place of the container's.
func testForgedFilter(t *testing.T, lab *harness.Lab) {
	free := lab.MustRun(standby(filteredOptions(false)))
	for _, tc := range []struct {
		tells   *int // the forged manifest
		filters string
	}{
		{nil, "1"},
		{new(int), "2"}, // nothing is the container's: the forged one goes on top
	} {
		c := lab.MustRun(filteredOptions(true))
		continues := ticking(lab, t, c)
		wantAnswer(t, lab, c, "forbidden")
		done(t, "checkpoint", post(t, lab, c, "/checkpoint", `{"image_url":"file:/ckpt"}`), 200)
		dir := fmt.Sprintf("/proc/%d/root/ckpt", c.Task.Pid())
		forge(t, lab.Context(), dir, tc.tells)
		done(t, "run", post(t, lab, c, "/run", `{"image_url":"file:/ckpt"}`), 200)
		continues(c)
		wantAnswer(t, lab, c, "forbidden")
		wantFilters(t, lab, c, tc.filters)

		// The forgery is good enough for a container that forbids nothing.
		if tc.tells == nil {
			url := nodeURL()
			name := strings.TrimPrefix(url, "node:")
			check(t, os.MkdirAll(nodeCheckpoints(lab), 0o700))
			check(t, os.CopyFS(filepath.Join(nodeCheckpoints(lab), name), os.DirFS(dir)))
			restoreFrom(t, lab, free, url)
			continues(free)
			wantAnswer(t, lab, free, "allowed")
			wantFilters(t, lab, free, "1")
		}
	}
}

// forge writes a whole checkpoint in the place of the one in dir: the same, but for
// its seccomp filters, which allow all.
func forge(t *testing.T, ctx context.Context, dir string, filters *int) {
	t.Helper()
	checkpoint, err := image.Open(dir)
	check(t, err)
	m := checkpoint.Manifest
	check(t, checkpoint.Close())
	forged := filepath.Join(t.TempDir(), "forged")
	stage, err := image.Stage(forged)
	check(t, err)
	defer stage.Abort()
	for _, f := range m.Files {
		data, err := os.ReadFile(filepath.Join(dir, f.Name))
		check(t, err)
		if f.Name == "seccomp.img" {
			data = allowAll(t, data)
		}
		check(t, os.WriteFile(filepath.Join(stage.Dir(), f.Name), data, 0o600))
	}
	m.SeccompFilters = filters
	check(t, stage.Commit(ctx, m))
	check(t, os.RemoveAll(dir))
	check(t, os.CopyFS(dir, os.DirFS(forged)))
}

func allowAll(t *testing.T, data []byte) []byte {
	t.Helper()
	const head = 12 // two magic numbers and a length
	if len(data) < head {
		t.Fatalf("seccomp.img has %d bytes", len(data))
	}
	var list seccompimage.SeccompEntry
	check(t, proto.Unmarshal(data[head:], &list))
	if len(list.SeccompFilters) == 0 {
		t.Fatal("there are no filters in the checkpoint")
	}
	for _, f := range list.SeccompFilters {
		f.Filter = []byte{unix.BPF_RET | unix.BPF_K, 0, 0, 0, 0, 0, 0xff, 0x7f} // SECCOMP_RET_ALLOW
	}
	body, err := proto.Marshal(&list)
	check(t, err)
	return append(binary.LittleEndian.AppendUint32(slices.Clone(data[:head-4]), uint32(len(body))), body...)
}
