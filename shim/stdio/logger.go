//go:build linux

package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// loggerStopTimeout gives a logging program ten seconds to flush and some to
// exit after SIGTERM.
const loggerStopTimeout = 12 * time.Second

// logger is a program that takes a process's output: stdout at descriptor 3,
// stderr at 4; it closes (binary) or writes a byte to (binary-v2) 5 when it is
// ready.
type logger struct {
	cmd                *exec.Cmd
	stdout, stderr     *os.File // the writing ends
	outReader, errRead *os.File
	keptOut, keptErr   *os.File // hold the writing ends between two lives, nil if not kept
	readers            sync.Once
}

// hold keeps the program's input open, if it is still.
func (l *logger) hold() {
	if l.keptOut != nil {
		return
	}
	out, err := duplicate(l.stdout)
	if err != nil {
		return
	}
	errs, err := duplicate(l.stderr)
	if err != nil {
		out.Close()
		return
	}
	l.keptOut, l.keptErr = out, errs
}

// letGo undoes hold.
func (l *logger) letGo() {
	if l.keptOut != nil {
		l.keptOut.Close()
		l.keptErr.Close()
		l.keptOut, l.keptErr = nil, nil
	}
}

// again gives new writing ends of the kept program; nil if it is not kept, or
// does not read any more.
func (l *logger) again() (out, errs *os.File, err error) {
	if l.keptOut == nil {
		return nil, nil, nil
	}
	poll := []unix.PollFd{{Fd: int32(l.keptOut.Fd())}}
	if n, err := unix.Poll(poll, 0); err == nil && n > 0 && poll[0].Revents&unix.POLLERR != 0 {
		return nil, nil, nil
	}
	// The former process may have left them as one that polls has them.
	for _, f := range []*os.File{l.keptOut, l.keptErr} {
		if err := unix.SetNonblock(int(f.Fd()), false); err != nil {
			return nil, nil, fmt.Errorf("make the logging program's pipe block: %w", err)
		}
	}
	if out, err = duplicate(l.keptOut); err != nil {
		return nil, nil, err
	}
	if errs, err = duplicate(l.keptErr); err != nil {
		out.Close()
		return nil, nil, err
	}
	return out, errs, nil
}

func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("hold the logging program's pipe: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// startLogger runs the program of a binary:// URI, whose query becomes its
// arguments, and blocks until it is ready or ctx ends.
func startLogger(ctx context.Context, u *url.URL, ns, id string) (_ *logger, err error) {
	var args []string
	for k, vs := range u.Query() {
		args = append(args, k)
		if len(vs) > 0 {
			args = append(args, vs[0])
		}
	}
	l := &logger{cmd: exec.Command(u.Path, args...)}
	l.cmd.Env = append(os.Environ(), "CONTAINER_ID="+id, "CONTAINER_NAMESPACE="+ns)

	var files []*os.File
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
		}
	}()
	if l.outReader, l.stdout, err = os.Pipe(); err != nil {
		return nil, fmt.Errorf("make the logging program's pipe: %w", err)
	}
	files = append(files, l.outReader, l.stdout)
	if l.errRead, l.stderr, err = os.Pipe(); err != nil {
		return nil, fmt.Errorf("make the logging program's pipe: %w", err)
	}
	files = append(files, l.errRead, l.stderr)
	ready, readyW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make the logging program's pipe: %w", err)
	}
	defer ready.Close()

	l.cmd.ExtraFiles = []*os.File{l.outReader, l.errRead, readyW}
	if err := l.cmd.Start(); err != nil {
		readyW.Close()
		return nil, fmt.Errorf("failed to start binary process: %w", err)
	}
	readyW.Close()

	stop := context.AfterFunc(ctx, func() { ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	n, err := ready.Read(make([]byte, 1))
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err == nil && n == 0 && u.Scheme == "binary-v2" {
		err = fmt.Errorf("it ended, or closed its ready descriptor, without being ready: %w", errdefs.ErrUnavailable)
	}
	if err != nil {
		l.cmd.Process.Kill()
		l.cmd.Wait()
		return nil, fmt.Errorf("wait for the logging program %s: %w", u.Path, err)
	}
	return l, nil
}

func (l *logger) closeReaders() {
	l.readers.Do(func() {
		l.outReader.Close()
		l.errRead.Close()
	})
}

// stop ends the program, which has seen the end of its input by now.
func (l *logger) stop() {
	l.stdout.Close()
	l.stderr.Close()
	l.closeReaders()
	if err := l.cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		log.L.WithError(err).Warn("end the logging program")
	}
	timer := time.AfterFunc(loggerStopTimeout, func() {
		log.L.Warn("the logging program does not end: killing it")
		l.cmd.Process.Kill()
	})
	defer timer.Stop()
	l.cmd.Wait()
}
