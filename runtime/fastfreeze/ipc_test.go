//go:build linux

package fastfreeze

import (
	"os"
	"path/filepath"
	"testing"
)

func TestOwnIPC(t *testing.T) {
	for name, test := range map[string]struct {
		spec string
		own  bool
		bad  bool
	}{
		"own":            {spec: `{"linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}]}}`, own: true},
		"another's":      {spec: `{"linux": {"namespaces": [{"type": "ipc", "path": "/proc/7/ns/ipc"}]}}`},
		"the host's":     {spec: `{"linux": {"namespaces": [{"type": "pid"}]}}`},
		"no namespaces":  {spec: `{}`},
		"not a spec":     {spec: `{`, bad: true},
		"no spec at all": {bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			bundle := t.TempDir()
			if test.spec != "" {
				if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(test.spec), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			own, err := ownIPC(bundle)
			if own != test.own || (err != nil) != test.bad {
				t.Errorf("got %v, %v", own, err)
			}
		})
	}
}
