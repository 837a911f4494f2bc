//go:build linux

package debpkg

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// hostSources is where apt looks for its sources unless told otherwise.
const hostSources = "/etc/apt"

var hostReleaseFiles = []string{"/etc/os-release", "/usr/lib/os-release"}

// entry is one source of packages, whichever of the two formats of
// sources.list(5) it was written in.
type entry struct {
	types      []string
	uris       []string
	suites     []string
	components []string
	// options holds the remaining fields by lower-case name. Both formats use
	// the same names, and those of deb822 ignore case.
	options map[string]string
}

// keptOptions are the fields that say how an archive is reached and trusted.
// The others (architectures, languages, targets) narrow what is fetched to the
// machine's habits, which do not concern a private download.
var keptOptions = []string{
	"signed-by", "trusted", "allow-insecure", "allow-weak", "allow-downgrade-to-insecure",
	"check-valid-until", "valid-until-min", "valid-until-max", "check-date", "date-max-future",
	"inrelease-path", "by-hash",
}

// Release is what os-release(5) tells about the distribution.
type Release struct {
	ID        string   // "debian", "ubuntu", …
	Like      []string // the IDs of those that it is made from
	Codenames []string // its own release and those it is made from: "bookworm", …
}

// HostRelease reads the machine's os-release. Error: errdefs.ErrNotImplemented
// where there is none.
func HostRelease() (Release, error) {
	for _, path := range hostReleaseFiles {
		data, err := os.ReadFile(path)
		if err == nil {
			return parseRelease(string(data)), nil
		}
	}
	return Release{}, fmt.Errorf("debpkg: cannot tell the distribution: none of %s can be read: %w",
		strings.Join(hostReleaseFiles, ", "), errdefs.ErrNotImplemented)
}

func parseRelease(text string) Release {
	var rel Release
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			rel.ID = value
		case "ID_LIKE":
			rel.Like = strings.Fields(value)
		case "VERSION_CODENAME", "UBUNTU_CODENAME", "DEBIAN_CODENAME":
			// A child of a distribution names its parent's release too.
			if value != "" && !slices.Contains(rel.Codenames, value) {
				rel.Codenames = append(rel.Codenames, value)
			}
		}
	}
	return rel
}

// readSources reads sources.list and sources.list.d below dir. Missing files
// are no error.
func readSources(dir string) ([]entry, error) {
	var paths []string
	for _, pattern := range []string{"sources.list", "sources.list.d/*.list", "sources.list.d/*.sources"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, fmt.Errorf("debpkg: list apt's sources: %w", err)
		}
		paths = append(paths, found...)
	}
	var entries []entry
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("debpkg: read apt's sources: %w", err)
		}
		if strings.HasSuffix(path, ".sources") {
			entries = append(entries, parseDeb822(string(data))...)
		} else {
			entries = append(entries, parseOneLine(string(data))...)
		}
	}
	return entries, nil
}

// parseOneLine reads the one-line format: type [ option=value ... ] uri suite
// component... Lines that are no source are left out, as apt itself reports them.
func parseOneLine(text string) []entry {
	var entries []entry
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		kind, rest, ok := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
		if !ok {
			continue
		}
		e := entry{types: []string{kind}, options: map[string]string{}}
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			opts, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				continue
			}
			for _, opt := range strings.Fields(opts) {
				if key, value, ok := strings.Cut(opt, "="); ok {
					e.options[strings.ToLower(key)] = strings.ReplaceAll(value, ",", " ")
				}
			}
			rest = after
		}
		fields := strings.Fields(rest)
		if len(fields) < 2 {
			continue
		}
		e.uris, e.suites, e.components = fields[:1], fields[1:2], fields[2:]
		entries = append(entries, e)
	}
	return entries
}

// parseDeb822 reads stanzas of "Field: value", separated by empty lines; a line
// that begins with white space continues the field before it.
func parseDeb822(text string) []entry {
	var entries []entry
	fields := map[string]string{}
	last := ""
	flush := func() {
		if e, ok := entryOf(fields); ok {
			entries = append(entries, e)
		}
		fields, last = map[string]string{}, ""
	}
	sc := bufio.NewScanner(strings.NewReader(text))
	for sc.Scan() {
		line := strings.TrimRight(sc.Text(), " \t\r")
		switch {
		case line == "":
			flush()
		case line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if last != "" {
				fields[last] += "\n" + line
			}
		default:
			key, value, ok := strings.Cut(line, ":")
			if !ok {
				continue
			}
			last = strings.ToLower(strings.TrimSpace(key))
			fields[last] = strings.TrimSpace(value)
		}
	}
	flush()
	return entries
}

