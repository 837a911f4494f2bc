//go:build linux

package plugin

import (
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/kballard/go-shellquote"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fastmig/fastmig/runtime/store"
	"github.com/fastmig/fastmig/shim"
	"github.com/fastmig/fastmig/shim/api"
	"github.com/fastmig/fastmig/shim/service"
)

// Annotations that users put on a container.
const (
	AnnotationMode               = "io.fastmig.mode"
	AnnotationStartup            = "io.fastmig.startup"
	AnnotationSupervise          = "io.fastmig.supervise"
	AnnotationImageURL           = "io.fastmig.image-url"
	AnnotationOnExit             = "io.fastmig.on-exit"
	AnnotationCheckpointInterval = "io.fastmig.checkpoint-interval"
	AnnotationCheckpointExit     = "io.fastmig.checkpoint-exit"
	AnnotationTCP                = "io.fastmig.tcp"
	AnnotationHTTP               = "io.fastmig.http"
	AnnotationBeforeCheckpoint   = "io.fastmig.hook.before-checkpoint"
	AnnotationAfterCheckpoint    = "io.fastmig.hook.after-checkpoint"
	AnnotationBeforeRestore      = "io.fastmig.hook.before-restore"
	AnnotationAfterRestore       = "io.fastmig.hook.after-restore"
	AnnotationHookTimeout        = "io.fastmig.hook.timeout"
	annotationPrefix             = "io.fastmig."
)

// The values of io.fastmig.http that are not a port, and the least interval between
// checkpoints.
const (
	httpUnix      = "unix"
	leastInterval = time.Second
)

// annotation is one that there is.
type annotation struct {
	// read puts the value into the settings.
	read func(s *shim.Settings, name, value string) error
	// field is where it went.
	field func(s *shim.Settings) any
	// fixed: an update cannot change it.
	fixed bool
	// liquid: only a container that runs under FastFreeze can have other than the
	// default.
	liquid bool
}

var annotations = map[string]annotation{
	AnnotationMode: {
		read: func(s *shim.Settings, name, value string) error {
			return oneOf(&s.Mode, name, value, shim.ModeFastFreeze, shim.ModePlain)
		},
		field: func(s *shim.Settings) any { return s.Mode },
		fixed: true,
	},
	AnnotationStartup: {
		read: func(s *shim.Settings, name, value string) error {
			return oneOf(&s.Startup, name, value, api.StartScratch, api.StartRestore, api.StartStandby)
		},
		field:  func(s *shim.Settings) any { return s.Startup },
		liquid: true,
	},
	AnnotationSupervise: {
		read: func(s *shim.Settings, name, value string) error {
			// "never" is what a plain container does.
			return oneOf(&s.Supervise, name, value, service.SuperviseAuto, service.SuperviseAlways, service.SuperviseNever)
		},
		field: func(s *shim.Settings) any { return s.Supervise },
	},
	AnnotationImageURL: {
		read: func(s *shim.Settings, name, value string) error {
			u, err := store.Parse(value)
			if err != nil {
				return fmt.Errorf("annotation %s: %w", name, err)
			}
			s.ImageURL = u.String()
			return nil
		},
		field:  func(s *shim.Settings) any { return s.ImageURL },
		liquid: true,
	},
	AnnotationOnExit: {
		read: func(s *shim.Settings, name, value string) error {
			decider := filepath.IsAbs(value) && filepath.Clean(value) == value && value != "/" && !strings.ContainsRune(value, 0)
			if value != service.OnExitTied && value != service.OnExitDefault && !decider {
				return invalid(name, value, "it is tied, default or a program's absolute path, without .. and the like")
			}
			s.OnExit = value
			return nil
		},
		field:  func(s *shim.Settings) any { return s.OnExit },
		liquid: true,
	},
	AnnotationCheckpointInterval: {
		read: func(s *shim.Settings, name, value string) error {
			return duration(&s.Interval, name, value, leastInterval)
		},
		field:  func(s *shim.Settings) any { return s.Interval },
		liquid: true,
	},
	AnnotationCheckpointExit: {
		read: func(s *shim.Settings, name, value string) error {
			var b string
			err := oneOf(&b, name, value, "true", "false")
			s.CheckpointExit = b == "true"
			return err
		},
		field: func(s *shim.Settings) any { return s.CheckpointExit },
		fixed: true,
	},
	AnnotationTCP: {
		read: func(s *shim.Settings, name, value string) error {
			var mode string
			err := oneOf(&mode, name, value, "close", "keep")
			s.KeepTCP = mode == "keep"
			return err
		},
		field:  func(s *shim.Settings) any { return s.KeepTCP },
		liquid: true,
	},
	AnnotationHTTP: {
		read: func(s *shim.Settings, name, value string) error {
			if value == httpUnix {
				s.HTTPPort = 0
				return nil
			}
			digits, colon := strings.CutPrefix(value, ":")
			port, err := strconv.ParseUint(digits, 10, 16)
			if !colon || err != nil || port == 0 {
				return invalid(name, value, "it is unix, or :PORT with a port from 1 to 65535")
			}
			s.HTTPPort = int(port)
			return nil
		},
		field:  func(s *shim.Settings) any { return s.HTTPPort },
		fixed:  true,
		liquid: true,
	},
	AnnotationBeforeCheckpoint: hook(func(h *service.Hooks) *[]string { return &h.BeforeCheckpoint }),
	AnnotationAfterCheckpoint:  hook(func(h *service.Hooks) *[]string { return &h.AfterCheckpoint }),
	AnnotationBeforeRestore:    hook(func(h *service.Hooks) *[]string { return &h.BeforeRestore }),
	AnnotationAfterRestore:     hook(func(h *service.Hooks) *[]string { return &h.AfterRestore }),
	AnnotationHookTimeout: {
		read: func(s *shim.Settings, name, value string) error {
			return duration(&s.Hooks.Timeout, name, value, time.Millisecond)
		},
		field:  func(s *shim.Settings) any { return s.Hooks.Timeout },
		liquid: true,
	},
}

