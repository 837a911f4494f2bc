// Package workloads holds the programs of the workload matrix: real servers
// and small programs, each with a way to put state into it and to tell later
// whether it is still the same, running process with all of its state.
package workloads

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// Workload is one row of the matrix.
type Workload struct {
	Name  string
	Image images.Image
	// Args are the command; empty means the image's own.
	Args     []string
	Env      []string
	Terminal bool
	// Impossible is what CRIU says when it cannot checkpoint the workload at
	// all; the row then stays red, and the service must outlive the attempt.
	Impossible string
	// Fill waits until the container serves and puts state into it. The
	// returned function checks any container that continues it: that the
	// state is there, that it lived in memory all the time (a program that
	// was started again is told from one that goes on), and that the service
	// still serves and counts. Both wait as long as ctx allows.
	Fill func(ctx context.Context, c *harness.Container) (Check, error)
}

// Check verifies the state in the container or says what is wrong with it.
type Check func(ctx context.Context, c *harness.Container) error

// Options are the run options of the workload's container.
func (w Workload) Options() harness.RunOptions {
	return harness.RunOptions{Image: w.Image.Ref(), Args: w.Args, Env: w.Env, Terminal: w.Terminal}
}

// All are the rows of the matrix, in the order in which they are shown.
var All = []Workload{
	{Name: "shell loop", Image: images.Shell, Args: []string{"bash", images.Tick, tickFile}, Fill: fillTick},
	{Name: "busybox-static", Image: images.Busybox, Args: []string{"sh", images.Tick, tickFile}, Fill: fillTick},
	{Name: "bash on a terminal", Image: images.Shell, Args: []string{"bash", "--norc", "-i"}, Terminal: true, Fill: fillTerminal},
	{Name: "tree of 16 processes", Image: images.Shell, Args: []string{"bash", images.Tree, treeDir}, Fill: fillTree},
	{Name: "redis-server", Image: images.Redis, Fill: fillRedis},
	{Name: "nginx, 2 workers", Image: images.Nginx, Fill: fillNginx},
	{Name: "memcached, 4 threads", Image: images.Memcached, Fill: fillMemcached},
	{Name: "PostgreSQL", Image: images.Postgres, Fill: fillPostgres},
	{Name: "Python with threads", Image: images.Python, Fill: fillService(askByShell)},
	{Name: "Node.js", Image: images.Node, Fill: fillService(askByShell)},
	{Name: "Java", Image: images.Java, Fill: fillService(askByShell)},
	// Go's listeners are MPTCP sockets where the kernel has them.
	{Name: "static Go, scratch image", Image: images.GoScratch, Env: []string{"GODEBUG=multipathtcp=0"}, Fill: fillService(askBySelf)},
	{Name: "static Go, MPTCP", Image: images.GoScratch, Fill: fillService(askBySelf), Impossible: "Unsupported proto 262"},
}

// progressTimeout is how long a service may take to show that it goes on.
const progressTimeout = 20 * time.Second

// mark is a program's random value, made at its start and kept in memory, and
// a count that goes up while it runs.
type mark struct {
	nonce string
	count int
}

// parseMark reads "NONCE COUNT".
func parseMark(text string) (mark, error) {
	nonce, count, ok := strings.Cut(strings.TrimSpace(text), " ")
	n, err := strconv.Atoi(count)
	if !ok || err != nil || nonce == "" {
		return mark{}, fmt.Errorf("no mark in %q", text)
	}
	return mark{nonce, n}, nil
}

// continues checks that read's program is the one of old and still counts.
func (old mark) continues(ctx context.Context, read func(context.Context) (mark, error)) error {
	ctx, cancel := context.WithTimeout(ctx, progressTimeout)
	defer cancel()
	first := old
	return harness.WaitFor(ctx, "the program to count on", func(ctx context.Context) (bool, error) {
		now, err := read(ctx)
		switch {
		case err != nil:
			return false, err
		case now.nonce != old.nonce:
			return false, harness.Final(fmt.Errorf("another program answers: it says %s, not %s; it was started again", now.nonce, old.nonce))
		case now.count < old.count:
			return false, harness.Final(fmt.Errorf("the count fell from %d to %d", old.count, now.count))
		case first == old:
			// The count at the first look may be from before the checkpoint.
			first.count = now.count
			return false, fmt.Errorf("the count is %d", now.count)
		}
		return now.count > first.count, fmt.Errorf("the count stays at %d", now.count)
	})
}

// eventually calls f until it gives no error.
func eventually[T any](ctx context.Context, what string, f func(context.Context) (T, error)) (value T, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = harness.WaitFor(ctx, what, func(ctx context.Context) (bool, error) {
		var err error
		value, err = f(ctx)
		return err == nil, err
	})
	return value, err
}

// expect compares a service's answer.
func expect(what, got, want string) error {
	if got != want {
		return fmt.Errorf("%s is %q, not %q", what, got, want)
	}
	return nil
}
