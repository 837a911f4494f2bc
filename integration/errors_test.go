package integration_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// editManifest changes the text of the checkpoint's manifest and gives it the
// digest that makes it valid again.
func editManifest(t *testing.T, dir string, edit func(string) string) {
	t.Helper()
	path := filepath.Join(dir, "fastmig.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const head = ",\n  \"digest\": \"sha256:"
	body, _, found := strings.Cut(string(text), head)
	edited := edit(body)
	if !found || edited == body {
		t.Fatalf("the edit does not fit the manifest:\n%s", text)
	}
	edited += head
	sum := sha256.Sum256([]byte(edited))
	if err := os.WriteFile(path, []byte(edited+hex.EncodeToString(sum[:])+"\"\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func replaceInManifest(old, text string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		editManifest(t, dir, func(s string) string { return strings.Replace(s, old, text, 1) })
	}
}

// damages are ways in which a checkpoint is not what it was, or not for this
// node, and what the user is told.
var damages = []struct {
	name   string
	damage func(t *testing.T, dir string)
	says   []string
}{
	{"empty", func(t *testing.T, dir string) {
		for _, name := range folderNames(t, dir) {
			must(t, os.Remove(filepath.Join(dir, name)))
		}
	}, []string{"folder is empty"}},
	{"truncated file", func(t *testing.T, dir string) {
		must(t, os.Truncate(filepath.Join(dir, "pages-1.img"), 4096))
	}, []string{"pages-1.img is truncated", "4096 of"}},
	{"flipped byte", func(t *testing.T, dir string) {
		flip(t, filepath.Join(dir, "pages-1.img"))
	}, []string{"pages-1.img: content changed"}},
	{"extra file", func(t *testing.T, dir string) {
		must(t, os.WriteFile(filepath.Join(dir, "core-7.img"), []byte("x"), 0o600))
	}, []string{"core-7.img is an extra regular file"}},
	{"missing file", func(t *testing.T, dir string) {
		must(t, os.Remove(filepath.Join(dir, "mm-1000.img")))
	}, []string{"mm-1000.img", "missing"}},
	{"symbolic link", func(t *testing.T, dir string) {
		must(t, os.Remove(filepath.Join(dir, "mm-1000.img")))
		must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "mm-1000.img")))
	}, []string{"mm-1000.img", "symbolic link"}},
	{"no manifest", func(t *testing.T, dir string) {
		must(t, os.Remove(filepath.Join(dir, "fastmig.json")))
	}, []string{"fastmig.json is missing among CRIU's files"}},
	{"flipped byte of the manifest", func(t *testing.T, dir string) {
		flip(t, filepath.Join(dir, "fastmig.json"))
	}, []string{"fastmig.json", "changed since it was written"}},
	{"path out of the folder", replaceInManifest(`"name": "core-1000.img"`, `"name": "../core-1000.img"`),
		[]string{"../core-1000.img", "no name of a file in a flat folder"}},
	{"other format version", replaceInManifest(`"formatVersion": 1`, `"formatVersion": 2`),
		[]string{"format version 2", "reads version 1", "restore it with the FastMig that wrote it"}},
	{"other architecture", replaceInManifest(`"architecture": "amd64"`, `"architecture": "s390x"`),
		[]string{"taken on s390x", "restore it on a node with its architecture"}},
	{"CPU feature missing", replaceInManifest(`"features": [`, "\"features\": [\n      \"avx10_2\","),
		[]string{"avx10_2", "restore it on a node whose CPU has them"}},
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// flip changes one bit in the middle of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	data[len(data)/2] ^= 1
	must(t, os.WriteFile(path, data, 0o600))
}

