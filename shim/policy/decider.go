//go:build linux

package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/internal/config"
)

const (
	// maxAnswer is how much of a decider's output is looked at, in bytes, and of its
	// errors' end.
	maxAnswer = 4096
	// maxReason bounds an event's sentence: it goes into an argument.
	maxReason = 4096
	// pipeDelay is how long a decider that has ended may leave its output open: to
	// children that are being killed.
	pipeDelay = time.Second
	// deciderPath is all of a decider's environment.
	deciderPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Decider is a program on the host that decides how a service goes on.
type Decider struct {
	// Path is absolute and clean, and leads through no symbolic link.
	Path string
	// Timeout bounds a decision.
	Timeout time.Duration
}

// NewDecider is the decider of that path if the node's configuration allows it;
// else ErrPermissionDenied.
func NewDecider(c config.Deciders, path string) (Decider, error) {
	if !slices.Contains(c.Allow, path) {
		return Decider{}, fmt.Errorf("the decider %s is not allowed on this node: add it to allow under [deciders] in %s: %w",
			path, config.Path, errdefs.ErrPermissionDenied)
	}
	return Decider{Path: path, Timeout: time.Duration(c.Timeout)}, nil
}

// Decide runs the program as root and returns its answer. It gets the event as JSON, as
// its first argument and on its standard input. It, and what it leaves behind in its
// process group, is killed when it has answered, when Timeout is over or ctx ends.
//
// Errors name the step: ErrPermissionDenied for a program that others than root can
// change, ErrDeadlineExceeded, ErrInvalidArgument for an answer that is none.
func (d Decider) Decide(ctx context.Context, e Event) (Mode, error) {
	mode, err := d.decide(ctx, e)
	if err != nil {
		return "", fmt.Errorf("decider %s: %w", d.Path, err)
	}
	return mode, nil
}

func (d Decider) decide(ctx context.Context, e Event) (Mode, error) {
	if err := trusted(d.Path); err != nil {
		return "", err
	}
	if len(e.Reason) > maxReason {
		e.Reason = strings.ToValidUTF8(e.Reason[:maxReason], "")
	}
	event, err := json.Marshal(e)
	if err != nil {
		return "", fmt.Errorf("write the event: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()

	var answer head
	var complaint tail
	cmd := exec.Command(d.Path, string(event))
	cmd.Env = []string{deciderPath}
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(event)
	cmd.Stdout = &answer
	cmd.Stderr = &complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = pipeDelay
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start it: %w", err)
	}
	late := ended(ctx, cmd.Process.Pid)
	// It has not been waited for yet, so its number still means its group.
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	err = cmd.Wait()
	switch {
	case late != nil:
		return "", fmt.Errorf("it gave no answer within %v and was killed%s: %w", d.Timeout, complaint.words(), late)
	// Something that left its group holds the pipes: it has answered all the same.
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return "", fmt.Errorf("it failed: %w%s", err, complaint.words())
	}
	return ParseAnswer(answer.String())
}

// ended waits until a child has ended, without taking its status, or ctx has; then
// the error is ctx's.
func ended(ctx context.Context, pid int) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// trusted checks that nobody but root can change the program, or put another in its
// place: with that, it stays what was checked until it runs.
func trusted(path string) error {
	if !strings.HasPrefix(path, "/") {
		return fmt.Errorf("its path must be absolute: %w", errdefs.ErrInvalidArgument)
	}
	at, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /: %w", err)
	}
	defer func() { unix.Close(at) }()
	if err := rootsOwn(at, "/", unix.S_IFDIR); err != nil {
		return err
	}
	parts := strings.Split(path[1:], "/")
	for i, part := range parts {
		so := "/" + strings.Join(parts[:i+1], "/")
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("its path must be clean: %w", errdefs.ErrInvalidArgument)
		}
		next, err := unix.Openat(at, part, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", so, err)
		}
		unix.Close(at)
		at = next
		kind := uint32(unix.S_IFDIR)
		if i == len(parts)-1 {
			kind = unix.S_IFREG
		}
		if err := rootsOwn(at, so, kind); err != nil {
			return err
		}
	}
	return nil
}

func rootsOwn(fd int, path string, kind uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	refuse := func(what string) error {
		return fmt.Errorf("%s %s: %w", path, what, errdefs.ErrPermissionDenied)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return refuse("is a symbolic link: name the program by its real path")
	case st.Mode&unix.S_IFMT != kind && kind == unix.S_IFREG:
		return refuse("is not a regular file")
	case st.Mode&unix.S_IFMT != kind:
		return refuse("is not a folder")
	case st.Uid != 0:
		return refuse("does not belong to root: chown it")
	case st.Mode&0o022 != 0:
		return refuse("can be written by others than root: chmod go-w")
	case kind == unix.S_IFREG && st.Mode&0o111 == 0:
		return refuse("is not executable: chmod +x")
	}
	return nil
}

// head keeps the first bytes of what is written.
type head struct{ bytes.Buffer }

func (h *head) Write(p []byte) (int, error) {
	h.Buffer.Write(p[:min(len(p), maxAnswer-h.Len())])
	return len(p), nil
}

// tail keeps the last bytes.
type tail struct{ kept []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p[max(0, len(p)-maxAnswer):]...)
	t.kept = t.kept[max(0, len(t.kept)-maxAnswer):]
	return len(p), nil
}

// words are the tail as the end of an error's sentence.
func (t *tail) words() string {
	s := strings.TrimSpace(strings.ToValidUTF8(string(t.kept), "?"))
	if s == "" {
		return ""
	}
	return fmt.Sprintf(" (its last words: %s)", s)
}
