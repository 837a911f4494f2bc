package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// CheckFiles compares the sizes of files that the application had open or
// mapped to those in the container's root, as CRIU will on a restore: another
// build of the image is told before anything starts. The container is hostile:
// its links resolve inside root, and its files are looked at, not opened.
//
// Errors: FailedPrecondition, with the first few differences.
func CheckFiles(root *os.File, files []FileCheck) error {
	var problems []string
	for _, f := range files {
		problem, err := checkFile(root, f)
		if err != nil {
			return fmt.Errorf("compare the container's files to the checkpoint: %s: %w", f.Path, withKind(err))
		}
		if problem != "" {
			problems = append(problems, f.Path+": "+problem)
		}
	}
	if len(problems) == 0 {
		return nil
	}
	return fmt.Errorf("compare the container's files to the checkpoint: %s: restore it into a container of the image that it was taken from, with the files that it had: %w",
		summary(problems), errdefs.ErrFailedPrecondition)
}

func checkFile(root *os.File, f FileCheck) (string, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := openat2(root, f.Path, &how)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return "missing here", nil
	case errors.Is(err, unix.ELOOP):
		return "a loop of links here", nil
	case err != nil:
		return "", err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if mode := fileType(st.Mode); !mode.IsRegular() {
		return "a " + describe(mode) + " here, a regular file in the checkpoint", nil
	}
	if st.Size != f.Size {
		return fmt.Sprintf("%d bytes here, %d in the checkpoint", st.Size, f.Size), nil
	}
	return "", nil
}
