package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

const (
	// ManifestName is the manifest's name in the checkpoint folder.
	ManifestName = "fastmig.json"

	// FormatVersion is the version of the folder's format that this package
	// writes, and the only one it reads.
	FormatVersion = 1

	// maxManifest bounds what is read into memory, in bytes. A file takes about
	// 150 bytes, so it is room for 100,000 of them.
	maxManifest = 16 << 20
)

// How TCP connections that were established at the checkpoint are restored.
const (
	TCPClose = "close"
	TCPKeep  = "keep"
)

// What a standard stream of the application was at the checkpoint.
const (
	StdioPipe   = "pipe"
	StdioTTY    = "tty"
	StdioNull   = "null"
	StdioFile   = "file"
	StdioClosed = "closed"
)

// Manifest describes a checkpoint. Strings that come from the container
// (arguments, names, paths) may hold any bytes; they survive the encoding.
type Manifest struct {
	FormatVersion int       `json:"formatVersion"`
	CreatedAt     time.Time `json:"createdAt"`

	// What was checkpointed.
	Application Application   `json:"application"`
	Stdio       [3]StdioEntry `json:"stdio"`
	TCP         string        `json:"tcp"`
	Image       string        `json:"image,omitempty"`
	RuntimeName string        `json:"runtimeName,omitempty"`
	ContainerID string        `json:"containerID,omitempty"`
	Namespace   string        `json:"namespace,omitempty"`
	// SeccompFilters is how many seccomp filters the container's first process had,
	// with which each thread's own begin; nil: one, as a spec with seccomp makes it.
	SeccompFilters *int `json:"seccompFilters,omitempty"`

	// Where it can be restored.
	Architecture string      `json:"architecture"` // as Go's GOARCH
	CPU          CPU         `json:"cpu"`
	Kernel       string      `json:"kernel,omitempty"`
	CriuVersion  string      `json:"criuVersion"`
	Clocks       Clocks      `json:"clocks"`
	MappedFiles  []FileCheck `json:"mappedFiles,omitempty"`
	// PreservedPaths are the container's, absolute and in order, whose files are in
	// the checkpoint's PreservedName.
	PreservedPaths []string `json:"preservedPaths,omitempty"`

	// Files lists everything in the folder but the manifest, sorted by name.
	// Commit fills it.
	Files []File `json:"files"`

	// Digest is the sha256, in hex, of the manifest's text up to the digest
	// itself. It names the checkpoint: Commit and Open fill it.
	Digest string `json:"-"`
}

// Application is the process tree that was checkpointed.
type Application struct {
	Args      []string  `json:"args"`
	Pid       int       `json:"pid"` // the root's, in the container's pid namespace
	Terminal  bool      `json:"terminal"`
	Processes []Process `json:"processes"`
}

// Process is one process of the tree, with its ids in the container's pid
// namespace.
type Process struct {
	Pid     int          `json:"pid"`
	PPid    int          `json:"ppid"`
	Comm    string       `json:"comm"`
	State   ProcessState `json:"state"`
	Threads int          `json:"threads"`
}

// ProcessState is what a process was doing when it was checkpointed.
type ProcessState string

const (
	StateRunning ProcessState = "running" // or sleeping
	StateStopped ProcessState = "stopped" // by a stop signal
	StateZombie  ProcessState = "zombie"  // ended, not yet waited for
)

// StdioEntry identifies what a standard stream was, in the words of CRIU's
// --external: pipe:[INODE], tty[RDEV:DEV].
type StdioEntry struct {
	Kind  string `json:"kind"`
	Inode uint64 `json:"inode,omitempty"` // of a pipe
	TTY   TTYID  `json:"tty,omitzero"`    // of a terminal
	Path  string `json:"path,omitempty"`  // of a file, in the container
}

// TTYID is a terminal's device number and the device of the file system that
// holds it, both as stat(2) gives them.
type TTYID struct {
	Rdev uint64 `json:"rdev"`
	Dev  uint64 `json:"dev"`
}

// CPU is what a processor can do.
type CPU struct {
	Vendor   string   `json:"vendor,omitempty"`
	Features []string `json:"features"` // as in /proc/cpuinfo, sorted
}

// Clocks are the kernel's clocks, in nanoseconds, when the application stood
// still.
type Clocks struct {
	Monotonic int64 `json:"monotonic"`
	Boottime  int64 `json:"boottime"`
}

// FileCheck is a file of the container's that a process had open or mapped.
type FileCheck struct {
	Path string `json:"path"`
	Size int64  `json:"size"` // bytes
}