func entryOf(fields map[string]string) (entry, bool) {
	switch strings.ToLower(fields["enabled"]) {
	case "no", "false", "0", "off", "without", "disable":
		return entry{}, false
	}
	e := entry{
		types:      strings.Fields(fields["types"]),
		uris:       strings.Fields(fields["uris"]),
		suites:     strings.Fields(fields["suites"]),
		components: strings.Fields(fields["components"]),
		options:    map[string]string{},
	}
	for key, value := range fields {
		switch key {
		case "types", "uris", "suites", "components", "enabled":
		default:
			e.options[key] = value
		}
	}
	return e, len(e.types) > 0 && len(e.uris) > 0 && len(e.suites) > 0
}

// deriveSources picks the entries of the distribution's own archive and, when
// suite is not empty, puts suite in the place of theirs. Third-party entries
// are left out: they have other suites, and packages that nobody asked for.
func deriveSources(machine []entry, rel Release, suite string) []entry {
	var derived []entry
	seen := map[string]bool{}
	for _, e := range machine {
		if !slices.Contains(e.types, "deb") || !signedByArchive(e, rel) {
			continue
		}
		// universe is the part of Ubuntu's archive in which criu lives.
		components := keep(e.components, "main", "universe")
		if !slices.Contains(e.components, "main") && !slices.Contains(e.components, "universe") {
			continue
		}
		var suites []string
		for _, own := range e.suites {
			if s := deriveSuite(own, rel, suite); s != "" && !slices.Contains(suites, s) {
				suites = append(suites, s)
			}
		}
		uris := slices.DeleteFunc(slices.Clone(e.uris), func(u string) bool { return strings.HasPrefix(u, "cdrom:") })
		if len(suites) == 0 || len(uris) == 0 {
			continue
		}
		d := entry{types: []string{"deb"}, uris: uris, suites: suites, components: components, options: map[string]string{}}
		for _, key := range keptOptions {
			if value, ok := e.options[key]; ok {
				d.options[key] = value
			}
		}
		if text := formatSources([]entry{d}); !seen[text] {
			seen[text] = true
			derived = append(derived, d)
		}
	}
	return derived
}

// movingSuites are names of suites that stay while their content moves on.
var movingSuites = []string{"stable", "oldstable", "testing", "unstable", "sid", "devel"}

// deriveSuite returns what becomes of an entry's suite: "" if it is not one of
// the distribution's own or has no counterpart.
func deriveSuite(own string, rel Release, wanted string) string {
	own = strings.TrimSuffix(own, "/")
	base, pocket, _ := strings.Cut(own, "-")
	if b, p, ok := strings.Cut(own, "/"); ok && p == "updates" {
		base, pocket = b, "security" // the name before Debian 11
	}
	rolling := strings.HasSuffix(own, "-rolling")
	if rolling {
		base, pocket = own, ""
	}
	if !slices.Contains(rel.Codenames, base) && !slices.Contains(movingSuites, base) {
		return ""
	}
	switch pocket {
	case "", "updates", "security":
	default: // backports, proposed-updates: only on request of an administrator
		return ""
	}
	switch {
	case wanted == "":
		return own
	case pocket == "":
		return wanted
	case slices.Contains(movingSuites, wanted) && wanted != "stable":
		return "" // what is moving gets its fixes in the suite itself
	default:
		return wanted + "-" + pocket
	}
}

// signedByArchive tells the distribution's archive from a third party that
// happens to use the same names of suites and components: the latter brings a
// key of its own.
func signedByArchive(e entry, rel Release) bool {
	signers := e.options["signed-by"]
	if signers == "" {
		return true // trusted by the machine's common keyring
	}
	if strings.Contains(signers, "\n") {
		return false // a key written into the entry
	}
	names := append([]string{"debian", "ubuntu"}, rel.Like...)
	if rel.ID != "" {
		names = append(names, rel.ID)
	}
	for _, signer := range strings.Fields(signers) {
		for _, name := range names {
			if strings.HasPrefix(filepath.Base(signer), name+"-archive") {
				return true
			}
		}
	}
	return false
}

func keep(have []string, wanted ...string) []string {
	var kept []string
	for _, s := range have {
		if slices.Contains(wanted, s) {
			kept = append(kept, s)
		}
	}
	return kept
}

// formatSources writes entries in the deb822 format of sources.list(5).
func formatSources(entries []entry) string {
	var b strings.Builder
	for i, e := range entries {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "Types: %s\nURIs: %s\nSuites: %s\nComponents: %s\n", strings.Join(e.types, " "),
			strings.Join(e.uris, " "), strings.Join(e.suites, " "), strings.Join(e.components, " "))
		for _, key := range keptOptions {
			if value, ok := e.options[key]; ok {
				fmt.Fprintf(&b, "%s: %s\n", key, value)
			}
		}
	}
	return b.String()
}
