//go:build linux

package fastfreeze

import (
	"os"
	"path/filepath"
	"testing"
)

func TestOwnSharing(t *testing.T) {
	const tmpfs, bind = `{"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}`, `{"destination": "/dev/shm/", "type": "bind", "options": ["rbind"]}`
	for name, test := range map[string]struct {
		spec string
		own  sharing
		bad  bool
	}{
		"own":                  {spec: `{"linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}]}}`, own: sharing{ipc: true}},
		"another's":            {spec: `{"linux": {"namespaces": [{"type": "ipc", "path": "/proc/7/ns/ipc"}]}}`},
		"the host's":           {spec: `{"linux": {"namespaces": [{"type": "pid"}]}}`},
		"own /dev/shm":         {spec: `{"mounts": [` + tmpfs + `]}`, own: sharing{shm: true}},
		"another's /dev/shm":   {spec: `{"mounts": [` + tmpfs + `, ` + bind + `]}`},
		"no /dev/shm":          {spec: `{"mounts": [{"destination": "/dev", "type": "tmpfs"}]}`},
		"a /dev/shm below":     {spec: `{"mounts": [` + tmpfs + `, {"destination": "/dev", "type": "bind"}]}`},
		"a bind called tmpfs":  {spec: `{"mounts": [{"destination": "/dev/shm", "type": "tmpfs", "options": ["bind"]}]}`},
		"no namespaces at all": {spec: `{}`},
		"not a spec":           {spec: `{`, bad: true},
		"no spec at all":       {bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			bundle := t.TempDir()
			if test.spec != "" {
				if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(test.spec), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			own, err := ownSharing(bundle)
			if own != test.own || (err != nil) != test.bad {
				t.Errorf("got %+v, %v", own, err)
			}
		})
	}
}