// File is one file of the checkpoint.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// The manifest's text ends with its digest in this form, in every format
// version: damage is then told from a version that is not known.
const (
	digestHead = ",\n  \"digest\": \"sha256:"
	digestTail = "\"\n}\n"
	digestLen  = 2 * sha256.Size
	objectTail = "\n}"
)

// encode returns the manifest's text and sets m.Digest.
func (m *Manifest) encode() ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, err
	}
	wire := m.mapStrings(escape)
	text, err := json.MarshalIndent(wire, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the manifest: %w: %w", errdefs.ErrInternal, err)
	}
	text = append(bytes.TrimSuffix(text, []byte(objectTail)), digestHead...)
	m.Digest = digest(text)
	text = append(text, m.Digest...)
	text = append(text, digestTail...)
	if len(text) > maxManifest {
		return nil, fmt.Errorf("encode the manifest: %d bytes are more than the %d that a reader takes: %w",
			len(text), maxManifest, errdefs.ErrOutOfRange)
	}
	return text, nil
}

// decodeManifest is the inverse of encode, for a text from anywhere.
func decodeManifest(text []byte) (*Manifest, error) {
	if len(text) > maxManifest {
		return nil, fmt.Errorf("it is longer than %d bytes: %w", maxManifest, errdefs.ErrDataLoss)
	}
	signed, sum, ok := splitDigest(text)
	if !ok {
		return nil, fmt.Errorf("it is cut short or not a manifest (no digest at its end): %w", errdefs.ErrDataLoss)
	}
	if digest(signed) != sum {
		return nil, fmt.Errorf("its content has changed since it was written (digest differs): %w", errdefs.ErrDataLoss)
	}
	body := append(slices.Clone(signed[:len(signed)-len(digestHead)]), objectTail...)

	// The version first: another version has other fields.
	var version struct {
		FormatVersion int `json:"formatVersion"`
	}
	if err := json.Unmarshal(body, &version); err != nil {
		return nil, fmt.Errorf("it is not valid JSON: %w: %w", errdefs.ErrDataLoss, err)
	}
	if version.FormatVersion != FormatVersion {
		return nil, fmt.Errorf("it has format version %d, this FastMig reads version %d: restore it with the FastMig that wrote it: %w",
			version.FormatVersion, FormatVersion, errdefs.ErrFailedPrecondition)
	}

	var wire Manifest
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&wire); err != nil {
		return nil, fmt.Errorf("it does not have the form of format version %d: %w: %w", FormatVersion, errdefs.ErrDataLoss, err)
	}
	m := wire.mapStrings(unescape)
	// A text has one reading only: no repeated keys, no keys in other case.
	again, err := m.encode()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrDataLoss, err)
	}
	if !bytes.Equal(again, text) {
		return nil, fmt.Errorf("it was not written by FastMig (another spelling of the same content): %w", errdefs.ErrDataLoss)
	}
	return m, nil
}

