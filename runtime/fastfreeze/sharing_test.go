//go:build linux

package fastfreeze

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fastmig/fastmig/runtime/image"
)

func TestOwnIPC(t *testing.T) {
	for name, test := range map[string]struct {
		spec specs.Spec
		own  bool
	}{
		"own":           {specs.Spec{Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}}}}, true},
		"another's":     {specs.Spec{Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.IPCNamespace, Path: "/proc/7/ns/ipc"}}}}, false},
		"the host's":    {specs.Spec{Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}}}}, false},
		"none to speak": {specs.Spec{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if own := OwnIPC(&test.spec); own != test.own {
				t.Errorf("got %v", own)
			}
		})
	}
}

func TestOwnTmpfs(t *testing.T) {
	tmpfs := func(dest string, options ...string) specs.Mount {
		return specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: options}
	}
	bind := func(dest string) specs.Mount {
		return specs.Mount{Destination: dest, Type: "bind", Source: "/x", Options: []string{"rbind"}}
	}
	for name, test := range map[string]struct {
		mounts []specs.Mount
		own    []string
	}{
		"ctr's":                  {[]specs.Mount{tmpfs("/dev"), tmpfs("/dev/shm", "nosuid"), bind("/etc/hosts"), tmpfs("/run")}, []string{"/dev/shm", "/run"}},
		"another's over it":      {[]specs.Mount{tmpfs("/dev/shm"), bind("/dev/shm/")}, nil},
		"another's above it":     {[]specs.Mount{tmpfs("/dev/shm"), bind("/dev")}, nil},
		"over another's":         {[]specs.Mount{bind("/run"), tmpfs("/run/x/../lock")}, []string{"/run/lock"}},
		"another's below":        {[]specs.Mount{tmpfs("/run"), bind("/run/secrets")}, []string{"/run"}},
		"a like name":            {[]specs.Mount{tmpfs("/run"), bind("/runner")}, []string{"/run"}},
		"twice":                  {[]specs.Mount{tmpfs("/run"), tmpfs("/run")}, []string{"/run"}},
		"one below another":      {[]specs.Mount{tmpfs("/run"), tmpfs("/run/lock")}, []string{"/run", "/run/lock"}},
		"a bind called tmpfs":    {[]specs.Mount{tmpfs("/run", "bind")}, nil},
		"read-only":              {[]specs.Mount{tmpfs("/run", "ro")}, nil},
		"everything covered":     {[]specs.Mount{tmpfs("/run"), bind("/")}, nil},
		"a path without a slash": {[]specs.Mount{tmpfs("run")}, []string{"/run"}},
		"no mounts":              {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if own := OwnTmpfs(&specs.Spec{Mounts: test.mounts}); !slices.Equal(own, test.own) {
				t.Errorf("got %q, want %q", own, test.own)
			}
		})
	}
}

func TestElsewhere(t *testing.T) {
	files := []image.FileCheck{{Path: "/run/pid"}, {Path: "/runner"}, {Path: "/dev/shm/x/y"}, {Path: "/lib/x"}}
	got := elsewhere(files, []string{"/run", "/dev/shm"})
	if want := []image.FileCheck{{Path: "/runner"}, {Path: "/lib/x"}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A mount point is where the container's links lead to.
func TestTmpfsIsResolved(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+"/run", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir+"/run", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/self/cwd", dir+"/magic"); err != nil {
		t.Fatal(err)
	}
	e := &Engine{pid: os.Getpid(), cfg: Config{Tmpfs: []string{dir + "/link", dir + "/run", dir + "/none", dir + "/magic"}}}
	got, err := e.tmpfs()
	if want := []string{dir + "/run"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}
