//go:build linux

package preserve

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/containerd/errdefs"
)

// archive reads what Pack has written, or somebody has forged.
type archive struct {
	src   *source
	tar   *tar.Reader
	paths []string
	size  int64
}

// source keeps an error of the disk apart from those of the archive.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// entry is one file of an archive.
type entry struct {
	*tar.Header
	path   string // absolute, in the container
	base   string // the preserved path that it is at or below
	xattrs map[string]string
}

func openArchive(r io.Reader, size int64, paths []string) *archive {
	src := &source{r: r}
	return &archive{src: src, tar: tar.NewReader(bufio.NewReaderSize(src, bufferSize)), paths: paths, size: size}
}

// failed gives a reader's error its kind.
func (a *archive) failed(err error) error {
	if a.src.err != nil {
		return fmt.Errorf("read the archive: %w", withKind(a.src.err))
	}
	return fmt.Errorf("read the archive: it is damaged: %w: %w", err, errdefs.ErrDataLoss)
}

// next is the next entry, io.EOF after the last.
func (a *archive) next() (*entry, error) {
	h, err := a.tar.Next()
	if errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	if err != nil {
		return nil, a.failed(err)
	}
	e := &entry{Header: h}
	bad := func(why string) (*entry, error) {
		return nil, fmt.Errorf("read the archive: %.200q %s: %w", h.Name, why, errdefs.ErrDataLoss)
	}
	name := h.Name
	if h.Typeflag == tar.TypeDir {
		name = strings.TrimSuffix(name, "/")
	}
	var ok bool
	if e.path, e.base, ok = a.place(name); !ok {
		return bad("is not one of the preserved paths, nor below one")
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeFifo:
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxPath || strings.ContainsRune(h.Linkname, 0) {
			return bad("is a link to nothing")
		}
	case tar.TypeLink:
		if _, _, ok := a.place(h.Linkname); !ok || h.Linkname == h.Name {
			return bad(fmt.Sprintf("is a link to %.200q, which is not one of the preserved paths, nor below one", h.Linkname))
		}
	default:
		return bad(fmt.Sprintf("is of kind %q, which is not preserved", h.Typeflag))
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return bad("has holes, which are written whole")
		}
	}
	switch {
	case h.Size < 0 || h.Size > a.size:
		return bad(fmt.Sprintf("has %d bytes, more than the archive", h.Size))
	case h.Uid < 0 || int64(h.Uid) >= noID || h.Gid < 0 || int64(h.Gid) >= noID:
		return bad("is of an impossible user or group")
	case h.Mode&^0o7777 != 0:
		return bad("has impossible permissions")
	}
	if e.xattrs, err = xattrsOf(h.PAXRecords); err != nil {
		return bad(err.Error())
	}
	return e, nil
}

// place says where in the container a name of the archive is, and which of the
// paths it belongs to.
func (a *archive) place(name string) (full, base string, ok bool) {
	full = "/" + name
	if len(full) > maxPath || path.Clean(full) != full || strings.ContainsRune(name, 0) || strings.Count(full, "/") > 2*maxDepth {
		return "", "", false
	}
	for _, p := range a.paths {
		if within(full, p) && len(p) > len(base) {
			base = p
		}
	}
	return full, base, base != ""
}
