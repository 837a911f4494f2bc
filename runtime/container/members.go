//go:build linux

package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

const (
	// batch bounds how many processes are killed at a time: each takes a descriptor.
	batch = 256
	// patience is how long a killed process may be there until it is taken for frozen in
	// a cgroup of its own.
	patience = time.Second
	// pollEvery is how often, in ms, a wait for processes looks at its context.
	pollEvery = 20
)

// member is a process of the container, held by its pidfd.
type member struct {
	pid, fd int
}

// KillOthers ends all processes of the container but init, those in keep and the
// descendants of those in keep, numbers as this process sees them. It freezes the
// container meanwhile, so that none gets away by forking, and returns when they are
// gone. A container that was paused stays so.
//
// When ctx ends, so does the wait: its error, wrapped.
func (c *Container) KillOthers(ctx context.Context, init int, keep []int) error {
	for {
		done, err := c.killOthers(ctx, init, keep)
		if err != nil {
			return fmt.Errorf("end the other processes of container %s: %w", c.config.ID, err)
		}
		if done {
			return nil
		}
	}
}

// killOthers is one round; done says that it has found all of them.
func (c *Container) killOthers(ctx context.Context, init int, keep []int) (done bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	state, err := c.group.GetFreezerState()
	if err != nil {
		return false, fmt.Errorf("look whether it is paused: %w", err)
	}
	paused := state == cgroups.Frozen
	frozen := paused
	if !paused {
		// Without it a round may miss what is being forked, and is followed by another.
		if err := c.group.Freeze(cgroups.Frozen); err == nil {
			frozen = true
		}
	}
	victims, all, err := c.others(init, keep)
	defer release(victims)
	if err == nil {
		err = kill(victims)
	}
	if frozen && !paused {
		if thaw := c.group.Freeze(cgroups.Thawed); thaw != nil && !errors.Is(thaw, os.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("thaw it: %w", thaw))
		}
	}
	if err != nil {
		return false, err
	}
	if paused {
		c.moveOut(victims)
	}
	if err := c.await(ctx, victims); err != nil {
		return false, err
	}
	return len(victims) == 0 || frozen && all, nil
}

// others finds the processes to end; all says that there are no more of them.
func (c *Container) others(init int, keep []int) (victims []member, all bool, err error) {
	pids, err := c.members()
	if err != nil {
		return nil, false, err
	}
	parents := make(map[int]int, len(pids))
	for _, pid := range pids {
		parents[pid] = parent(pid)
	}
	kept := map[int]bool{}
	for _, pid := range keep {
		kept[pid] = true
	}
	all = true
	for _, pid := range pids {
		if pid == init || descends(pid, kept, parents) {
			continue
		}
		if len(victims) == batch {
			all = false
			break
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return victims, false, fmt.Errorf("pidfd of %d: %w", pid, err)
		}
		victims = append(victims, member{pid, fd})
	}
	return c.still(victims, all)
}

// still drops those that were gone, and whose number was another's, when their
// pidfd was taken: a number that is in the cgroup after that is the one that was.
func (c *Container) still(list []member, all bool) ([]member, bool, error) {
	pids, err := c.members()
	if err != nil {
		return list, false, err
	}
	now := make(map[int]bool, len(pids))
	for _, pid := range pids {
		now[pid] = true
	}
	var out []member
	for _, m := range list {
		if now[m.pid] {
			out = append(out, m)
		} else {
			unix.Close(m.fd)
		}
	}
	return out, all, nil
}

// members are the numbers of the processes in the cgroup, which may be gone already.
func (c *Container) members() ([]int, error) {
	pids, err := c.group.GetAllPids()
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("list its processes: %w", err)
	}
	return pids, nil
}

// descends says whether a process is one of roots or comes from one.
func descends(pid int, roots map[int]bool, parents map[int]int) bool {
	// Numbers may have been read at different times: never follow them in a circle.
	for range len(parents) + 1 {
		if roots[pid] {
			return true
		}
		next, member := parents[pid]
		if !member {
			return false
		}
		pid = next
	}
	return false
}

// parent is a process's parent's number; 0: it is gone.
func parent(pid int) int {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// PID (NAME) STATE PPID …, where NAME may be anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(string(fields[1]))
	return ppid
}

func kill(list []member) error {
	for _, m := range list {
		if err := unix.PidfdSendSignal(m.fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill %d: %w", m.pid, err)
		}
	}
	return nil
}

func release(list []member) {
	for _, m := range list {
		unix.Close(m.fd)
	}
}

// moveOut takes killed processes out of the frozen cgroup: with cgroup v1 they do not
// die in it. Frozen and killed, they have their numbers until then. What cannot be
// moved is seen by the wait for it.
func (c *Container) moveOut(list []member) {
	folder := c.group.Path("freezer")
	if folder == "" || cgroups.IsCgroup2UnifiedMode() {
		return
	}
	outside := filepath.Join(filepath.Dir(folder), "cgroup.procs")
	for _, m := range list {
		if unix.PidfdSendSignal(m.fd, 0, nil, 0) == nil {
			_ = os.WriteFile(outside, []byte(strconv.Itoa(m.pid)), 0)
		}
	}
}

// await returns when all are gone.
func (c *Container) await(ctx context.Context, list []member) error {
	left := append([]member(nil), list...)
	begin, moved := time.Now(), false
	for len(left) > 0 {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%d of them, such as %d, are still there after SIGKILL: %w", len(left), left[0].pid, err)
		}
		if !moved && time.Since(begin) > patience {
			c.moveOut(left)
			moved = true
		}
		fds := make([]unix.PollFd, len(left))
		for i, m := range left {
			fds[i] = unix.PollFd{Fd: int32(m.fd), Events: unix.POLLIN}
		}
		if _, err := unix.Poll(fds, pollEvery); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for killed processes: %w", err)
		}
		var next []member
		for i, m := range left {
			if fds[i].Revents == 0 {
				next = append(next, m)
			}
		}
		left = next
	}
	return nil
}

// OOMKills counts the processes in the container's cgroup that were killed because
// its memory ran out.
func (c *Container) OOMKills() (uint64, error) {
	n, err := c.group.OOMKillCount()
	if err != nil {
		return 0, fmt.Errorf("count the out-of-memory kills of container %s: %w", c.config.ID, err)
	}
	return n, nil
}
