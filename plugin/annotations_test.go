//go:build linux

package plugin

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fastmig/fastmig/shim"
	"github.com/fastmig/fastmig/shim/service"
)

// with is the default, changed.
func with(change func(*shim.Settings)) shim.Settings {
	s := defaults()
	change(&s)
	return s
}

func TestSettings(t *testing.T) {
	plain := with(func(s *shim.Settings) { s.Mode = shim.ModePlain })
	for _, tc := range []struct {
		annotations map[string]string
		want        shim.Settings
	}{
		{nil, shim.Settings{Mode: "fastfreeze", Settings: service.Settings{Startup: "scratch", Supervise: "auto", OnExit: "tied"}}},
		{map[string]string{"other.io/x": "y", "io.fastmigx": "z"}, defaults()},
		{map[string]string{AnnotationMode: "plain"}, plain},
		{map[string]string{AnnotationMode: "plain", AnnotationCheckpointExit: "true"}, with(func(s *shim.Settings) { s.Mode, s.CheckpointExit = "plain", true })},
		{map[string]string{AnnotationTCP: "keep"}, with(func(s *shim.Settings) { s.KeepTCP = true })},
		{map[string]string{AnnotationCheckpointExit: "true"}, with(func(s *shim.Settings) { s.CheckpointExit = true })},
		{map[string]string{AnnotationStartup: "standby"}, with(func(s *shim.Settings) { s.Startup = "standby" })},
		{map[string]string{AnnotationStartup: "restore", AnnotationImageURL: "node:web"}, with(func(s *shim.Settings) { s.Startup, s.ImageURL = "restore", "node:web" })},
		{map[string]string{AnnotationImageURL: "file:/a//b/"}, with(func(s *shim.Settings) { s.ImageURL = "file:/a/b" })},
		{map[string]string{AnnotationSupervise: "always"}, with(func(s *shim.Settings) { s.Supervise = "always" })},
		{map[string]string{AnnotationSupervise: "never"}, with(func(s *shim.Settings) { s.Supervise = "never" })},
		{map[string]string{AnnotationOnExit: "default"}, with(func(s *shim.Settings) { s.OnExit = "default" })},
		{map[string]string{AnnotationOnExit: "/opt/decide"}, with(func(s *shim.Settings) { s.OnExit = "/opt/decide" })},
		{map[string]string{AnnotationCheckpointInterval: "1s", AnnotationImageURL: "node:web"}, with(func(s *shim.Settings) { s.Interval, s.ImageURL = time.Second, "node:web" })},
		{map[string]string{AnnotationHTTP: "unix"}, defaults()},
		{map[string]string{AnnotationHTTP: ":7878"}, with(func(s *shim.Settings) { s.HTTPPort = 7878 })},
		{map[string]string{AnnotationHTTP: ":65535"}, with(func(s *shim.Settings) { s.HTTPPort = 65535 })},
		{map[string]string{
			AnnotationBeforeCheckpoint: "sh -c 'echo \"a b\"; true'", AnnotationAfterCheckpoint: `a\ b "c d"`,
			AnnotationBeforeRestore: "  ", AnnotationAfterRestore: "x ''", AnnotationHookTimeout: "2m",
		}, with(func(s *shim.Settings) {
			s.Hooks = service.Hooks{
				BeforeCheckpoint: []string{"sh", "-c", `echo "a b"; true`}, AfterCheckpoint: []string{"a b", "c d"},
				AfterRestore: []string{"x", ""}, Timeout: 2 * time.Minute,
			}
		})},
		{map[string]string{"io.kubernetes.cri.container-type": "sandbox"}, plain},
		{map[string]string{"io.kubernetes.cri.container-type": "sandbox", AnnotationHTTP: ":7878", AnnotationStartup: "standby", AnnotationMode: "fastfreeze"}, plain},
		{map[string]string{"io.kubernetes.cri.container-type": "container"}, defaults()},
		{map[string]string{
			AnnotationMode: "plain", AnnotationStartup: "scratch", AnnotationOnExit: "tied",
			AnnotationSupervise: "auto", AnnotationHTTP: "unix", AnnotationTCP: "close", AnnotationAfterRestore: "",
		}, plain},
	} {
		got, err := Decoder{}.Settings(&specs.Spec{Annotations: tc.annotations})
		if err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%v: %+v, %v", tc.annotations, got, err)
		}
	}
}

