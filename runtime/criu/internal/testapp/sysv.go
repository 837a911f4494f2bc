//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sysvSize is the size of the shared memory: no whole number of pages.
const sysvSize = 3*4096 + 56

// The parts of sys/sem.h and sys/msg.h that the commands need.
const (
	semGetAll = 13
	semSetAll = 17
	msgCopy   = 0o40000
)

type message struct {
	kind int64
	text [64]byte
}

// sysv KEY TEXT: one System V object of each kind, with the text in the shared memory, which
// stays mapped, and in two messages; the identifiers.
func sysv(a *app, args []string) (string, error) {
	key, text := number(args, 0), args[1]
	shm, err := unix.SysvShmGet(key, sysvSize, unix.IPC_CREAT|unix.IPC_EXCL|0o640)
	if err != nil {
		return "", fmt.Errorf("shmget: %w", err)
	}
	memory, err := unix.SysvShmAttach(shm, 0, 0)
	if err != nil {
		return "", fmt.Errorf("shmat: %w", err)
	}
	copy(memory[sysvSize-len(text)-1:], text)
	a.held = append(a.held, memory)

	sem, _, errno := unix.Syscall(unix.SYS_SEMGET, uintptr(key), 3, unix.IPC_CREAT|unix.IPC_EXCL|0o600)
	values := [4]uint16{7, 0, 9}
	if errno == 0 {
		_, _, errno = unix.Syscall6(unix.SYS_SEMCTL, sem, 0, semSetAll, uintptr(unsafe.Pointer(&values)), 0, 0)
	}
	if errno != 0 {
		return "", fmt.Errorf("semget: %w", errno)
	}

	msg, _, errno := unix.Syscall(unix.SYS_MSGGET, uintptr(key), unix.IPC_CREAT|unix.IPC_EXCL|0o600, 0)
	for kind := int64(1); errno == 0 && kind <= 2; kind++ {
		m := message{kind: kind}
		n := copy(m.text[:], text)
		_, _, errno = unix.Syscall6(unix.SYS_MSGSND, msg, uintptr(unsafe.Pointer(&m)), uintptr(n), unix.IPC_NOWAIT, 0, 0)
	}
	if errno != 0 {
		return "", fmt.Errorf("msgget: %w", errno)
	}
	return fmt.Sprint(shm, sem, msg), nil
}

// sysvread KEY: what the objects with this key are and hold, without a change.
func sysvRead(a *app, args []string) (string, error) {
	key := number(args, 0)
	shm, err := unix.SysvShmGet(key, 0, 0)
	if err != nil {
		return "", fmt.Errorf("shmget: %w", err)
	}
	again, err := unix.SysvShmAttach(shm, 0, unix.SHM_RDONLY)
	if err != nil {
		return "", fmt.Errorf("shmat: %w", err)
	}
	text := string(bytes.Trim(again, "\x00"))
	if err := unix.SysvShmDetach(again); err != nil {
		return "", fmt.Errorf("shmdt: %w", err)
	}
	mapped := "unmapped"
	for _, held := range a.held {
		if b, ok := held.([]byte); ok && len(b) == sysvSize {
			mapped = string(bytes.Trim(b, "\x00"))
		}
	}

	sem, _, errno := unix.Syscall(unix.SYS_SEMGET, uintptr(key), 0, 0)
	var values [4]uint16
	if errno == 0 {
		_, _, errno = unix.Syscall6(unix.SYS_SEMCTL, sem, 0, semGetAll, uintptr(unsafe.Pointer(&values)), 0, 0)
	}
	if errno != 0 {
		return "", fmt.Errorf("semget: %w", errno)
	}

	msg, _, errno := unix.Syscall(unix.SYS_MSGGET, uintptr(key), 0, 0)
	if errno != 0 {
		return "", fmt.Errorf("msgget: %w", errno)
	}
	var queue string
	for i := range uintptr(8) {
		var m message
		n, _, errno := unix.Syscall6(unix.SYS_MSGRCV, msg, uintptr(unsafe.Pointer(&m)), uintptr(len(m.text)), i, msgCopy|unix.IPC_NOWAIT, 0)
		if errors.Is(errno, unix.ENOMSG) {
			break
		}
		if errno != 0 {
			return "", fmt.Errorf("msgrcv: %w", errno)
		}
		queue += fmt.Sprintf(" %d:%s", m.kind, m.text[:n])
	}
	return fmt.Sprintf("%d %d %d %s %s %v%s", shm, sem, msg, text, mapped, values[:3], queue), nil
}

// sysvremove SHM: removes the shared memory of this identifier when nobody maps it any more.
func sysvRemove(_ *app, args []string) (string, error) {
	_, err := unix.SysvShmCtl(number(args, 0), unix.IPC_RMID, nil)
	return "", err
}

// queue NAME: an open POSIX message queue.
func queue(a *app, args []string) (string, error) {
	name, err := unix.BytePtrFromString(args[0])
	if err != nil {
		return "", err
	}
	fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(name)), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600, 0, 0, 0)
	if errno != 0 {
		return "", errno
	}
	a.held = append(a.held, fd)
	return fmt.Sprint(fd), nil
}

// posix NAME TEXT: POSIX shared memory of 16 MiB, nearly all of it a hole, with the text at its
// end; it stays mapped. Without TEXT: what is in the file and in the mapping.
func posix(a *app, args []string) (string, error) {
	const size = 16 << 20
	f, err := os.OpenFile("/dev/shm/"+args[0], os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	if len(args) == 1 {
		b := make([]byte, 64)
		_, err := f.ReadAt(b, size-64)
		mapped, _ := a.held[0].([]byte)
		return string(bytes.Trim(b, "\x00")) + " " + string(bytes.Trim(mapped[size-64:], "\x00")), err
	}
	if err := f.Truncate(size); err != nil {
		return "", err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return "", err
	}
	copy(b[size-32:], args[1])
	a.held = append(a.held, b)
	return "", nil
}
