//go:build linux

package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// drainTime is how long the output of a program that has ended is read on: all that it
// wrote is there, what still holds the pipe is another's.
const drainTime = 200 * time.Millisecond

// Run runs a program in the running container and waits for its end. It returns the
// last limit bytes of what it wrote to stdout and stderr, also with an error, and its
// status, 128+n for signal n. stdin may be nil.
//
// When ctx ends, the program and its descendants are killed, and the error wraps
// ctx's. A descendant that outlives the program is not waited for.
func (c *Container) Run(ctx context.Context, spec *specs.Process, stdin io.Reader, limit int) (output []byte, status int, err error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, fmt.Errorf("run a program in container %s: %w", c.config.ID, err)
	}
	pipes, err := c.pipes(spec, stdin != nil)
	if err != nil {
		return nil, 0, fmt.Errorf("make pipes for a program: %w", err)
	}
	defer pipes.close()
	proc, err := NewProcess(spec, false, Stdio{Stdin: pipes.stdin, Stdout: pipes.stdout, Stderr: pipes.stdout}, nil)
	if err != nil {
		return nil, 0, err
	}
	if err := c.Start(proc); err != nil {
		return nil, 0, err
	}
	// Not waited for yet, it has its number.
	fd, fdErr := unix.PidfdOpen(proc.Pid, 0)
	if fdErr == nil {
		defer unix.Close(fd)
	}
	pipes.stdin, pipes.stdout = shut(pipes.stdin), shut(pipes.stdout)

	type result struct {
		ended Ended
		err   error
	}
	done := make(chan result, 1)
	go func() {
		ended, err := proc.Wait()
		done <- result{ended, err}
	}()
	if stdin != nil {
		in := pipes.in
		pipes.in = nil
		go func() {
			// A program need not read it.
			_, _ = io.Copy(in, stdin)
			in.Close()
		}()
		defer in.SetWriteDeadline(time.Unix(1, 0))
	}
	out := &tail{limit: limit}
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(out, pipes.out)
	}()
	finish := func() []byte {
		_ = pipes.out.SetReadDeadline(time.Now().Add(drainTime))
		<-read
		return out.kept
	}
	if fdErr != nil {
		_ = proc.Signal(unix.SIGKILL)
		<-done
		return finish(), 255, fmt.Errorf("pidfd of %d: %w", proc.Pid, fdErr)
	}

	select {
	case r := <-done:
		return finish(), r.ended.Status, r.err
	case <-ctx.Done():
	}
	c.killTree(member{proc.Pid, fd})
	gone := time.NewTimer(killTimeout)
	defer gone.Stop()
	select {
	case r := <-done:
		return finish(), r.ended.Status, fmt.Errorf("%v did not end in time and was killed: %w", proc.lp.Args[0], ctx.Err())
	case <-gone.C:
		return finish(), 255, fmt.Errorf("%v did not end in time, and is still there %v after SIGKILL: %w", proc.lp.Args[0], killTimeout, ctx.Err())
	}
}

// killTree ends a process and those that come from it, as far as they are in the
// container and have not been orphaned yet.
func (c *Container) killTree(root member) {
	tree := map[int]bool{root.pid: true}
	list := []member{root}
	// Stopped ones do not fork.
	_ = unix.PidfdSendSignal(root.fd, unix.SIGSTOP, nil, 0)
	for grown := true; grown && len(list) < batch; {
		grown = false
		pids, err := c.members()
		if err != nil {
			break
		}
		for _, pid := range pids {
			if tree[pid] || !tree[parent(pid)] {
				continue
			}
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue
			}
			// Asked again: now the answer is about what the pidfd holds.
			if found, _, err := c.still([]member{{pid, fd}}, true); err != nil || len(found) == 0 || !tree[parent(pid)] {
				if err != nil || len(found) > 0 {
					unix.Close(fd)
				}
				continue
			}
			_ = unix.PidfdSendSignal(fd, unix.SIGSTOP, nil, 0)
			tree[pid] = true
			list = append(list, member{pid, fd})
			grown = true
		}
	}
	_ = kill(list)
	release(list[1:])
}

// pipes are a program's stdin, and its stdout and stderr in one.
type pipes struct {
	stdin, in   *os.File // its end, ours
	out, stdout *os.File // ours, its
}

func (c *Container) pipes(spec *specs.Process, stdin bool) (_ *pipes, err error) {
	p := &pipes{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.out, p.stdout, err = os.Pipe(); err != nil {
		return nil, err
	}
	if stdin {
		if p.stdin, p.in, err = os.Pipe(); err != nil {
			return nil, err
		}
	}
	// So that it may open /dev/stdout and the like.
	cfg := c.lc.Config()
	uid, err := cfg.HostUID(int(spec.User.UID))
	if err != nil {
		return nil, err
	}
	gid, err := cfg.HostGID(int(spec.User.GID))
	if err != nil {
		return nil, err
	}
	return p, errors.Join(chown(p.stdin, uid, gid), chown(p.stdout, uid, gid))
}

func chown(f *os.File, uid, gid int) error {
	if f == nil {
		return nil
	}
	return f.Chown(uid, gid)
}

func shut(f *os.File) *os.File {
	if f != nil {
		f.Close()
	}
	return nil
}

func (p *pipes) close() {
	for _, f := range []*os.File{p.stdin, p.in, p.out, p.stdout} {
		shut(f)
	}
}

// tail keeps the last bytes of what is written.
type tail struct {
	limit int
	kept  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p[max(0, len(p)-t.limit):]...)
	t.kept = t.kept[max(0, len(t.kept)-t.limit):]
	return len(p), nil
}