func TestSettingsRefused(t *testing.T) {
	for _, tc := range []struct {
		annotations map[string]string
		says        []string
	}{
		{map[string]string{AnnotationMode: "fast"}, []string{AnnotationMode, `"fast"`, "[fastfreeze plain]"}},
		{map[string]string{AnnotationCheckpointExit: "yes"}, []string{`"yes"`}},
		{map[string]string{"io.fastmig.mod": "plain"}, []string{"io.fastmig.mod", "none of this name"}},
		{map[string]string{"io.fastmig.hook.before": "x"}, []string{"io.fastmig.hook.before"}},
		{map[string]string{AnnotationStartup: "2"}, []string{"[scratch restore standby]"}},
		{map[string]string{AnnotationSupervise: ""}, []string{"[auto always never]"}},
		{map[string]string{AnnotationImageURL: ""}, []string{AnnotationImageURL, "empty"}},
		{map[string]string{AnnotationImageURL: "s3://x"}, []string{AnnotationImageURL, `"s3"`}},
		{map[string]string{AnnotationImageURL: "file:x"}, []string{"absolute"}},
		{map[string]string{AnnotationOnExit: "decide"}, []string{AnnotationOnExit, "absolute path"}},
		{map[string]string{AnnotationOnExit: "/opt/../decide"}, []string{"absolute path"}},
		{map[string]string{AnnotationOnExit: "/"}, []string{"absolute path"}},
		{map[string]string{AnnotationCheckpointInterval: "999ms", AnnotationImageURL: "node:web"}, []string{"at least 1s"}},
		{map[string]string{AnnotationCheckpointInterval: "60", AnnotationImageURL: "node:web"}, []string{"at least 1s"}},
		{map[string]string{AnnotationHookTimeout: "0s"}, []string{"at least 1ms"}},
		{map[string]string{AnnotationBeforeRestore: "sh -c 'x"}, []string{AnnotationBeforeRestore, "quote"}},
		{map[string]string{AnnotationAfterRestore: "a\x00b"}, []string{AnnotationAfterRestore}},
		{map[string]string{AnnotationHTTP: ":0"}, []string{"1 to 65535"}},
		{map[string]string{AnnotationHTTP: ":65536"}, []string{"1 to 65535"}},
		{map[string]string{AnnotationHTTP: ":+80"}, []string{"1 to 65535"}},
		{map[string]string{AnnotationHTTP: "7878"}, []string{"1 to 65535"}},
		{map[string]string{AnnotationHTTP: "0.0.0.0:80"}, []string{"1 to 65535"}},
		{map[string]string{AnnotationStartup: "restore"}, []string{AnnotationStartup, AnnotationImageURL}},
		{map[string]string{AnnotationCheckpointInterval: "1m"}, []string{AnnotationCheckpointInterval, AnnotationImageURL}},
		{map[string]string{AnnotationMode: "plain", AnnotationStartup: "standby"}, []string{AnnotationMode, AnnotationStartup}},
		{map[string]string{AnnotationMode: "plain", AnnotationSupervise: "always"}, []string{AnnotationMode, AnnotationSupervise}},
		{map[string]string{AnnotationMode: "plain", AnnotationImageURL: "node:web"}, []string{AnnotationMode, AnnotationImageURL}},
		{map[string]string{AnnotationMode: "plain", AnnotationOnExit: "default"}, []string{AnnotationMode, AnnotationOnExit}},
		{map[string]string{AnnotationMode: "plain", AnnotationTCP: "keep"}, []string{AnnotationMode, AnnotationTCP}},
		{map[string]string{AnnotationMode: "plain", AnnotationHTTP: ":80"}, []string{AnnotationMode, AnnotationHTTP}},
		{map[string]string{AnnotationMode: "plain", AnnotationAfterRestore: "x"}, []string{AnnotationMode, AnnotationAfterRestore}},
		{map[string]string{AnnotationMode: "plain", AnnotationHookTimeout: "1s"}, []string{AnnotationMode, AnnotationHookTimeout}},
		{map[string]string{"io.kubernetes.cri.container-type": "sandbox", AnnotationTCP: "perhaps"}, []string{AnnotationTCP}},
	} {
		_, err := Decoder{}.Settings(&specs.Spec{Annotations: tc.annotations})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", tc.annotations, err)
			continue
		}
		for _, part := range tc.says {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%v: %q is not in %q", tc.annotations, part, err)
			}
		}
	}
}

