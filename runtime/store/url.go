package store

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
)

// The schemes of image URLs.
const (
	SchemeNode = "node" // a checkpoint in the node's folder
	SchemeFile = "file" // a path in the container's own file system
)

// maxName bounds the name of a node's checkpoint, in bytes: what is kept beside
// it has a longer one.
const maxName = 128

// maxPath is the kernel's limit of a path, in bytes, its final NUL included.
const maxPath = 4096

// URL names a place in which a container's checkpoints are kept.
type URL struct {
	Scheme string // "node" or "file"
	Path   string // a name, or an absolute and clean path
}

// String is the URL as Parse takes it.
func (u URL) String() string { return u.Scheme + ":" + u.Path }

// Parse reads an image URL: node:NAME or file:/path.
//
// Errors: InvalidArgument, with what is wrong.
func Parse(url string) (URL, error) {
	u, problem := parse(url)
	if problem != "" {
		return URL{}, fmt.Errorf("image URL %q: %s: use node:NAME, a checkpoint on the node, or file:/path, one in the container's own files: %w",
			url, problem, errdefs.ErrInvalidArgument)
	}
	return u, nil
}

func parse(url string) (u URL, problem string) {
	scheme, rest, found := strings.Cut(url, ":")
	switch {
	case url == "":
		return u, "it is empty"
	case !found:
		return u, "it has no scheme"
	case scheme == SchemeNode:
		return URL{scheme, rest}, nameProblem(rest)
	case scheme == SchemeFile:
		clean, problem := cleanPath(rest)
		return URL{scheme, clean}, problem
	default:
		return u, fmt.Sprintf("the scheme %q is unknown", scheme)
	}
}

func nameProblem(name string) string {
	switch {
	case name == "":
		return "the name is missing"
	case len(name) > maxName:
		return fmt.Sprintf("the name is longer than %d bytes", maxName)
	case !isAlnum(name[0]):
		return "the name must begin with a letter or a digit"
	}
	for i := range len(name) {
		if c := name[i]; !isAlnum(c) && c != '_' && c != '.' && c != '-' {
			return "the name may have letters, digits, '_', '.' and '-' only"
		}
	}
	return ""
}

func isAlnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// cleanPath takes repeated and trailing slashes out. A path with ".." is
// refused, not resolved: after a symbolic link it means another folder than it
// seems to.
func cleanPath(p string) (clean, problem string) {
	switch {
	case p == "":
		return "", "the path is missing"
	case strings.ContainsRune(p, 0):
		return "", "the path has a NUL byte in it"
	case p[0] != '/':
		return "", "the path must be absolute"
	case len(p) >= maxPath:
		return "", fmt.Sprintf("the path is longer than %d bytes", maxPath-1)
	}
	for _, part := range strings.Split(p, "/") {
		if part == "." || part == ".." {
			return "", fmt.Sprintf("the path must not have %q in it", part)
		}
	}
	clean = path.Clean(p)
	if clean == "/" {
		return "", "the path names no folder below the root"
	}
	if len(path.Base(clean)) > maxName {
		return "", fmt.Sprintf("its last part is longer than %d bytes", maxName)
	}
	return clean, ""
}