// splitDigest returns the text that the digest covers, and the digest.
func splitDigest(text []byte) (signed []byte, sum string, ok bool) {
	rest, ok := bytes.CutSuffix(text, []byte(digestTail))
	if !ok || len(rest) < digestLen {
		return nil, "", false
	}
	signed, sum = rest[:len(rest)-digestLen], string(rest[len(rest)-digestLen:])
	return signed, sum, bytes.HasSuffix(signed, []byte(digestHead))
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// validate refuses what no checkpoint can be.
func (m *Manifest) validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("manifest: %s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	switch {
	case m.FormatVersion != FormatVersion:
		return bad("format version %d instead of %d", m.FormatVersion, FormatVersion)
	case m.Architecture == "":
		return bad("no architecture")
	case m.Application.Pid <= 0:
		return bad("pid %d of the application", m.Application.Pid)
	case m.TCP != TCPClose && m.TCP != TCPKeep:
		return bad("TCP mode %q is neither %q nor %q", m.TCP, TCPClose, TCPKeep)
	case m.CreatedAt.IsZero():
		return bad("no time of creation")
	case len(m.Files) == 0:
		return bad("no files")
	case m.SeccompFilters != nil && *m.SeccompFilters < 0:
		return bad("%d seccomp filters", *m.SeccompFilters)
	}
	if _, err := criuMajor(m.CriuVersion); err != nil {
		return bad("%v", err)
	}
	// These are not escaped, because nothing makes them but text.
	texts := append([]string{m.Architecture, m.Image, m.RuntimeName, m.ContainerID, m.Namespace, m.CPU.Vendor, m.Kernel, m.CriuVersion}, m.CPU.Features...)
	for _, s := range texts {
		if !utf8.ValidString(s) {
			return bad("%q is not text", s)
		}
	}
	for _, p := range m.Application.Processes {
		switch p.State {
		case StateRunning, StateStopped, StateZombie:
		default:
			return bad("process %d is in unknown state %q", p.Pid, p.State)
		}
		if p.Pid <= 0 {
			return bad("a process with pid %d", p.Pid)
		}
	}
	for i, s := range m.Stdio {
		switch s.Kind {
		case StdioPipe, StdioTTY, StdioNull, StdioFile, StdioClosed:
		default:
			return bad("descriptor %d is of unknown kind %q", i, s.Kind)
		}
	}
	for _, f := range m.MappedFiles {
		if !path.IsAbs(f.Path) || strings.ContainsRune(f.Path, 0) || f.Size < 0 {
			return bad("a mapped file with path %q and size %d", f.Path, f.Size)
		}
	}
	last := ""
	for _, p := range m.PreservedPaths {
		if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsRune(p, 0) || p <= last {
			return bad("preserved path %q is not absolute and clean, or out of order", p)
		}
		last = p
	}
	if archived := slices.ContainsFunc(m.Files, func(f File) bool { return f.Name == PreservedName }); archived != (len(m.PreservedPaths) > 0) {
		return bad("%s without preserved paths, or the other way round", PreservedName)
	}
	last = ""
	for _, f := range m.Files {
		if err := checkName(f.Name); err != nil {
			return bad("%v", err)
		}
		if last != "" && f.Name <= last {
			return bad("file %q is listed twice or out of order", f.Name)
		}
		last = f.Name
		if f.Size < 0 {
			return bad("file %q has size %d", f.Name, f.Size)
		}
		if raw, err := hex.DecodeString(f.SHA256); err != nil || len(raw) != sha256.Size || strings.ToLower(f.SHA256) != f.SHA256 {
			return bad("file %q has no valid digest", f.Name)
		}
	}
	return nil
}

// checkName refuses names that could lead out of the folder, or are not a
// checkpoint file's.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || len(name) > 255,
		strings.ContainsRune(name, '/'),
		!utf8.ValidString(name),
		strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("%q is no name of a file in a flat folder", name)
	case name == ManifestName || strings.HasPrefix(name, partialPrefix):
		return fmt.Errorf("%q is a name of FastMig's own", name)
	}
	return nil
}

// baseFilters is how many seccomp filters every thread had from its container.
func (m *Manifest) baseFilters() int {
	if m.SeccompFilters == nil {
		return 1
	}
	return *m.SeccompFilters
}

// complete fills what the caller left open.
func (m *Manifest) complete() {
	m.FormatVersion = FormatVersion
	if m.Architecture == "" {
		m.Architecture = runtime.GOARCH
	}
	if m.CreatedAt.IsZero() {
		m.CreatedAt = time.Now()
	}
	m.CreatedAt = m.CreatedAt.UTC().Round(0)
	m.CPU.Features = slices.Clone(m.CPU.Features)
	slices.Sort(m.CPU.Features)
}

// mapStrings returns a copy with f applied to every string that the container
// chose. JSON holds text only, but arguments and paths are bytes.
func (m *Manifest) mapStrings(f func(string) string) *Manifest {
	c := *m
	c.Application.Args = slices.Clone(m.Application.Args)
	for i, s := range c.Application.Args {
		c.Application.Args[i] = f(s)
	}
	c.Application.Processes = slices.Clone(m.Application.Processes)
	for i, p := range c.Application.Processes {
		c.Application.Processes[i].Comm = f(p.Comm)
	}
	for i, s := range c.Stdio {
		c.Stdio[i].Path = f(s.Path)
	}
	c.MappedFiles = slices.Clone(m.MappedFiles)
	for i, s := range c.MappedFiles {
		c.MappedFiles[i].Path = f(s.Path)
	}
	c.PreservedPaths = slices.Clone(m.PreservedPaths)
	for i, s := range c.PreservedPaths {
		c.PreservedPaths[i] = f(s)
	}
	return &c
}

// escape writes bytes that are not UTF-8 as \xNN, and so doubles backslashes.
func escape(s string) string {
	if utf8.ValidString(s) && !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\\':
			b.WriteString(`\\`)
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// unescape is the inverse of escape. What escape cannot have written stays as
// it is, and decodeManifest refuses it for not encoding to the same text.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && strings.HasPrefix(s[i+1:], `\`) {
			b.WriteByte('\\')
			i++
			continue
		}
		if s[i] == '\\' && strings.HasPrefix(s[i+1:], "x") && len(s) >= i+4 {
			if raw, err := hex.DecodeString(s[i+2 : i+4]); err == nil {
				b.WriteByte(raw[0])
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