func TestUpdateOfSettings(t *testing.T) {
	old := with(func(s *shim.Settings) {
		s.Startup, s.ImageURL, s.HTTPPort, s.CheckpointExit = "standby", "node:old", 7878, true
		s.Hooks.AfterRestore = []string{"a"}
	})
	for _, tc := range []struct {
		annotations map[string]string
		change      func(*shim.Settings)
		changed     []string
	}{
		{nil, func(*shim.Settings) {}, nil},
		{map[string]string{"other.io/x": "y"}, func(*shim.Settings) {}, nil},
		{map[string]string{AnnotationStartup: "restore", AnnotationImageURL: "node:new"},
			func(s *shim.Settings) { s.Startup, s.ImageURL = "restore", "node:new" }, []string{AnnotationImageURL, AnnotationStartup}},
		{map[string]string{AnnotationStartup: "standby", AnnotationImageURL: "node:new"},
			func(s *shim.Settings) { s.ImageURL = "node:new" }, []string{AnnotationImageURL}},
		{map[string]string{AnnotationOnExit: "default", AnnotationSupervise: "never", AnnotationCheckpointInterval: "1m", AnnotationTCP: "keep"},
			func(s *shim.Settings) {
				s.OnExit, s.Supervise, s.Interval, s.KeepTCP = "default", "never", time.Minute, true
			}, []string{AnnotationCheckpointInterval, AnnotationOnExit, AnnotationSupervise, AnnotationTCP}},
		{map[string]string{AnnotationAfterRestore: "", AnnotationBeforeCheckpoint: "b c", AnnotationHookTimeout: "1s"},
			func(s *shim.Settings) {
				s.Hooks = service.Hooks{BeforeCheckpoint: []string{"b", "c"}, Timeout: time.Second}
			}, []string{AnnotationAfterRestore, AnnotationBeforeCheckpoint, AnnotationHookTimeout}},
		{map[string]string{AnnotationMode: "fastfreeze", AnnotationHTTP: ":7878", AnnotationCheckpointExit: "true", AnnotationAfterRestore: "a"},
			func(*shim.Settings) {}, nil},
	} {
		want := old
		tc.change(&want)
		got, changed, err := Decoder{}.Update(old, tc.annotations)
		slices.Sort(tc.changed)
		if err != nil || !reflect.DeepEqual(got, want) || !slices.Equal(changed, tc.changed) {
			t.Errorf("%v: %+v, %v, %v", tc.annotations, got, changed, err)
		}
	}
	for _, tc := range []struct {
		old         shim.Settings
		annotations map[string]string
		is          func(error) bool
	}{
		{old, map[string]string{AnnotationMode: "plain"}, errdefs.IsFailedPrecondition},
		{old, map[string]string{AnnotationHTTP: "unix"}, errdefs.IsFailedPrecondition},
		{old, map[string]string{AnnotationHTTP: ":80"}, errdefs.IsFailedPrecondition},
		{old, map[string]string{AnnotationCheckpointExit: "false", AnnotationStartup: "scratch"}, errdefs.IsFailedPrecondition},
		{old, map[string]string{AnnotationStartup: "x"}, errdefs.IsInvalidArgument},
		{old, map[string]string{"io.fastmig.x": "y"}, errdefs.IsInvalidArgument},
		{defaults(), map[string]string{AnnotationStartup: "restore"}, errdefs.IsInvalidArgument},
		{with(func(s *shim.Settings) { s.Mode = shim.ModePlain }), map[string]string{AnnotationOnExit: "default"}, errdefs.IsInvalidArgument},
	} {
		got, changed, err := Decoder{}.Update(tc.old, tc.annotations)
		if !tc.is(err) || !reflect.DeepEqual(got, tc.old) || changed != nil {
			t.Errorf("%v: %+v, %v, %v", tc.annotations, got, changed, err)
		}
	}
}
