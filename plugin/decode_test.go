//go:build linux

package plugin

import (
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
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
