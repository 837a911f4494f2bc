//go:build linux

package plugin

import (
	"fmt"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fastmig/fastmig/shim"
)

// Decoder reads the options and annotations of the runtime.
type Decoder struct{}

var _ shim.Decoder = Decoder{}

// Options takes runc's Options, the generic runtime options (whose body is
// TOML with the same names, as in containerd's CRI configuration), or none.
func (Decoder) Options(any *anypb.Any) (*options.Options, error) {
	if len(any.GetValue()) == 0 {
		return &options.Options{}, nil
	}
	v, err := typeurl.UnmarshalAny(any)
	if err != nil {
		return nil, fmt.Errorf("read the runtime options %s: %w: %w", any.GetTypeUrl(), err, errdefs.ErrInvalidArgument)
	}
	switch o := v.(type) {
	case *options.Options:
		return o, nil
	case *runtimeoptions.Options:
		return generic(o)
	default:
		return nil, fmt.Errorf("runtime options of type %s: want runc's Options or the generic ones: %w", any.GetTypeUrl(), errdefs.ErrInvalidArgument)
	}
}

// body mirrors runc's options by the names that CRI's configuration uses.
type body struct {
	NoPivotRoot   bool   `toml:"NoPivotRoot"`
	NoNewKeyring  bool   `toml:"NoNewKeyring"`
	ShimCgroup    string `toml:"ShimCgroup"`
	IoUid         uint32 `toml:"IoUid"`
	IoGid         uint32 `toml:"IoGid"`
	BinaryName    string `toml:"BinaryName"`
	Root          string `toml:"Root"`
	SystemdCgroup bool   `toml:"SystemdCgroup"`
	CriuImagePath string `toml:"CriuImagePath"`
	CriuWorkPath  string `toml:"CriuWorkPath"`
}

func generic(o *runtimeoptions.Options) (*options.Options, error) {
	var b body
	if err := toml.Unmarshal(o.ConfigBody, &b); err != nil {
		return nil, fmt.Errorf("read the runtime options' TOML: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return &options.Options{
		NoPivotRoot:   b.NoPivotRoot,
		NoNewKeyring:  b.NoNewKeyring,
		ShimCgroup:    b.ShimCgroup,
		IoUid:         b.IoUid,
		IoGid:         b.IoGid,
		BinaryName:    b.BinaryName,
		Root:          b.Root,
		SystemdCgroup: b.SystemdCgroup,
		CriuImagePath: b.CriuImagePath,
		CriuWorkPath:  b.CriuWorkPath,
	}, nil
}
