package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/shim/api"
)

// servicePort is where the small service listens, on the loopback of the node's
// machine: what is measured includes no network of its own.
const servicePort = 8080

// smallService is one process that answers requests, and so tells by itself that
// it runs.
var smallService = program{
	image:       images.Busybox,
	args:        []string{"httpd", "-f", "-p", "127.0.0.1:" + strconv.Itoa(servicePort), "-h", "/bin"},
	processes:   1,
	hostNetwork: true,
}

// standby is the program in a container that starts without it.
func (p program) standby() program {
	p.annotations = map[string]string{"io.fastmig.startup": api.StartStandby, "io.fastmig.on-exit": "default"}
	return p
}

// serviceAddress is where smallService answers.
var serviceAddress = net.JoinHostPort("127.0.0.1", strconv.Itoa(servicePort))

// call makes a request of the FastMig interface of a container and decodes the
// answer, if one is wanted. The connection is made for it, as curl does.
func (b *bench) call(ctx context.Context, id, path string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	got, err := b.node.Interface(id).Do(ctx, http.MethodPost, path, string(body))
	if err != nil {
		return fmt.Errorf("ask %s for %s: %w", id, path, err)
	}
	if got.Status != http.StatusOK {
		return fmt.Errorf("ask %s for %s: status %d: %s", id, path, got.Status, strings.TrimSpace(got.Text))
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal([]byte(got.Text), answer)
}

// asker is a client of a service over TCP, in a network namespace.
type asker struct {
	// in calls a function on a thread inside the namespace.
	in      func(func() error) error
	address string
	request string
	// answer is how the service's answer begins.
	answer string
}

// httpAsker asks smallService.
func (b *bench) httpAsker(address string) asker {
	return asker{in: b.node.InMachine, address: address, request: "GET /busybox HTTP/1.0\r\nRange: bytes=0-0\r\n\r\n", answer: "HTTP/1."}
}

// askEvery is how often it is asked whether the service is back.
const askEvery = time.Millisecond / 2

// once asks one time.
func (a asker) once() error { return a.within(time.Second) }

func (a asker) within(limit time.Duration) error {
	conn, err := net.DialTimeout("tcp", a.address, limit)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, a.request); err != nil {
		return err
	}
	answer := make([]byte, len(a.answer))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	if string(answer) != a.answer {
		return fmt.Errorf("the service answers %q", answer)
	}
	return nil
}

// first asks until the service answers, and returns when that was.
func (a asker) first(ctx context.Context) (at time.Time, err error) {
	err = a.in(func() error {
		for {
			err := a.once()
			at = time.Now()
			if err == nil {
				return nil
			}
			if ctx.Err() != nil {
				return fmt.Errorf("the service at %s does not answer: %w", a.address, errors.Join(ctx.Err(), err))
			}
			time.Sleep(askEvery)
		}
	})
	return at, err
}

// timed calls f while the service is asked, and takes the time from f's call to
// its return and to the service's first answer.
func (a asker) timed(ctx context.Context, f func() error) (returned, answered time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	type result struct {
		at  time.Time
		err error
	}
	life := make(chan result, 1)
	begin := time.Now()
	go func() {
		at, err := a.first(ctx)
		life <- result{at, err}
	}()
	err = f()
	returned = time.Since(begin)
	if err != nil {
		cancel()
	}
	r := <-life
	if err != nil {
		return 0, 0, err
	}
	return returned, r.at.Sub(begin), r.err
}

// silent makes sure that nobody answers before a service is to be brought back.
func (a asker) silent() error {
	return a.in(func() error {
		if a.once() == nil {
			return fmt.Errorf("somebody answers at %s already", a.address)
		}
		return nil
	})
}

// rest lets the machine be as it is when nothing has happened for a while: the
// kernel's lock for moves between cgroups is quick for a moment after a move.
func rest(ctx context.Context) error {
	select {
	case <-time.After(lateWait):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }

// inNetwork makes a function that calls others in a process's network namespace as
// it is now, which outlives the process. The caller closes the file.
func inNetwork(pid uint32) (in func(func() error) error, file *os.File, err error) {
	file, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, nil, err
	}
	return func(f func() error) error {
		done := make(chan error, 1)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread is thrown away
			if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
				done <- fmt.Errorf("enter the container's network: %w", err)
				return
			}
			done <- f()
		}()
		return <-done
	}, file, nil
}

// cgroupFile reads a file of a process's cgroup: under v1 that of the controller,
// of its name there, else the one of v2.
func cgroupFile(pid uint32, controller, v1, v2 string) (string, error) {
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	path := ""
	for line := range strings.Lines(string(groups)) {
		words := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(words) != 3 {
			continue
		}
		if words[1] == controller {
			path = filepath.Join("/sys/fs/cgroup", controller, words[2], v1)
			break
		}
		if words[1] == "" && path == "" {
			path = filepath.Join("/sys/fs/cgroup", words[2], v2)
		}
	}
	data, err := os.ReadFile(path)
	return string(data), err
}