// A checkpoint that is damaged or not for this node is refused before anything
// starts, in words that reach the user of ctr.
func TestDamagedCheckpoint(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	source := lab.MustRun(tickOptions())
	check := ticking(lab, t, source)
	if err := source.Checkpoint(lab.Context(), "fastmig.test/whole:1", false); err != nil {
		t.Fatal(err)
	}
	// The way of this test is none that damages by itself; and what the first
	// restore makes for good is there before the count.
	lab.MustCtr("container", "restore", "--rw", "--live", "good", repack(t, lab, "fastmig.test/whole:1", func(string) {}))
	good := load(lab, t, "good")
	check(good)
	mustRemove(lab, t, good)
	// A shell that stands still has always the same children.
	must(t, source.Task.Pause(lab.Context()))
	before, err := lab.Traces(lab.Context())
	must(t, err)
	for _, d := range damages {
		t.Run(strings.ReplaceAll(d.name, " ", "-"), func(t *testing.T) {
			lab := lab.For(t)
			ref := repack(t, lab, "fastmig.test/whole:1", func(dir string) { d.damage(t, dir) })
			id := harness.NewID("damaged")
			_, err := lab.Ctr(lab.Context(), "container", "restore", "--rw", "--live", id, ref)
			if err == nil {
				t.Fatal("it was restored")
			}
			wantText(t, stderrOf(t, err), d.says...)
			lab.MustCtr("container", "delete", id)
		})
	}
	noLeak(lab, t, before)
	must(t, source.Task.Resume(lab.Context()))
	check(source)
}

// Folders that are named directly, as CRI does.
func TestWrongFolder(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	source := lab.MustRun(tickOptions())
	check := ticking(lab, t, source)
	dir := filepath.Join(t.TempDir(), "images")
	lab.MustCtr("task", "checkpoint", "--image-path", dir, source.ID())
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(dir, link))
	other := t.TempDir()
	must(t, os.WriteFile(filepath.Join(other, "note"), []byte("mine"), 0o600))

	for path, says := range map[string][]string{
		filepath.Join(t.TempDir(), "nowhere"): {"no such file or directory"},
		t.TempDir():                           {"empty"},
		link:                                  {"symbolic link", "name the folder itself"},
		other:                                 {"no checkpoint"},
	} {
		opts := tickOptions()
		opts.Task = []containerd.NewTaskOpts{containerd.WithRestoreImagePath(path)}
		if _, err := lab.Run(lab.Context(), opts); err == nil {
			t.Errorf("%s was restored", path)
		} else {
			wantText(t, err.Error(), append(says, path)...)
		}
	}

	// A checkpoint goes into no folder that holds anything.
	for _, path := range []string{other, dir} {
		names := folderNames(t, path)
		_, err := lab.Ctr(lab.Context(), "task", "checkpoint", "--image-path", path, source.ID())
		if err == nil {
			t.Fatalf("a checkpoint went into %s", path)
		}
		wantText(t, stderrOf(t, err), path, "not empty", "choose an empty or a new folder")
		if now := folderNames(t, path); fmt.Sprint(now) != fmt.Sprint(names) {
			t.Errorf("%s held %v and holds %v", path, names, now)
		}
	}
	check(source)
}

// logOf is the path of CRIU's log in a message; the file must be there.
func logOf(t *testing.T, lab *harness.Lab, message string) string {
	t.Helper()
	found := regexp.MustCompile(`(/[^\s)"]+\.log)`).FindStringSubmatch(message)
	if found == nil {
		t.Errorf("the message names no log:\n%s", message)
		return ""
	}
	must(t, lab.InMachine(func() error {
		info, err := os.Stat(found[1])
		if err == nil && info.Size() == 0 {
			err = fmt.Errorf("%s is empty", found[1])
		}
		return err
	}))
	return found[1]
}

