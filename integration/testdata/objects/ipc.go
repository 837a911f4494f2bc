package main

import (
	"bytes"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	objects["sysv-shm"] = sysvShm
	objects["sysv-sem"] = sysvSem
	objects["sysv-msg"] = sysvMsg
	objects["posix-mq"] = posixMQ
}

func sysvShm() (check, error) {
	id, err := unix.SysvShmGet(4711, 8192, unix.IPC_CREAT|unix.IPC_EXCL|0o600)
	if err != nil {
		return nil, err
	}
	mem, err := unix.SysvShmAttach(id, 0, 0)
	if err != nil {
		return nil, err
	}
	content := pattern(8192)
	copy(mem, content)
	return func(bool) error {
		if !bytes.Equal(mem, content) {
			return errors.New("the attached memory differs")
		}
		// Another attachment, by its key, is the same memory.
		again, err := unix.SysvShmGet(4711, 0, 0)
		if err := errors.Join(err, want("the id", again, id)); err != nil {
			return err
		}
		other, err := unix.SysvShmAttach(again, 0, unix.SHM_RDONLY)
		if err != nil {
			return err
		}
		defer func() { _ = unix.SysvShmDetach(other) }()
		mem[0]++
		content[0]++
		return want("the first byte seen through the other", other[0], content[0])
	}, nil
}

func sysvSem() (check, error) {
	id, _, errno := unix.Syscall(unix.SYS_SEMGET, 4711, 2, unix.IPC_CREAT|unix.IPC_EXCL|0o600)
	if errno != 0 {
		return nil, errno
	}
	const setVal, getVal = 16, 12
	for i, value := range []uintptr{5, 9} {
		if _, _, errno := unix.Syscall6(unix.SYS_SEMCTL, id, uintptr(i), setVal, value, 0, 0); errno != 0 {
			return nil, errno
		}
	}
	return func(bool) error {
		again, _, errno := unix.Syscall(unix.SYS_SEMGET, 4711, 2, 0)
		if errno != 0 {
			return errno
		}
		for i, value := range []uintptr{5, 9} {
			now, _, errno := unix.Syscall6(unix.SYS_SEMCTL, again, uintptr(i), getVal, 0, 0, 0)
			if errno != 0 {
				return errno
			}
			if err := want(fmt.Sprintf("semaphore %d", i), now, value); err != nil {
				return err
			}
		}
		return want("the id", again, id)
	}, nil
}

func sysvMsg() (check, error) {
	id, _, errno := unix.Syscall(unix.SYS_MSGGET, 4711, unix.IPC_CREAT|unix.IPC_EXCL|0o600, 0)
	if errno != 0 {
		return nil, errno
	}
	type message struct {
		kind int64
		text [5]byte
	}
	send := func() error {
		m := message{3, [5]byte{'h', 'e', 'l', 'l', 'o'}}
		if _, _, errno := unix.Syscall6(unix.SYS_MSGSND, id, uintptr(unsafe.Pointer(&m)), 5, 0, 0, 0); errno != 0 {
			return errno
		}
		return nil
	}
	if err := send(); err != nil {
		return nil, err
	}
	return func(bool) error {
		var m message
		if _, _, errno := unix.Syscall6(unix.SYS_MSGRCV, id, uintptr(unsafe.Pointer(&m)), 5, 3, unix.IPC_NOWAIT, 0); errno != 0 {
			return fmt.Errorf("no message: %w", errno)
		}
		return errors.Join(want("the message", string(m.text[:]), "hello"), send())
	}, nil
}

func posixMQ() (check, error) {
	name, err := unix.BytePtrFromString("objects")
	if err != nil {
		return nil, err
	}
	fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(name)), unix.O_CREAT|unix.O_RDWR|unix.O_NONBLOCK, 0o600, 0, 0, 0)
	if errno != 0 {
		return nil, errno
	}
	send := func() error {
		text := []byte("hello")
		if _, _, errno := unix.Syscall6(unix.SYS_MQ_TIMEDSEND, fd, uintptr(unsafe.Pointer(&text[0])), 5, 0, 0, 0); errno != 0 {
			return errno
		}
		return nil
	}
	if err := send(); err != nil {
		return nil, err
	}
	return func(bool) error {
		buf := make([]byte, 8192)
		n, _, errno := unix.Syscall6(unix.SYS_MQ_TIMEDRECEIVE, fd, uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0, 0)
		if errno != 0 {
			return fmt.Errorf("no message: %w", errno)
		}
		return errors.Join(want("the message", string(buf[:n]), "hello"), send())
	}, nil
}
