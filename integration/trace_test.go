package integration_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	imagesapi "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// TestNoTrace checks that a container's read-write layer holds what the stock
// shim's would, and nothing of ours.
func TestNoTrace(t *testing.T) {
	runSuite(t, []images.Image{images.Busybox}, []labTest{
		{"run, checkpoint and restore", testNoTrace},
		{"nerdctl commit", testCommit},
		{"environment of an exec", testExecEnvironment},
	})
}

// ours finds names of our parts.
var ours = regexp.MustCompile(`(?i)fastfreeze|fastmig|criu|toolkit|kdat`)

// upperFiles lists the read-write layer of the container, from outside.
func upperFiles(t *testing.T, lab *harness.Lab, c *harness.Container) []string {
	t.Helper()
	info, err := c.Info(lab.Context())
	check(t, err)
	mounts, err := lab.Client().SnapshotService(info.Snapshotter).Mounts(lab.Context(), info.SnapshotKey)
	check(t, err)
	upper := upperDir(mounts)
	if upper == "" {
		t.Fatalf("no upper folder in %v", mounts)
	}
	var list []string
	check(t, filepath.WalkDir(upper, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == upper {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		list = append(list, strings.TrimPrefix(path, upper)+" "+info.Mode().String())
		return nil
	}))
	return list
}

func upperDir(mounts []mount.Mount) string {
	for _, m := range mounts {
		for _, o := range m.Options {
			if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
				return dir
			}
		}
	}
	return ""
}

// layerFiles lists the container's read-write layer by containerd's diff.
func layerFiles(t *testing.T, lab *harness.Lab, c *harness.Container) []string {
	t.Helper()
	ctx, done, err := lab.Client().WithLease(lab.Context())
	check(t, err)
	defer func() { _ = done(ctx) }()
	info, err := c.Info(ctx)
	check(t, err)
	layer, err := rootfs.CreateDiff(ctx, info.SnapshotKey, lab.Client().SnapshotService(info.Snapshotter), lab.Client().DiffService())
	check(t, err)
	return tarNames(ctx, t, lab, layer)
}

// tarNames lists a layer.
func tarNames(ctx context.Context, t *testing.T, lab *harness.Lab, layer ocispec.Descriptor) []string {
	t.Helper()
	blob, err := content.ReadBlob(ctx, lab.Client().ContentStore(), layer)
	check(t, err)
	stream, err := compression.DecompressStream(strings.NewReader(string(blob)))
	check(t, err)
	defer stream.Close()
	var names []string
	for r := tar.NewReader(stream); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(names)
			return names
		}
		check(t, err)
		names = append(names, h.Name)
	}
}

const marked = "echo data >/data; echo ready; while :; do sleep 0.1; done"

func testNoTrace(t *testing.T, lab *harness.Lab) {
	ctx := lab.Context()
	stock := lab.MustRun(asStock(t, lab, script(marked)))
	waitText(t, lab, stock.Output, "ready")
	lab.MustExec(stock, "true")
	wantUpper, wantLayer := upperFiles(t, lab, stock), layerFiles(t, lab, stock)

	compare := func(when string, c *harness.Container) {
		t.Helper()
		upper, layer := upperFiles(t, lab, c), layerFiles(t, lab, c)
		if diff := diffLines(upper, wantUpper); diff != "" {
			t.Errorf("%s the read-write layer differs from the stock shim's (+ ours, - stock):\n%s", when, diff)
		}
		if diff := diffLines(layer, wantLayer); diff != "" {
			t.Errorf("%s the layer's diff differs from the stock shim's (+ ours, - stock):\n%s", when, diff)
		}
		for _, name := range append(upper, layer...) {
			if ours.MatchString(name) {
				t.Errorf("%s there is %s", when, name)
			}
		}
	}
	c := lab.MustRun(script(marked))
	waitText(t, lab, c.Output, "ready")
	compare("running,", c)
	lab.MustExec(c, "true")
	compare("after an exec", c)
	check(t, c.Checkpoint(ctx, "fastmig.test/trace:1", false))
	compare("after a checkpoint", c)
	check(t, c.Checkpoint(ctx, "fastmig.test/trace:2", true))
	exitOf(t, lab, c)
	compare("after a checkpoint that ended it", c)
	check(t, c.Remove(ctx))
	restored := lab.MustRestore(harness.RestoreOptions{Ref: "fastmig.test/trace:2"})
	lab.MustExec(restored, "true")
	compare("restored,", restored)
	check(t, restored.Checkpoint(ctx, "fastmig.test/trace:3", false))
	compare("restored and checkpointed again,", restored)

	// Nor is there anything in what memory file systems hold.
	for _, dir := range []string{"/run", "/dev/shm", "/tmp", "/dev"} {
		for _, name := range strings.Fields(lab.MustExec(restored, "find", dir)) {
			if ours.MatchString(name) {
				t.Errorf("in the restored container there is %s", name)
			}
		}
	}
}

