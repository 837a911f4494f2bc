package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Isolate makes a whole checkpoint of one that lies where others may write
// while it is used. All files but the page files are copied into the folder
// private, which is empty and nobody else's, and verified there, so that what
// was verified is what is used. The page files are verified where they are and
// stay there (see Pages): they are the processes' memory and give no rights.
// The archive of preserved files stays, too (see Preserved).
// It blocks as Verify does.
//
// The result owns private and, instead of c, c's folder; its Close calls
// release at last, if that is not nil. After an error all are still the
// caller's.
//
// Errors: as Verify; ResourceExhausted if private is full.
func (c *Checkpoint) Isolate(ctx context.Context, private *os.File, release func() error) (*Checkpoint, error) {
	files := c.Manifest.Files
	found := make([]string, len(files))
	err := eachFile(ctx, files, runtime.GOMAXPROCS(0), func(i int) (err error) {
		if staysInPlace(files[i]) {
			found[i], err = c.problem(ctx, files[i])
		} else {
			found[i], err = c.copyFile(ctx, files[i], private)
		}
		return err
	})
	if err == nil {
		var extra []string
		extra, err = c.extra()
		err = errors.Join(err, whole(append(found, extra...)))
	}
	if err != nil {
		return nil, fmt.Errorf("verify the checkpoint %s: %w", c.Dir(), err)
	}
	isolated := &Checkpoint{Manifest: c.Manifest, dir: private, pages: c.dir, release: release}
	isolated.Trust()
	return isolated, nil
}

// CopiedBytes is how much Isolate copies.
func (m *Manifest) CopiedBytes() (n int64) {
	for _, f := range m.Files {
		if !staysInPlace(f) {
			n += f.Size
		}
	}
	return n
}

// staysInPlace tells whether the file is a page file, or the archive of preserved
// files, which whoever reads it does not trust. An empty page file cannot be mapped,
// as the others are, and costs nothing.
func staysInPlace(f File) bool {
	return f.Name == PreservedName || strings.HasPrefix(f.Name, "pages-") && strings.HasSuffix(f.Name, ".img") && f.Size > 0
}

// copyFile copies a file and compares the copy to the manifest. It says what is
// wrong with the file, if anything; an error says that it could not be found
// out.
func (c *Checkpoint) copyFile(ctx context.Context, file File, private *os.File) (string, error) {
	from, problem, err := c.openListed(file)
	if problem != "" || err != nil {
		return problem, err
	}
	defer from.Close()
	fd, err := unix.Openat(int(private.Fd()), file.Name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return "", fmt.Errorf("copy %s: %w", file.Name, withKind(err))
	}
	to := os.NewFile(uintptr(fd), file.Name)
	defer to.Close()
	buf := readBuffers.Get().(*[readSize]byte)
	defer readBuffers.Put(buf)
	for off := int64(0); off < file.Size; {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := from.ReadAt(buf[:min(file.Size-off, readSize)], off)
		if n == 0 && errors.Is(err, io.EOF) {
			return file.Name + " is being truncated", nil
		}
		if n == 0 && err != nil {
			return "", fmt.Errorf("read %s: %w", file.Name, err)
		}
		if _, err := to.WriteAt(buf[:n], off); err != nil {
			return "", fmt.Errorf("copy %s: %w", file.Name, withKind(err))
		}
		off += int64(n)
		pulse(ctx)
	}
	sum, err := digestFile(ctx, to, file.Size)
	if err != nil {
		return "", fmt.Errorf("read the copy of %s: %w", file.Name, err)
	}
	if sum != file.SHA256 {
		return fmt.Sprintf("%s: content changed", file.Name), nil
	}
	return "", nil
}

// openListed opens a file that the manifest lists, or says what is wrong with
// it.
func (c *Checkpoint) openListed(file File) (_ *os.File, problem string, err error) {
	f, st, err := openBeneath(c.dir, file.Name)
	var irregular *notRegularError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, file.Name + " is missing", nil
	case errors.As(err, &irregular):
		return nil, fmt.Sprintf("%s is a %s", file.Name, describe(irregular.mode)), nil
	case err != nil:
		return nil, "", fmt.Errorf("open %s: %w", file.Name, withKind(err))
	}
	switch size := st.Size(); {
	case size < file.Size:
		problem = fmt.Sprintf("%s is truncated: %d of %d bytes", file.Name, size, file.Size)
	case size > file.Size:
		problem = fmt.Sprintf("%s has grown: %d instead of %d bytes", file.Name, size, file.Size)
	}
	if problem != "" {
		f.Close()
		return nil, problem, nil
	}
	return f, "", nil
}

// whole is the error of a checkpoint with these problems, of which empty ones
// are none.
func whole(problems []string) error {
	var left []string
	for _, p := range problems {
		if p != "" {
			left = append(left, p)
		}
	}
	if len(left) == 0 {
		return nil
	}
	return fmt.Errorf("%s: copy it again, or take a new one: %w", summary(left), errdefs.ErrDataLoss)
}
