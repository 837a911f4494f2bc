package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

const (
	filesImage = "files.img"
	// imageHead is the length of the two magic numbers before the entries.
	imageHead = 8
)

// RearmTimers mends what CRIU's images in the folder dir say of periodic
// timerfds that expired before the dump and were not read since. The kernel
// shows those without a next expiry (timerfd_create(2): it goes on at the
// read), and CRIU would give them back disarmed, never to tick again. They get
// their whole interval.
//
// Errors: DataLoss if the image is damaged.
func RearmTimers(dir *os.File) error {
	if err := rearmTimers(dir); err != nil {
		return fmt.Errorf("mend the timers in %s: %w", dir.Name(), err)
	}
	return nil
}

func rearmTimers(dir *os.File) error {
	var body bytes.Buffer
	changed := false
	err := readImage(dir, filesImage, &fdinfo.FileEntry{}, func(e *fdinfo.FileEntry) error {
		if t := e.GetTfd(); t != nil && t.GetVsec() == 0 && t.GetVnsec() == 0 && (t.GetIsec() != 0 || t.GetInsec() != 0) && t.GetTicks() != 0 {
			t.Vsec, t.Vnsec = t.Isec, t.Insec
			changed = true
		}
		entry, err := proto.Marshal(e)
		if err != nil {
			return err
		}
		body.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(entry))))
		body.Write(entry)
		return nil
	})
	if err != nil || !changed {
		return err
	}
	old, _, err := openBeneath(dir, filesImage)
	if err != nil {
		return withKind(err)
	}
	defer old.Close()
	var head [imageHead]byte
	if _, err := old.ReadAt(head[:], 0); err != nil {
		return withKind(err)
	}
	return replaceFile(dir, filesImage, append(head[:], body.Bytes()...))
}

// replaceFile gives a file of the folder another content, as a whole.
func replaceFile(dir *os.File, name string, content []byte) error {
	tmp := name + ".new"
	fd, err := unix.Openat(int(dir.Fd()), tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make %s: %w", tmp, withKind(err))
	}
	f := os.NewFile(uintptr(fd), tmp)
	_, err = f.Write(content)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", tmp, withKind(err))
	}
	if err := unix.Renameat(int(dir.Fd()), tmp, int(dir.Fd()), name); err != nil {
		return fmt.Errorf("replace %s: %w", name, withKind(err))
	}
	return nil
}