func testCommit(t *testing.T, lab *harness.Lab) {
	name := harness.NewID("commit")
	lab.MustNerdctl("run", "-d", "--name", name, "--network", "none", images.Busybox.Ref(), "sh", "-c", marked)
	t.Cleanup(func() {
		if _, err := lab.Nerdctl(context.WithoutCancel(lab.Context()), "rm", "-f", name); err != nil {
			t.Error(err)
		}
	})
	lab.WaitFor("the container to be ready", func(ctx context.Context) (bool, error) {
		out, err := lab.Nerdctl(ctx, "logs", name)
		return strings.Contains(out, "ready"), err
	})
	ref := "fastmig.test/" + name + ":1"
	lab.MustNerdctl("commit", name, ref)
	equal(t, "the committed file", lab.MustNerdctl("run", "--rm", "--network", "none", ref, "cat", "/data"), "data\n")
	image, err := lab.Client().GetImage(lab.Context(), ref)
	check(t, err)
	manifest, err := imageManifest(lab, image.Target())
	check(t, err)
	names := tarNames(lab.Context(), t, lab, manifest.Layers[len(manifest.Layers)-1])
	if !slices.Contains(names, "data") {
		t.Errorf("the layer holds only %v", names)
	}
	for _, n := range names {
		if ours.MatchString(n) || strings.HasPrefix(n, "proc/") || strings.HasPrefix(n, "run/") {
			t.Errorf("the layer holds %s", n)
		}
	}
	config, err := content.ReadBlob(lab.Context(), lab.Client().ContentStore(), manifest.Config)
	check(t, err)
	if found := ours.FindString(strings.ReplaceAll(string(config), "fastmig.test/", "")); found != "" {
		t.Errorf("the image's configuration mentions %q", found)
	}
}

// An exec's environment and its place are what they are under the stock shim.
func testExecEnvironment(t *testing.T, lab *harness.Lab) {
	look := func(c *harness.Container) []string {
		out := lab.MustExec(c, "sh", "-c",
			"env | sort; uname -n; pwd; id; cat /proc/self/cgroup /proc/self/mountinfo /proc/self/limits /proc/self/uid_map; grep -E 'Cap|NoNew|Seccomp|SigBlk|SigIgn|SigCgt' /proc/self/status")
		var lines []string
		for _, line := range strings.Split(strings.ReplaceAll(out, c.ID(), "ID"), "\n") {
			if strings.Contains(line, " - ") {
				line = mountLine(line)
			}
			lines = append(lines, line)
		}
		return lines
	}
	want := look(lab.MustRun(asStock(t, lab, sleeper())))
	c := lab.MustRun(sleeper())
	if diff := diffLines(look(c), want); diff != "" {
		t.Errorf("an exec differs from the stock shim's (+ ours, - stock):\n%s", diff)
	}
	check(t, c.Checkpoint(lab.Context(), "fastmig.test/trace:exec", false))
	restored := lab.MustRestore(harness.RestoreOptions{Ref: "fastmig.test/trace:exec"})
	if diff := diffLines(look(restored), want); diff != "" {
		t.Errorf("an exec in a restored container differs from the stock shim's (+ ours, - stock):\n%s", diff)
	}
}

// imageManifest reads the manifest of an image for this machine.
func imageManifest(lab *harness.Lab, target ocispec.Descriptor) (ocispec.Manifest, error) {
	m, err := imagesapi.Manifest(lab.Context(), lab.Client().ContentStore(), target, platforms.Default())
	if err != nil {
		return m, fmt.Errorf("read the image's manifest: %w", err)
	}
	return m, nil
}
