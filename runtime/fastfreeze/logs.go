//go:build linux

package fastfreeze

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/criu"
)

const (
	// logDir keeps CRIU's logs of failed operations: a bundle goes with its
	// task, which a client removes when its start has failed.
	logDir = "/run/fastmig/log"
	// logsKept bounds their number.
	logsKept = 100
)

// criuLog is CRIU's log of one operation.
type criuLog struct {
	*os.File
	// kept is where it goes if the operation fails; "" if it stays where it
	// is, as the client asked.
	kept string
}

// openLog makes CRIU's log: in work, if the client named a folder, else in the
// bundle. operation is "dump" or "restore".
func (e *Engine) openLog(work, operation string) (*criuLog, error) {
	l := &criuLog{}
	dir := work
	if dir == "" {
		dir = e.cfg.Bundle
		l.kept = LogPath(e.cfg.Namespace, e.cfg.ID, operation)
	} else if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make CRIU's work folder: %w", err)
	}
	var err error
	l.File, err = os.OpenFile(filepath.Join(dir, "criu-"+operation+".log"), os.O_CREATE|os.O_TRUNC|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make CRIU's log: %w", err)
	}
	return l, nil
}

// keep saves the log of a failed operation, and has the error name it.
func (l *criuLog) keep(err error) error {
	var failed *criu.Error
	if l.kept == "" || !errors.As(err, &failed) {
		return err
	}
	if kerr := KeepLog(l.Name(), l.kept); kerr != nil {
		return fmt.Errorf("%w (and its log could not be kept: %v)", err, kerr)
	}
	failed.Log = l.kept
	return err
}

// KeepLog copies a log into the folder of the kept ones, from which the oldest
// are removed.
func KeepLog(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	prune(filepath.Dir(to))
	return errors.Join(err, out.Close())
}

// prune removes the oldest logs of a folder; what cannot be removed stays.
func prune(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) <= logsKept {
		return
	}
	var logs []os.FileInfo
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && strings.HasSuffix(entry.Name(), ".log") {
			logs = append(logs, info)
		}
	}
	sort.Slice(logs, func(i, j int) bool { return logs[i].ModTime().After(logs[j].ModTime()) })
	for _, old := range logs[min(len(logs), logsKept):] {
		os.Remove(filepath.Join(dir, old.Name()))
	}
}

// LogPath is where the log of a container's failed operation is kept.
func LogPath(namespace, id, operation string) string {
	return filepath.Join(logDir, namespace, id+"-"+operation+".log")
}
