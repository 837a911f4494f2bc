//go:build linux

package preserve

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// xattrRecord begins an attribute's name in an archive.
	xattrRecord = "SCHILY.xattr."

	capabilityXattr = "security.capability"
	accessACL       = "system.posix_acl_access"
	defaultACL      = "system.posix_acl_default"
)

// travels says whether an attribute is the container's own: labels of security
// modules, and what file systems keep for themselves, are its place's.
func travels(name string) bool {
	switch name {
	case capabilityXattr, accessACL, defaultACL:
		return true
	}
	return strings.HasPrefix(name, "user.")
}

// readXattrs are a file's attributes as an archive has them.
func (t *tree) readXattrs(fd int) (map[string]string, error) {
	names, err := sized(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("list its attributes: %w", err)
	}
	var records map[string]string
	total := 0
	for name := range strings.SplitSeq(string(names), "\x00") {
		if !travels(name) {
			continue
		}
		value, err := sized(func(b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
		if errors.Is(err, unix.ENODATA) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("read its attribute %s: %w", name, err)
		}
		if value, err = t.translate(name, value, false); err != nil {
			return nil, fmt.Errorf("its attribute %s: %w", name, err)
		}
		if total += len(name) + len(value); total > maxXattrs {
			return nil, fmt.Errorf("it has more than %d bytes of attributes: %w", maxXattrs, errdefs.ErrFailedPrecondition)
		}
		if records == nil {
			records = make(map[string]string)
		}
		records[xattrRecord+name] = string(value)
	}
	return records, nil
}

// sized calls f with as much room as it asks for.
func sized(f func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := f(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		buf := make([]byte, n)
		if n, err = f(buf); !errors.Is(err, unix.ERANGE) {
			return buf[:max(n, 0)], err
		}
	}
}

// xattrsOf are those of an archive's record.
func xattrsOf(records map[string]string) (map[string]string, error) {
	out := map[string]string{}
	total := 0
	for key, value := range records {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok {
			continue
		}
		if !travels(name) {
			return nil, fmt.Errorf("it has an attribute %q, which does not travel: %w", name, errdefs.ErrDataLoss)
		}
		total += len(name) + len(value)
		out[name] = value
	}
	if total > maxXattrs {
		return nil, fmt.Errorf("it has more than %d bytes of attributes: %w", maxXattrs, errdefs.ErrDataLoss)
	}
	return out, nil
}

// writeXattrs sets those for which which is true. One of a file that was just made,
// which its folder gave it, is removed.
func (t *tree) writeXattrs(fd int, xattrs map[string]string, which func(string) bool) error {
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		if !which(name) {
			continue
		}
		value, err := t.translate(name, []byte(xattrs[name]), true)
		if err == nil {
			err = unix.Fsetxattr(fd, name, value, 0)
		}
		if err != nil {
			return fmt.Errorf("set its attribute %s: %w", name, err)
		}
	}
	return nil
}

// clearACLs takes off a new file what its folder gave it.
func clearACLs(fd int) error {
	for _, name := range []string{accessACL, defaultACL} {
		err := unix.Fremovexattr(fd, name)
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EACCES) {
			return fmt.Errorf("remove its attribute %s: %w", name, err)
		}
	}
	return nil
}

// translate gives a value that has ids in it the other side's: the archive has the
// container's, and we see the host's.
func (t *tree) translate(name string, value []byte, out bool) ([]byte, error) {
	if !t.mapped {
		return value, nil
	}
	switch name {
	case capabilityXattr:
		return t.translateCapability(value, out)
	case accessACL, defaultACL:
		return t.translateACL(value, out)
	}
	return value, nil
}

// translateCapability: the capabilities that a user namespace's root gives a file
// hold in it alone, and have its root's id behind them (capabilities(7)).
func (t *tree) translateCapability(value []byte, out bool) ([]byte, error) {
	const (
		version2, version3 = 0x02000000, 0x03000000
		size2, size3       = 20, 24
		flags              = 0x00ffffff
	)
	root, ok := t.uids.toOutside(0)
	if !ok {
		return nil, fmt.Errorf("the container's user namespace has no root: %w", errdefs.ErrFailedPrecondition)
	}
	le := binary.LittleEndian
	switch {
	case out && len(value) == size2 && le.Uint32(value)&^flags == version2:
		word := le.Uint32(value)&flags | version3
		return le.AppendUint32(append(le.AppendUint32(nil, word), value[4:]...), root), nil
	case !out && len(value) == size3 && le.Uint32(value)&^flags == version3 && le.Uint32(value[size2:]) == root:
		word := le.Uint32(value)&flags | version2
		return append(le.AppendUint32(nil, word), value[4:size2]...), nil
	}
	return nil, fmt.Errorf("it is not of the container's user namespace: %w", errdefs.ErrFailedPrecondition)
}

// translateACL: a version, then entries of a tag, permissions and an id (acl(5)).
func (t *tree) translateACL(value []byte, out bool) ([]byte, error) {
	const (
		head, entry    = 4, 8
		aUser, aGroup  = 0x02, 0x08
		tagAt, entryID = 0, 4
	)
	if len(value) < head || (len(value)-head)%entry != 0 {
		return nil, fmt.Errorf("it is no access control list: %w", errdefs.ErrDataLoss)
	}
	value = slices.Clone(value)
	for e := value[head:]; len(e) > 0; e = e[entry:] {
		var ids idMap
		switch binary.LittleEndian.Uint16(e[tagAt:]) {
		case aUser:
			ids = t.uids
		case aGroup:
			ids = t.gids
		default:
			continue
		}
		id := binary.LittleEndian.Uint32(e[entryID:])
		other, ok := ids.toInside(id)
		if out {
			other, ok = ids.toOutside(id)
		}
		if !ok {
			return nil, fmt.Errorf("id %d has no number on the other side of the container's user namespace: %w", id, errdefs.ErrFailedPrecondition)
		}
		binary.LittleEndian.PutUint32(e[entryID:], other)
	}
	return value, nil
}
