//go:build linux

package plugin

import (
	"fmt"
	"sort"
	"strings"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fastmig/fastmig/shim"
)

// Annotations that users put on a container.
const (
	AnnotationMode           = "io.fastmig.mode"
	AnnotationTCP            = "io.fastmig.tcp"
	AnnotationCheckpointExit = "io.fastmig.checkpoint-exit"
	AnnotationStartup        = "io.fastmig.startup"
	AnnotationOnExit         = "io.fastmig.on-exit"
	AnnotationSupervise      = "io.fastmig.supervise"
	annotationPrefix         = "io.fastmig."
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

// Settings reads the annotations. One that begins like ours and is not ours is
// refused: a typing error must not be taken for a default.
func (Decoder) Settings(spec *specs.Spec) (shim.Settings, error) {
	s := shim.Settings{Mode: shim.ModeFastFreeze, TCP: shim.TCPClose}
	names := make([]string, 0, len(spec.Annotations))
	for name := range spec.Annotations {
		if strings.HasPrefix(name, annotationPrefix) {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	for _, name := range names {
		value := spec.Annotations[name]
		var err error
		switch name {
		case AnnotationMode:
			err = oneOf(&s.Mode, name, value, shim.ModeFastFreeze, shim.ModePlain)
		case AnnotationTCP:
			err = oneOf(&s.TCP, name, value, shim.TCPClose, shim.TCPKeep)
		case AnnotationCheckpointExit:
			var b string
			err = oneOf(&b, name, value, "true", "false")
			s.CheckpointExit = b == "true"
		// What this version does anyhow may be said; other values would promise
		// what it does not do.
		case AnnotationStartup:
			err = is(name, value, "scratch")
		case AnnotationOnExit:
			err = is(name, value, "tied")
		case AnnotationSupervise:
			err = is(name, value, "never")
		default:
			err = fmt.Errorf("annotation %s: there is none of this name: correct or remove it: %w", name, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return s, err
		}
	}
	// A sandbox only holds namespaces; there is no service to move.
	if spec.Annotations["io.kubernetes.cri.container-type"] == "sandbox" {
		s.Mode = shim.ModePlain
	}
	return s, nil
}

func oneOf[T ~string](to *T, name, value string, known ...T) error {
	for _, k := range known {
		if value == string(k) {
			*to = k
			return nil
		}
	}
	return fmt.Errorf("annotation %s=%q: known values are %v: %w", name, value, known, errdefs.ErrInvalidArgument)
}

func is(name, value, only string) error {
	var v string
	return oneOf(&v, name, value, only)
}
