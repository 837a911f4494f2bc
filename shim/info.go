//go:build linux

package shim

import (
	"fmt"
	"io"
	"os/exec"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Version of the shim; set by the build.
var Version = "0.1.0"

func runtimeInfo(name string, decoder Decoder, optionsR io.Reader) (*types.RuntimeInfo, error) {
	info := &types.RuntimeInfo{
		Name:    name,
		Version: &types.RuntimeVersion{Version: Version},
	}
	raw, err := readOptionsAny(optionsR)
	if err != nil {
		return nil, err
	}
	if raw != nil {
		opts, err := decoder.Options(raw)
		if err != nil {
			return nil, err
		}
		if opts.BinaryName != "" {
			if _, err := exec.LookPath(opts.BinaryName); err != nil {
				return nil, fmt.Errorf("failed to look up the path of %q: %w", opts.BinaryName, err)
			}
		}
		info.Options = raw
	}
	if info.Features, err = typeurl.MarshalAnyToProto(runtimeFeatures()); err != nil {
		return nil, fmt.Errorf("failed to marshal the features: %w", err)
	}
	return info, nil
}

func readOptionsAny(r io.Reader) (*anypb.Any, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read the runtime options: %w", err)
	}
	if len(data) == 0 {
		return nil, nil
	}
	var opts anypb.Any
	if err := proto.Unmarshal(data, &opts); err != nil {
		return nil, fmt.Errorf("read the runtime options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return &opts, nil
}

// runtimeFeatures are those of libcontainer as it is built into the shim
// (runtime-spec, features.md).
func runtimeFeatures() *features.Features {
	yes := true
	f := &features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		Annotations: map[string]string{
			"org.opencontainers.runc.checkpoint.enabled": "true",
		},
		Hooks:        configs.KnownHookNames(),
		MountOptions: specconv.KnownMountOptions(),
		Linux: &features.Linux{
			Namespaces:   specconv.KnownNamespaces(),
			Capabilities: capabilities.KnownCapabilities(),
			Cgroup: &features.Cgroup{
				V1: &yes, V2: &yes, Systemd: &yes, SystemdUser: &yes, Rdma: &yes,
			},
			Apparmor: &features.Apparmor{Enabled: &yes},
			Selinux:  &features.Selinux{Enabled: &yes},
			IntelRdt: &features.IntelRdt{Enabled: &yes, Schemata: &yes, Monitoring: &yes},
			MemoryPolicy: &features.MemoryPolicy{
				Modes: specconv.KnownMemoryPolicyModes(),
				Flags: specconv.KnownMemoryPolicyFlags(),
			},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
			NetDevices:      &features.NetDevices{Enabled: &yes},
		},
		PotentiallyUnsafeConfigAnnotations: []string{
			"bundle",
			"org.systemd.property.",
			"org.criu.config",
			"io.fastmig.",
		},
	}
	if seccomp.Enabled {
		f.Linux.Seccomp = &features.Seccomp{
			Enabled:        &yes,
			Actions:        seccomp.KnownActions(),
			Operators:      seccomp.KnownOperators(),
			Archs:          seccomp.KnownArchs(),
			KnownFlags:     seccomp.KnownFlags(),
			SupportedFlags: seccomp.SupportedFlags(),
		}
	}
	return f
}
