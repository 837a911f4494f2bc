// Package config is the node's configuration file.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// Path is where the file is, if there is one.
const Path = "/etc/fastmig/config.toml"

// maxSize bounds the file, which has a few lines.
const maxSize = 1 << 20

// Config is what a node's operator may set. contrib/fastmig/config.toml says
// more of each.
type Config struct {
	// Checkpoints is the folder of the node's checkpoints: those that node:NAME names.
	Checkpoints string `toml:"checkpoints"`
	// Keep is how many whole checkpoints of a place are kept.
	Keep int `toml:"keep"`
	// StoreTimeout bounds each access to where the checkpoints are.
	StoreTimeout Duration `toml:"store_timeout"`
	// HookTimeout bounds a hook that has no time limit of its own.
	HookTimeout Duration   `toml:"hook_timeout"`
	Deciders    Deciders   `toml:"deciders"`
	Supervisor  Supervisor `toml:"supervisor"`
}

// Deciders says which programs may decide how a service goes on after its end.
type Deciders struct {
	// Allow has their absolute paths.
	Allow []string `toml:"allow"`
	// Timeout bounds one decision.
	Timeout Duration `toml:"timeout"`
}

// Supervisor says when a service is taken for lost, and how often it is brought
// back.
type Supervisor struct {
	// Heartbeat is the time between two questions to PID 1, and HeartbeatTimeout how
	// long it has for an answer.
	Heartbeat        Duration `toml:"heartbeat"`
	HeartbeatTimeout Duration `toml:"heartbeat_timeout"`
	// Backoff is the wait before the first restart. It doubles with each up to
	// BackoffMax.
	Backoff    Duration `toml:"backoff"`
	BackoffMax Duration `toml:"backoff_max"`
	// Restarts in a row, none of which lived for Healthy, are a crash loop.
	Restarts int      `toml:"restarts"`
	Healthy  Duration `toml:"healthy"`
}

// Duration is a time.Duration, written as a string such as "1m30s".
type Duration time.Duration

// UnmarshalText reads a duration as time.ParseDuration does.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"1m30s\"", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String is such as 1m30s.
func (d Duration) String() string { return time.Duration(d).String() }

// Default is the configuration of a node without a file.
func Default() *Config {
	return &Config{
		Checkpoints:  "/var/lib/fastmig/checkpoints",
		Keep:         2,
		StoreTimeout: Duration(time.Minute),
		HookTimeout:  Duration(30 * time.Second),
		Deciders:     Deciders{Timeout: Duration(5 * time.Second)},
		Supervisor: Supervisor{
			Heartbeat:        Duration(2 * time.Second),
			HeartbeatTimeout: Duration(5 * time.Second),
			Backoff:          Duration(100 * time.Millisecond),
			BackoffMax:       Duration(30 * time.Second),
			Restarts:         8,
			Healthy:          Duration(time.Minute),
		},
	}
}

// Load reads the file; what it leaves out, or if there is none, is Default's. A key
// that is not known and a value that makes no sense are ErrInvalidArgument, and the
// message names them.
func Load(path string) (*Config, error) {
	c := Default()
	data, err := read(path)
	if errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the node's configuration: %w", err)
	}
	if err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(c); err != nil {
		return nil, fmt.Errorf("read the node's configuration %s: %s: correct the file: %w", path, explain(err), errdefs.ErrInvalidArgument)
	}
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("read the node's configuration %s: %w: correct the file: %w", path, err, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

func read(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	// A device or a pipe would never end.
	if !st.Mode().IsRegular() || st.Size() > maxSize {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes: %w", path, maxSize, errdefs.ErrInvalidArgument)
	}
	return os.ReadFile(path)
}

// explain gives the key and the line, which the decoder's own text lacks.
func explain(err error) string {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var all []string
		for _, e := range strict.Errors {
			line, _ := e.Position()
			all = append(all, fmt.Sprintf("line %d: there is no key %s", line, strings.Join(e.Key(), ".")))
		}
		return strings.Join(all, "; ")
	}
	var one *toml.DecodeError
	if errors.As(err, &one) {
		line, _ := one.Position()
		if key := strings.Join(one.Key(), "."); key != "" {
			return fmt.Sprintf("line %d: %s: %v", line, key, one)
		}
		return fmt.Sprintf("line %d: %v", line, one)
	}
	return err.Error()
}

func (c *Config) validate() error {
	if err := absolute("checkpoints", c.Checkpoints); err != nil {
		return err
	}
	for _, p := range c.Deciders.Allow {
		if err := absolute("deciders.allow", p); err != nil {
			return err
		}
	}
	s := c.Supervisor
	for _, d := range []struct {
		key string
		is  Duration
	}{
		{"store_timeout", c.StoreTimeout},
		{"hook_timeout", c.HookTimeout},
		{"deciders.timeout", c.Deciders.Timeout},
		{"supervisor.heartbeat", s.Heartbeat},
		{"supervisor.heartbeat_timeout", s.HeartbeatTimeout},
		{"supervisor.backoff", s.Backoff},
		{"supervisor.backoff_max", s.BackoffMax},
		{"supervisor.healthy", s.Healthy},
	} {
		// Less is a number without quotes and unit: nanoseconds.
		if d.is < Duration(time.Millisecond) {
			return fmt.Errorf("%s = %q: it must be at least \"1ms\", in quotes and with its unit", d.key, d.is)
		}
	}
	switch {
	case s.BackoffMax < s.Backoff:
		return fmt.Errorf("supervisor.backoff_max = %q is less than supervisor.backoff = %q", s.BackoffMax, s.Backoff)
	case c.Keep < 1:
		return fmt.Errorf("keep = %d: it must be at least 1", c.Keep)
	case s.Restarts < 1:
		return fmt.Errorf("supervisor.restarts = %d: it must be at least 1", s.Restarts)
	}
	return nil
}

func absolute(key, path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsRune(path, 0) {
		return fmt.Errorf("%s: %q is not an absolute path without .. and the like", key, path)
	}
	return nil
}
