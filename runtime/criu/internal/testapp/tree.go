//go:build linux

package main

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// tree PATH: a folder with files of every kind that has a name.
func tree(_ *app, args []string) (string, error) {
	at := args[0] + "/"
	past := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	for _, step := range []func() error{
		func() error { return os.MkdirAll(at+"app/deep/deeper", 0o755) },
		func() error { return os.Mkdir(at+"app/empty", 0o700) },
		func() error { return os.WriteFile(at+"app/pid", []byte("1000\n"), 0o644) },
		func() error { return os.Chown(at+"app/pid", 77, 78) },
		func() error { return os.Chmod(at+"app/pid", 0o755|os.ModeSetuid) },
		func() error { return os.WriteFile(at+"app/deep/none", nil, 0o000) },
		func() error { return os.WriteFile(at+"app/deep/a\nfastmig: b", []byte("c"), 0o600) },
		func() error { return os.Link(at+"app/pid", at+"app/deep/deeper/pid") },
		func() error { return os.Symlink("/etc/../no/where", at+"app/link") },
		func() error { return os.Lchown(at+"app/link", 79, 80) },
		func() error { return unix.Mkfifo(at+"app/fifo", 0o620) },
		func() error { return holes(at + "app/holes") },
		func() error { return os.Chtimes(at+"app/pid", past, past) },
		func() error { return os.Chtimes(at+"app/empty", past, past) },
		func() error { return os.Chmod(at+"app/empty", 0o777|os.ModeSticky|os.ModeSetgid) },
		func() error { return os.Chown(at+"app/deep", 81, 82) },
	} {
		if err := step(); err != nil {
			return "", err
		}
	}
	return "", nil
}

// holes makes a file of 64 GiB with two pages in it.
func holes(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteAt([]byte("begin"), 1<<20); err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("end"), 64<<30-3)
	return err
}

// folder PATH: makes one.
func folder(_ *app, args []string) (string, error) { return "", os.Mkdir(args[0], 0o755) }

// mount PATH: an empty file system in memory on a new folder.
func mount(_ *app, args []string) (string, error) {
	if err := os.MkdirAll(args[0], 0o755); err != nil {
		return "", err
	}
	return "", unix.Mount("tmpfs", args[0], "tmpfs", 0, "")
}