// An application with something that CRIU cannot dump goes on; the user learns
// which process and what.
func TestUndumpable(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.GoScratch)
	source := lab.MustRun(harness.RunOptions{Image: images.GoScratch.Ref()}) // listens on an MPTCP socket
	stat := func() string {
		var out string
		lab.WaitFor("the service to answer", func(ctx context.Context) (_ bool, err error) {
			out, err = source.Exec(ctx, "/service", "STAT")
			return err == nil, err
		})
		return strings.Fields(out)[0]
	}
	nonce := stat()
	_, err := lab.Ctr(lab.Context(), "container", "checkpoint", "--task", source.ID(), "fastmig.test/never:1")
	if err == nil {
		t.Fatal("it was checkpointed")
	}
	message := stderrOf(t, err)
	wantText(t, message, source.ID(), "dump", "process 1000 (service)", "262")
	logOf(t, lab, message)
	wantStatus(lab, t, source, containerd.Running)
	if now := stat(); now != nonce {
		t.Errorf("another service answers: %s, not %s", now, nonce)
	}
	dir := filepath.Join(t.TempDir(), "images")
	if _, err := lab.Ctr(lab.Context(), "task", "checkpoint", "--exit", "--image-path", dir, source.ID()); err == nil {
		t.Fatal("it was checkpointed")
	}
	if _, err := os.Lstat(dir); err == nil {
		t.Errorf("a failed checkpoint left its folder with %v", folderNames(t, dir))
	}
	if now := stat(); now != nonce {
		t.Errorf("another service answers: %s, not %s", now, nonce)
	}
}

// A full disk costs the checkpoint and nothing else.
func TestDiskFull(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	dir := filepath.Join(lab.Dir, "small")
	must(t, os.Mkdir(dir, 0o700))
	must(t, lab.InMachine(func() error { return unix.Mount("tmpfs", dir, "tmpfs", 0, "size=128k,mode=700") }))
	t.Cleanup(func() {
		must(t, lab.InMachine(func() error { return unix.Unmount(dir, 0) }))
	})
	source := lab.MustRun(tickOptions())
	check := ticking(lab, t, source)
	_, err := lab.Ctr(lab.Context(), "task", "checkpoint", "--exit", "--image-path", filepath.Join(dir, "images"), source.ID())
	if err == nil {
		t.Fatal("the checkpoint fits into 128 KiB")
	}
	message := stderrOf(t, err)
	if !strings.Contains(message, "disk is full") && !strings.Contains(message, "No space left on device") {
		t.Errorf("nothing about the full disk in: %s", message)
	}
	wantText(t, message, "free")
	check(source)
	must(t, lab.InMachine(func() error {
		if left := folderNames(t, dir); len(left) > 0 {
			t.Errorf("left in the folder: %v", left)
		}
		return nil
	}))
}

// Specs that say what cannot be.
func TestWrongSpec(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	for annotation, says := range map[string][]string{
		"io.fastmig.mode=fast":          {"io.fastmig.mode", `fast`, "fastfreeze plain"},
		"io.fastmig.tcp=drop":           {"io.fastmig.tcp", "close keep"},
		"io.fastmig.checkpoint-exit=no": {"io.fastmig.checkpoint-exit", "true false"},
		"io.fastmig.tpc=close":          {"io.fastmig.tpc", "none of this name"},
	} {
		id := harness.NewID("spec")
		_, err := lab.Ctr(lab.Context(), "run", "-d", "--annotation", annotation, images.Busybox.Ref(), id, "sleep", "1000")
		if err == nil {
			t.Errorf("%s runs", annotation)
			continue
		}
		wantText(t, stderrOf(t, err), says...)
		_, _ = lab.Ctr(lab.Context(), "container", "delete", id)
	}
	opts := tickOptions()
	opts.Spec = []oci.SpecOpts{func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Process = nil
		return nil
	}}
	if _, err := lab.Run(lab.Context(), opts); err == nil {
		t.Error("a spec without process runs")
	} else {
		wantText(t, err.Error(), "process", "must not be empty")
	}
}

// The files of the destination must be those of the source.
func TestOtherImage(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	source := lab.MustRun(tickOptions())
	check := ticking(lab, t, source)
	checkpoint, err := source.Task.Checkpoint(lab.Context())
	must(t, err)

	opts := tickOptions()
	opts.Args = []string{"sh", "-c", "cp /usr/bin/busybox /b && echo longer >>/b && mv /b /usr/bin/busybox"}
	changed := lab.MustRun(opts)
	if code, err := changed.WaitExit(lab.Context()); err != nil || code != 0 {
		t.Fatal(code, err)
	}
	_, err = changed.Task.Delete(lab.Context())
	must(t, err)
	task, err := changed.NewTask(lab.Context(), cio.NullIO, containerd.WithTaskCheckpoint(checkpoint))
	must(t, err)
	if err = task.Start(lab.Context()); err == nil {
		t.Fatal("it was restored onto another busybox")
	}
	wantText(t, err.Error(), "/usr/bin/busybox", "bytes here", "in the checkpoint", "of the image that it was taken from")
	check(source)
}

