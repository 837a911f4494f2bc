//go:build linux

package plugin

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fastmig/fastmig/shim"
)

func marshal(t *testing.T, v any) *anypb.Any {
	t.Helper()
	a, err := typeurl.MarshalAnyToProto(v)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestOptions(t *testing.T) {
	for _, tc := range []struct {
		name    string
		any     *anypb.Any
		root    string
		systemd bool
	}{
		{"none", nil, "", false},
		{"runc's", marshal(t, &options.Options{Root: "/r", SystemdCgroup: true}), "/r", true},
		{"generic", marshal(t, &runtimeoptions.Options{ConfigBody: []byte("Root = \"/g\"\nSystemdCgroup = true\n")}), "/g", true},
		{"generic, empty", marshal(t, &runtimeoptions.Options{TypeUrl: "io.containerd.fastmig.v2"}), "", false},
	} {
		o, err := Decoder{}.Options(tc.any)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if o.Root != tc.root || o.SystemdCgroup != tc.systemd {
			t.Errorf("%s: %+v", tc.name, o)
		}
	}
	for name, any := range map[string]*anypb.Any{
		"another message":   marshal(t, &options.ProcessDetails{ExecID: "x"}),
		"an unknown type":   {TypeUrl: "no/such.Type", Value: []byte{1}},
		"bytes of no sense": {TypeUrl: marshal(t, &options.Options{}).TypeUrl, Value: []byte{0xff}},
		"broken TOML":       marshal(t, &runtimeoptions.Options{ConfigBody: []byte("Root = ")}),
	} {
		if _, err := (Decoder{}).Options(any); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSettings(t *testing.T) {
	defaults := shim.Settings{Mode: shim.ModeFastFreeze, TCP: shim.TCPClose}
	for _, tc := range []struct {
		annotations map[string]string
		want        shim.Settings
		refused     string // what the error must say
	}{
		{nil, defaults, ""},
		{map[string]string{"other.io/x": "y"}, defaults, ""},
		{map[string]string{AnnotationMode: "plain"}, shim.Settings{Mode: shim.ModePlain, TCP: shim.TCPClose}, ""},
		{map[string]string{AnnotationTCP: "keep"}, shim.Settings{Mode: shim.ModeFastFreeze, TCP: shim.TCPKeep}, ""},
		{map[string]string{AnnotationCheckpointExit: "true"}, shim.Settings{Mode: shim.ModeFastFreeze, TCP: shim.TCPClose, CheckpointExit: true}, ""},
		{map[string]string{"io.kubernetes.cri.container-type": "sandbox"}, shim.Settings{Mode: shim.ModePlain, TCP: shim.TCPClose}, ""},
		{map[string]string{"io.kubernetes.cri.container-type": "container"}, defaults, ""},
		{map[string]string{AnnotationStartup: "scratch", AnnotationOnExit: "tied", AnnotationSupervise: "never"}, defaults, ""},
		{map[string]string{AnnotationStartup: "standby"}, defaults, `"standby": known values are [scratch]`},
		{map[string]string{AnnotationMode: "fast"}, defaults, `"fast"`},
		{map[string]string{AnnotationCheckpointExit: "yes"}, defaults, `"yes"`},
		{map[string]string{"io.fastmig.mod": "plain"}, defaults, "io.fastmig.mod"},
	} {
		got, err := Decoder{}.Settings(&specs.Spec{Annotations: tc.annotations})
		if tc.refused != "" {
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.refused) {
				t.Errorf("%v: %v", tc.annotations, err)
			}
			continue
		}
		if err != nil || got != tc.want {
			t.Errorf("%v: %+v, %v", tc.annotations, got, err)
		}
	}
}