// hook is the annotation of a command; an empty one is none.
func hook(of func(*service.Hooks) *[]string) annotation {
	return annotation{
		read: func(s *shim.Settings, name, value string) error {
			words, err := shellquote.Split(value)
			if err != nil || strings.ContainsRune(value, 0) {
				return invalid(name, value, "it is a command in shell words, with each quote closed")
			}
			if len(words) == 0 {
				words = nil
			}
			*of(&s.Hooks) = words
			return nil
		},
		field:  func(s *shim.Settings) any { return *of(&s.Hooks) },
		liquid: true,
	}
}

func defaults() shim.Settings {
	return shim.Settings{
		Mode: shim.ModeFastFreeze,
		Settings: service.Settings{
			Startup:   api.StartScratch,
			Supervise: service.SuperviseAuto,
			OnExit:    service.OnExitTied,
		},
	}
}

// Settings reads the annotations. One that begins like ours and is not ours is
// refused: a typing error must not be taken for a default.
func (Decoder) Settings(spec *specs.Spec) (shim.Settings, error) {
	s := defaults()
	for _, name := range ours(spec.Annotations) {
		if err := read(&s, name, spec.Annotations[name]); err != nil {
			return s, err
		}
	}
	// A sandbox only holds namespaces; there is no service to move. It has its pod's
	// annotations, which are meant for the containers.
	if spec.Annotations["io.kubernetes.cri.container-type"] == "sandbox" {
		s = defaults()
		s.Mode = shim.ModePlain
		return s, nil
	}
	return s, check(&s)
}

// Update reads the annotations of an update; those of others are ignored. One that
// cannot change may be there if it says what is so.
func (Decoder) Update(old shim.Settings, update map[string]string) (shim.Settings, []string, error) {
	s := old
	var changed []string
	for _, name := range ours(update) {
		if err := read(&s, name, update[name]); err != nil {
			return old, nil, err
		}
		a := annotations[name]
		if reflect.DeepEqual(a.field(&s), a.field(&old)) {
			continue
		}
		if a.fixed {
			return old, nil, fmt.Errorf("annotation %s=%q cannot be changed while the container exists: make a new container: %w",
				name, update[name], errdefs.ErrFailedPrecondition)
		}
		changed = append(changed, name)
	}
	if err := check(&s); err != nil {
		return old, nil, err
	}
	return s, changed, nil
}

// ours are the names that begin like ours, sorted: of several errors it is always the
// same that is told.
func ours(all map[string]string) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if strings.HasPrefix(name, annotationPrefix) {
			names = append(names, name)
		}
	}
	return names
}

func read(s *shim.Settings, name, value string) error {
	a, known := annotations[name]
	if !known {
		return fmt.Errorf("annotation %s: there is none of this name: correct or remove it: %w", name, errdefs.ErrInvalidArgument)
	}
	return a.read(s, name, value)
}

// check looks at what must fit together.
func check(s *shim.Settings) error {
	if s.Mode == shim.ModePlain {
		def := defaults()
		for _, name := range slices.Sorted(maps.Keys(annotations)) {
			a := annotations[name]
			if a.liquid && !reflect.DeepEqual(a.field(s), a.field(&def)) {
				return needs(name, AnnotationMode+"="+string(shim.ModeFastFreeze)+", and "+AnnotationMode+" is "+string(s.Mode))
			}
		}
		if s.Supervise == service.SuperviseAlways {
			return needs(AnnotationSupervise, AnnotationMode+"="+string(shim.ModeFastFreeze)+", and "+AnnotationMode+" is "+string(s.Mode))
		}
	}
	if s.ImageURL == "" {
		switch {
		case s.Startup == api.StartRestore:
			return needs(AnnotationStartup+"="+s.Startup, AnnotationImageURL+", which says what to restore")
		case s.Interval != 0:
			return needs(AnnotationCheckpointInterval, AnnotationImageURL+", which says where to write to")
		}
	}
	return nil
}

func needs(name, what string) error {
	return fmt.Errorf("annotation %s needs %s: change one of the two: %w", name, what, errdefs.ErrInvalidArgument)
}

func invalid(name, value, want string) error {
	return fmt.Errorf("annotation %s=%q: %s: %w", name, value, want, errdefs.ErrInvalidArgument)
}

func oneOf[T ~string](to *T, name, value string, known ...T) error {
	for _, k := range known {
		if value == string(k) {
			*to = k
			return nil
		}
	}
	return invalid(name, value, fmt.Sprintf("known values are %v", known))
}

func duration(to *time.Duration, name, value string, least time.Duration) error {
	d, err := time.ParseDuration(value)
	if err != nil || d < least {
		return invalid(name, value, fmt.Sprintf("it is a duration such as 1m30s, of at least %v", least))
	}
	*to = d
	return nil
}
