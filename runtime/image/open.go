package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

var (
	// ErrForeign says that the folder is a checkpoint of a whole container, as
	// libcontainer makes it for the stock runc shim or for a plain container.
	// It is restored as a plain container.
	ErrForeign = fmt.Errorf("it is a checkpoint of a whole container made by runc or libcontainer, without FastMig's manifest: %w",
		errdefs.ErrFailedPrecondition)

	// ErrEmpty says that the folder is there and nothing is in it.
	ErrEmpty = fmt.Errorf("the folder is empty: %w", errdefs.ErrNotFound)
)

// Names by which a checkpoint of libcontainer is known: CRIU's first file, and
// the container's own descriptors, which no restore by libcontainer does
// without.
const (
	criuInventory = "inventory.img"
	runcMarker    = "descriptors.json"
)

// Checkpoint is a checkpoint folder with a valid manifest. Its files are not
// verified until Verify was called. Several may be open on the same folder.
type Checkpoint struct {
	Manifest *Manifest
	dir      *os.File
	pages    *os.File     // where the page files are, if not in dir: see Isolate
	release  func() error // what ends with the Checkpoint, or nil
	verified atomic.Bool
}

// Open reads the checkpoint in the folder dir. Everything afterwards goes
// through the descriptor that Open took: a folder that is replaced meanwhile
// does not matter. It does not read the files: see Verify.
//
// Errors: NotFound if there is no folder, ErrEmpty if nothing is in it,
// ErrForeign if it is to be restored as a plain container, Unavailable if it is
// being written, DataLoss if it is damaged or unfinished, FailedPrecondition if
// it has another format version, InvalidArgument if it is something else.
func Open(dir string) (*Checkpoint, error) {
	parent, name, err := openParent(dir)
	if err != nil {
		return nil, fmt.Errorf("open the checkpoint: %w", err)
	}
	defer parent.Close()
	return OpenAt(parent, name)
}

// OpenAt is Open for the folder name of an open folder, which must not be a
// symbolic link. The parent stays the caller's.
func OpenAt(parent *os.File, name string) (*Checkpoint, error) {
	c, err := open(parent, name)
	if err != nil {
		return nil, fmt.Errorf("open the checkpoint: %w", err)
	}
	return c, nil
}

func open(parent *os.File, name string) (*Checkpoint, error) {
	d, err := openFolderAt(parent, name)
	if err != nil {
		return nil, err
	}
	m, err := readManifest(d)
	if errors.Is(err, fs.ErrNotExist) {
		reason := withoutManifest(d)
		// A commit may have ended between the two looks.
		if m, err = readManifest(d); errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%s: %w", d.Name(), reason)
		}
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return &Checkpoint{Manifest: m, dir: d}, nil
}

// readManifest reads the manifest of the folder; fs.ErrNotExist if it has none.
func readManifest(dir *os.File) (*Manifest, error) {
	f, st, err := openBeneath(dir, ManifestName)
	var irregular *notRegularError
	switch {
	case errors.As(err, &irregular):
		return nil, fmt.Errorf("%s/%s: %w: %w", dir.Name(), ManifestName, err, errdefs.ErrDataLoss)
	case err != nil:
		return nil, fmt.Errorf("open %s/%s: %w", dir.Name(), ManifestName, withKind(err))
	}
	defer f.Close()
	if st.Size() > maxManifest {
		return nil, fmt.Errorf("%s/%s: it is longer than %d bytes: %w", dir.Name(), ManifestName, maxManifest, errdefs.ErrDataLoss)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("read %s/%s: %w", dir.Name(), ManifestName, withKind(err))
	}
	m, err := decodeManifest(text)
	if err != nil {
		return nil, fmt.Errorf("%s/%s: %w", dir.Name(), ManifestName, err)
	}
	return m, nil
}

// withoutManifest says what a folder without a manifest is.
func withoutManifest(dir *os.File) error {
	entries, err := list(dir)
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		return ErrEmpty
	}
	names := make(map[string]bool, len(entries))
	for _, e := range entries {
		names[e.name] = e.mode.IsRegular()
		if !e.isPartial() {
			continue
		}
		// A shared lock asks without disturbing: only a writer refuses it.
		f, err := os.OpenFile(self(dir)+"/"+e.name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err == nil {
			err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
			f.Close()
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("the checkpoint is still being written: wait for it: %w", errdefs.ErrUnavailable)
		}
		return fmt.Errorf("the checkpoint is unfinished, its writer died: take a new one: %w", errdefs.ErrDataLoss)
	}
	switch {
	case names[criuInventory] && names[runcMarker]:
		return ErrForeign
	case names[criuInventory]:
		return fmt.Errorf("%s is missing among CRIU's files: copy the checkpoint again, or take a new one: %w", ManifestName, errdefs.ErrDataLoss)
	default:
		return fmt.Errorf("there is neither %s nor an image of CRIU in it, so it is no checkpoint: %w", ManifestName, errdefs.ErrInvalidArgument)
	}
}

// Dir is the folder's path, as it was opened.
func (c *Checkpoint) Dir() string { return c.dir.Name() }

// File is the folder. It belongs to the Checkpoint; a child process may get a
// duplicate of it.
func (c *Checkpoint) File() *os.File { return c.dir }

// Pages is the folder that holds the page files (pages-*.img), or nil if they
// are with the others, in File. It belongs to the Checkpoint.
func (c *Checkpoint) Pages() *os.File { return c.pages }

// Close releases the folders.
func (c *Checkpoint) Close() error {
	err := c.dir.Close()
	if c.pages != nil {
		err = errors.Join(err, c.pages.Close())
	}
	if c.release != nil {
		err = errors.Join(err, c.release())
	}
	return err
}
