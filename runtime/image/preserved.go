package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
)

// PreservedName is the archive of the preserved paths, in a checkpoint that has any.
const PreservedName = "preserved.tar"

// Preserved opens the archive of the preserved paths, of size bytes. It may lie where
// others write to it (see Isolate), and is not to be trusted.
//
// Errors: DataLoss if it is not there.
func (c *Checkpoint) Preserved() (f *os.File, size int64, err error) {
	folder := c.dir
	if c.pages != nil {
		folder = c.pages
	}
	f, st, err := openBeneath(folder, PreservedName)
	var irregular *notRegularError
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.As(err, &irregular):
		return nil, 0, fmt.Errorf("open the checkpoint's %s: %w: %w", PreservedName, err, errdefs.ErrDataLoss)
	case err != nil:
		return nil, 0, fmt.Errorf("open the checkpoint's %s: %w", PreservedName, withKind(err))
	}
	return f, st.Size(), nil
}
