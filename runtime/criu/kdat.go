//go:build linux

package criu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// CRIU keeps what it found out about the kernel in a file of a few hundred bytes, headed by
// two magic numbers, the second of which is of its own build; it refuses any other. The
// file must not outlive a boot.

// maxProbe bounds the cache file.
const maxProbe = 64 << 10

// probe returns the kernel probe as a sealed memfd, from memory, from the cache file or
// by asking CRIU outside of any container.
func (t *Tool) probe(ctx context.Context) (*os.File, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kdat != nil {
		return t.kdat, nil
	}
	name, err := t.probeName()
	if err != nil {
		return nil, err
	}
	if data, err := readProbe(name); err == nil {
		t.kdat, err = sealedMemfd(data)
		return t.kdat, err
	}
	data, err := t.askKernel(ctx)
	if err != nil {
		return nil, err
	}
	// A cache that cannot be written costs time, nothing else.
	_ = writeProbe(name, data)
	t.kdat, err = sealedMemfd(data)
	return t.kdat, err
}

// probeName adds to the cache's name what the probe depends on: the boot and the binary.
func (t *Tool) probeName() (string, error) {
	if t.config.Cache == "" {
		return "", nil
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot's id: %w", err)
	}
	dir, err := rawFd(t.config.Folder)
	if err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, binaryName, &st, 0); err != nil {
		return "", fmt.Errorf("look at CRIU's binary: %w", err)
	}
	return fmt.Sprintf("%s-%s-%x-%x", t.config.Cache, strings.TrimSpace(string(boot)), st.Size, st.Mtim.Nano()), nil
}

// askKernel runs CRIU for its feature check, which makes the probe and nothing else.
func (t *Tool) askKernel(ctx context.Context) ([]byte, error) {
	fd, err := unix.MemfdCreate("criu-kdat", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file for CRIU's kernel probe: %w", err)
	}
	fresh := os.NewFile(uintptr(fd), "criu-kdat")
	defer func() { _ = fresh.Close() }()
	logFd, err := unix.MemfdCreate("criu-log", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a log for CRIU's kernel probe: %w", err)
	}
	log := os.NewFile(uintptr(logFd), "criu-log")
	defer func() { _ = log.Close() }()

	s, err := t.newSession(Place{}, log)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if _, err := s.tell("FASTMIG_KDAT_NEW_FD", fresh); err != nil {
		return nil, err
	}
	req := &rpc.CriuReq{Type: ptr(rpc.CriuReqType_FEATURE_CHECK), Features: &rpc.CriuFeatures{MemTrack: ptr(true)}}
	o, err := s.run(ctx, req, nil, func(p *process) { _ = p.signal(unix.SIGKILL) })
	if err != nil {
		return nil, fmt.Errorf("let CRIU look at the kernel: %w", err)
	}
	if !o.resp.GetSuccess() {
		return nil, newError(ctx, "let CRIU look at the kernel", o, log, 0)
	}
	data := make([]byte, maxProbe)
	n, err := fresh.ReadAt(data, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read CRIU's kernel probe: %w", err)
	}
	if n == 0 || n == maxProbe {
		return nil, fmt.Errorf("read CRIU's kernel probe: CRIU wrote %d bytes: %w", n, errdefs.ErrInternal)
	}
	return data[:n], nil
}

// readProbe takes only a file that root alone can have written.
func readProbe(name string) ([]byte, error) {
	if name == "" {
		return nil, os.ErrNotExist
	}
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	fd, err := rawFd(f)
	if err != nil {
		return nil, err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Uid != 0 || st.Mode&0o022 != 0 || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 || st.Size >= maxProbe {
		return nil, os.ErrInvalid
	}
	return io.ReadAll(f)
}

func writeProbe(name string, data []byte) error {
	if name == "" {
		return nil
	}
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(name)+"-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// sealedMemfd is a file that whoever holds it can only read. CRIU wants its cache on a tmpfs,
// which a memfd is.
func sealedMemfd(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("criu-kdat", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("keep CRIU's kernel probe: %w", err)
	}
	f := os.NewFile(uintptr(fd), "criu-kdat")
	_, err = f.Write(data)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("keep CRIU's kernel probe: %w", err)
	}
	return f, nil
}
