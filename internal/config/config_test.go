package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaults(t *testing.T) {
	for name, path := range map[string]string{
		"no file":    filepath.Join(t.TempDir(), "none.toml"),
		"no folder":  filepath.Join(t.TempDir(), "none", "config.toml"),
		"empty file": write(t, ""),
	} {
		c, err := Load(path)
		if err != nil || !reflect.DeepEqual(c, Default()) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	if err := Default().validate(); err != nil {
		t.Error(err)
	}
}

// The commented file has every key, with its default.
func TestExample(t *testing.T) {
	const path = "../../contrib/fastmig/config.toml"
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	c.Deciders.Allow = nil
	if !reflect.DeepEqual(c, Default()) {
		t.Errorf("it is not the default: %+v", c)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all, err := toml.Marshal(Default())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^(\w+) =`).FindAllStringSubmatch(string(all), -1) {
		if !strings.Contains(string(text), "\n"+m[1]+" = ") {
			t.Errorf("%s is not in it", m[1])
		}
	}
}

func TestAll(t *testing.T) {
	c, err := Load(write(t, `
checkpoints = "/srv/ck"
keep = 3
store_timeout = "2m"
hook_timeout = "1s"
[deciders]
allow = ["/opt/a", "/opt/b"]
timeout = "7s"
[supervisor]
heartbeat = "3s"
heartbeat_timeout = "4s"
backoff = "1ms"
backoff_max = "1m30s"
restarts = 9
healthy = "1h"
`))
	want := &Config{
		Checkpoints:  "/srv/ck",
		Keep:         3,
		StoreTimeout: Duration(2 * time.Minute),
		HookTimeout:  Duration(time.Second),
		Deciders:     Deciders{Allow: []string{"/opt/a", "/opt/b"}, Timeout: Duration(7 * time.Second)},
		Supervisor: Supervisor{
			Heartbeat:        Duration(3 * time.Second),
			HeartbeatTimeout: Duration(4 * time.Second),
			Backoff:          Duration(time.Millisecond),
			BackoffMax:       Duration(90 * time.Second),
			Restarts:         9,
			Healthy:          Duration(time.Hour),
		},
	}
	if err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestRefused(t *testing.T) {
	for text, says := range map[string]string{
		"keeep = 2":                           "line 1: there is no key keeep",
		"\n[supervisor]\nbackof = \"1s\"":     "line 3: there is no key supervisor.backof",
		"keep = 1\n[other]\nx = 1":            "other",
		"keep = \"two\"":                      "line 1: keep",
		"keep = 0":                            "keep = 0",
		"\nstore_timeout = \"1 minute\"":      "line 2: store_timeout",
		"hook_timeout = 30":                   `hook_timeout = "30ns"`,
		"store_timeout = \"0s\"":              "store_timeout",
		"[supervisor]\nheartbeat = \"-1s\"":   "supervisor.heartbeat",
		"[supervisor]\nbackoff_max = \"1ms\"": "supervisor.backoff_max",
		"[supervisor]\nrestarts = 0":          "supervisor.restarts",
		"checkpoints = \"ck\"":                `checkpoints: "ck"`,
		"checkpoints = \"/a/../b\"":           "checkpoints",
		"checkpoints = \"/a\\u0000b\"":        "checkpoints",
		"[deciders]\nallow = [\"/a\", \"b\"]": `deciders.allow: "b"`,
		"[deciders]\nallow = [\"/a//b\"]":     "deciders.allow",
		"[deciders]\nallow = \"/a\"":          "line 2: deciders.allow",
		"keep = ":                             "line 1",
		"keep = 1\nkeep = 2":                  "keep",
		"\xff":                                "line 1",
	} {
		path := write(t, text)
		c, err := Load(path)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %+v, %v", text, c, err)
		}
	}
}

func TestWhatIsNoFile(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "config.toml")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{t.TempDir(), pipe, write(t, strings.Repeat("#", maxSize+1))} {
		if _, err := Load(path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
