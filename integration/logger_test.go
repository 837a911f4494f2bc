package integration_test

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"sync"
	"testing"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/cio"
	"golang.org/x/sys/unix"
)

const (
	// loggerWord makes the test's own program a logging program, or the probe
	// that looks about in a container.
	loggerWord  = "fastmig-test-logger"
	loggerFails = "/nonexistent/fails"
	loggerEnd   = "\nend of the log\n"
)

// The test's program stands in for small programs that tests need outside the
// test, so that nothing has to be built.
func init() {
	if len(os.Args) < 3 || os.Args[1] != loggerWord {
		return
	}
	if err := logger(os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// logger is a logging program: stdout at descriptor 3, stderr at 4, readiness
// at 5.
func logger(path string) error {
	// The end of the input is what ends it, so that nothing is lost.
	signal.Ignore(unix.SIGTERM)
	// It may be started again, for another life of the service.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	fmt.Fprintf(f, "id=%s namespace=%s\n", os.Getenv("CONTAINER_ID"), os.Getenv("CONTAINER_NAMESPACE"))
	ready := os.NewFile(5, "ready")
	if _, err := ready.Write([]byte{1}); err != nil {
		return err
	}
	ready.Close()
	var mu sync.Mutex
	var wg sync.WaitGroup
	var errs []error
	for fd := uintptr(3); fd <= 4; fd++ {
		wg.Go(func() {
			_, err := io.Copy(f, os.NewFile(fd, "stream"))
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
		})
	}
	wg.Wait()
	_, err = f.WriteString(loggerEnd)
	return errors.Join(append(errs, err, f.Close())...)
}

// loggerIO has a container's output logged to the path by the logger.
func loggerIO(t *testing.T, scheme, path string, terminal bool) cio.Creator {
	t.Helper()
	self, err := os.Executable()
	check(t, err)
	u := &url.URL{Scheme: scheme, Path: self, RawQuery: url.Values{loggerWord: {path}}.Encode()}
	if terminal {
		return cio.TerminalLogURI(u)
	}
	return cio.LogURI(u)
}

func deleteProcess(id, exec string) *tasks.DeleteProcessRequest {
	return &tasks.DeleteProcessRequest{ContainerID: id, ExecID: exec}
}