// The application's pids must be free.
func TestPidTaken(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	source := lab.MustRun(tickOptions())
	check := ticking(lab, t, source)
	checkpoint, err := source.Task.Checkpoint(lab.Context())
	must(t, err)

	shared := tickOptions()
	shared.Spec = []oci.SpecOpts{oci.WithLinuxNamespace(specs.LinuxNamespace{
		Type: specs.PIDNamespace, Path: fmt.Sprintf("/proc/%d/ns/pid", source.Task.Pid()),
	})}
	shared.Task = []containerd.NewTaskOpts{containerd.WithTaskCheckpoint(checkpoint)}
	if _, err := lab.Run(lab.Context(), shared); err == nil {
		t.Error("it was restored into a shared pid namespace")
	} else {
		wantText(t, err.Error(), "shares its pid namespace", "give it one of its own")
	}

	// A process that an administrator has put there, at this very pid.
	taken := tickOptions()
	taken.Task = []containerd.NewTaskOpts{containerd.WithTaskCheckpoint(checkpoint)}
	target := lab.MustCreate(taken)
	squatter, err := lab.Command(lab.Context(), "nsenter", "--target", fmt.Sprint(target.Task.Pid()), "--pid",
		"sh", "-c", "echo 999 >/proc/sys/kernel/ns_last_pid; sleep 10000 & wait")
	must(t, err)
	must(t, lab.StartCommand(squatter))
	t.Cleanup(func() {
		_ = unix.Kill(-squatter.Process.Pid, unix.SIGKILL)
		_ = squatter.Wait()
	})
	lab.WaitFor("pid 1000 to be taken", func(context.Context) (bool, error) {
		for _, pid := range below(squatter.Process.Pid) {
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if regexp.MustCompile(`(?m)^NSpid:.*\s1000$`).Match(status) {
				return true, nil
			}
		}
		return false, nil
	})
	err = target.Start(lab.Context())
	if err == nil {
		t.Fatal("it was restored onto a pid that is taken")
	}
	wantText(t, err.Error(), "1000", "restore")
	logOf(t, lab, err.Error())
	check(source)
}

// Without a toolkit nothing starts, and with a broken CRIU nothing but a
// checkpoint fails.
func TestToolkit(t *testing.T) {
	root := t.TempDir()
	lab := harness.New(t, harness.Options{Toolkit: root})
	lab.MustImport(images.Busybox)
	_, err := lab.Ctr(lab.Context(), "run", "-d", images.Busybox.Ref(), "none", "sleep", "1000")
	if err == nil {
		t.Fatal("a container runs without a toolkit")
	}
	wantText(t, stderrOf(t, err), "toolkit missing at "+root, "fastmig install", "--root "+root)
	lab.MustCtr("container", "delete", "none")

	// The same folder with a CRIU that is too old for the kernel: its loader
	// is what the shim executes.
	good := os.Getenv("FASTMIG_ROOT")
	if good == "" {
		good = "/opt/fastmig"
	}
	must(t, os.CopyFS(root, os.DirFS(good)))
	loader := filepath.Join(root, "criu", "ld.so")
	must(t, os.Remove(loader))
	build := exec.CommandContext(lab.Context(), "go", "build", "-o", loader, "./testdata/oldcriu")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	source := startByCtr(t, lab)
	check := ticking(lab, t, source)
	_, err = lab.Ctr(lab.Context(), "container", "checkpoint", "--task", source.ID(), "fastmig.test/never:1")
	if err == nil {
		t.Fatal("a CRIU that always fails made a checkpoint")
	}
	wantText(t, stderrOf(t, err), "Unexpected rt vDSO area bounds", "fastmig install")
	check(source)
}
