package images

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/fastmig/fastmig/integration/internal/checkout"
)

// pathEnv is what Debian gives its users.
const pathEnv = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ServicePort is where the test services of Python, Node, Java and GoScratch
// listen; services/goservice/main.go tells their protocol.
const ServicePort = 7000

// shell is what every image out of Debian's packages has besides its service,
// so that tests can look into it.
var shell = []string{"bash", "coreutils", "dash", "libc-bin"}

func config(cmd ...string) ocispec.ImageConfig {
	return ocispec.ImageConfig{Env: []string{pathEnv, "LANG=C.UTF-8"}, Cmd: cmd, WorkingDir: "/"}
}

func asUser(c ocispec.ImageConfig, name string, env ...string) ocispec.ImageConfig {
	c.User = name
	c.Env = append(c.Env, env...)
	return c
}

// Where the images keep the helper scripts.
const (
	Ask  = "/srv/ask.sh"
	Tick = "/srv/tick.sh"
	Tree = "/srv/tree.sh"
)

var (
	// Busybox holds Debian's static busybox and nothing of a libc.
	Busybox = Image{
		Name:     "busybox",
		packages: []string{"busybox-static"},
		files:    map[string]string{Tick: "tick.sh"},
		config:   config("sh"),
		finish:   onlyBusybox,
	}
	// Shell is a small Debian with the usual tools.
	Shell = Image{
		Name:     "shell",
		packages: append([]string{"procps", "util-linux", "findutils", "grep", "sed", "iproute2", "strace"}, shell...),
		files:    map[string]string{Tick: "tick.sh", Tree: "tree.sh", Ask: "ask.sh"},
		config:   config("bash"),
	}
	// Redis runs redis-server without persistence.
	Redis = Image{
		Name:     "redis",
		packages: append([]string{"redis-server", "redis-tools"}, shell...),
		users:    []user{{"redis", 101, "/var/lib/redis"}},
		config: asUser(config("redis-server", "--save", "", "--appendonly", "no", "--dir", "/var/lib/redis"),
			"redis"),
	}
	// Nginx runs a master and two workers.
	Nginx = Image{
		Name:     "nginx",
		packages: append([]string{"nginx"}, shell...),
		users:    []user{{"www-data", 33, "/var/www"}},
		files:    map[string]string{"/srv/nginx.conf": "nginx.conf", Ask: "ask.sh"},
		config:   config("nginx", "-c", "/srv/nginx.conf"),
	}
	// Memcached runs four threads.
	Memcached = Image{
		Name:     "memcached",
		packages: append([]string{"memcached"}, shell...),
		users:    []user{{"memcache", 102, "/nonexistent"}},
		files:    map[string]string{Ask: "ask.sh"},
		config:   asUser(config("memcached", "-t", "4", "-m", "64"), "memcache"),
	}
	// Postgres makes its database at the first run.
	Postgres = Image{
		Name:     "postgres",
		packages: append([]string{"postgresql"}, shell...),
		users:    []user{{"postgres", 103, "/var/lib/postgresql"}},
		files:    map[string]string{"/srv/postgres.sh": "postgres.sh"},
		config:   asUser(config("/srv/postgres.sh"), "postgres", "PGDATA=/var/lib/postgresql/data", "PGHOST=/tmp"),
	}
	// Python runs the test service with threads.
	Python = Image{
		Name:     "python",
		packages: append([]string{"python3"}, shell...),
		files:    map[string]string{"/srv/service.py": "service.py", Ask: "ask.sh"},
		config:   config("python3", "/srv/service.py"),
	}
	// Node runs the test service on Node.js.
	Node = Image{
		Name:     "node",
		packages: append([]string{"nodejs"}, shell...),
		files:    map[string]string{"/srv/service.js": "service.js", Ask: "ask.sh"},
		config:   config("node", "/srv/service.js"),
	}
	// Java runs the test service, compiled by the launcher at its start.
	Java = Image{
		Name:     "java",
		packages: append([]string{"default-jdk-headless"}, shell...),
		files:    map[string]string{"/srv/Service.java": "Service.java", Ask: "ask.sh"},
		config:   config("java", "-Xmx128m", "/srv/Service.java"),
		finish:   linkJava,
	}
	// Sysbench measures what a container gets of the machine.
	Sysbench = Image{
		Name:     "sysbench",
		packages: append([]string{"sysbench", "iperf3"}, shell...),
		config:   config("bash"),
	}
	// GoScratch holds one static program, the test service.
	GoScratch = Image{
		Name:   "goscratch",
		config: ocispec.ImageConfig{Cmd: []string{"/service"}},
		finish: buildService,
	}
)

// All are the package's images.
var All = []Image{Busybox, Shell, Redis, Nginx, Memcached, Postgres, Python, Node, Java, Sysbench, GoScratch}

// onlyBusybox replaces the root's packages by busybox and links to it.
func onlyBusybox(ctx context.Context, root string) error {
	busybox := filepath.Join(root, "usr/bin/busybox")
	out, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("ask busybox for its applets: %w", err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		err := os.Symlink("busybox", filepath.Join(root, "usr/bin", lines.Text()))
		if err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

// linkJava makes the command that Debian's alternatives would make.
func linkJava(_ context.Context, root string) error {
	found, err := filepath.Glob(filepath.Join(root, "usr/lib/jvm/*/bin/javac"))
	if err != nil || len(found) == 0 {
		return fmt.Errorf("no Java compiler in the packages: %w", os.ErrNotExist)
	}
	home, err := filepath.Rel(root, filepath.Dir(found[0]))
	if err != nil {
		return err
	}
	return os.Symlink(filepath.Join("/", home, "java"), filepath.Join(root, "usr/bin/java"))
}

func buildService(ctx context.Context, root string) error {
	src, err := checkout.Root()
	if err != nil {
		return err
	}
	return command(ctx, filepath.Join(src, "integration"), "go", "build", "-trimpath", "-o", filepath.Join(root, "service"), "./images/services/goservice")
}
