package integration_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// TestNerdctl drives containers by the real nerdctl. Its checkpoints tell the
// shim whether to end the service only under the stock shim's name.
func TestNerdctl(t *testing.T) {
	for _, runtime := range []harness.Runtime{harness.FastMig, harness.InPlace} {
		t.Run(runtime.String(), func(t *testing.T) {
			lab := harness.New(t, harness.Options{Runtime: runtime})
			lab.MustImport(images.GoScratch, images.Busybox)
			t.Run("service", func(t *testing.T) { nerdctlService(t, lab.For(t)) })
			t.Run("logs", func(t *testing.T) { nerdctlLogs(t, lab.For(t)) })
			t.Run("checkpoint", func(t *testing.T) { nerdctlCheckpoint(t, lab.For(t)) })
		})
	}
}

// startService runs the test service with a published port.
func startService(t *testing.T, lab *harness.Lab, name, port string) {
	t.Helper()
	removeByNerdctl(lab, t, name)
	lab.MustNerdctl("run", "-d", "--name", name, "--env", "GODEBUG=multipathtcp=0",
		"-p", "127.0.0.1:"+port+":7000", images.GoScratch.Ref())
}

// request sends a line to the service through the published port, as soon as
// it answers.
func request(t *testing.T, lab *harness.Lab, port, line string) string {
	t.Helper()
	answer := ""
	lab.WaitFor("an answer on port "+port, func(context.Context) (bool, error) {
		err := lab.InMachine(func() error {
			conn, err := net.DialTimeout("tcp", "127.0.0.1:"+port, 5*time.Second)
			if err != nil {
				return err
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				return err
			}
			fmt.Fprintln(conn, line)
			answer, err = bufio.NewReader(conn).ReadString('\n')
			return err
		})
		return err == nil, err
	})
	return strings.TrimSuffix(answer, "\n")
}

// inspection is what the tests read of `nerdctl inspect`.
type inspection struct {
	State struct {
		Status  string
		Running bool
		Paused  bool
		Pid     int
	}
	NetworkSettings struct{ IPAddress string }
}

func inspect(t *testing.T, lab *harness.Lab, name string) inspection {
	t.Helper()
	var all []inspection
	if err := json.Unmarshal([]byte(lab.MustNerdctl("inspect", name)), &all); err != nil || len(all) != 1 {
		t.Fatalf("inspect %s: %v, %d entries", name, err, len(all))
	}
	return all[0]
}

func nerdctlService(t *testing.T, lab *harness.Lab) {
	startService(t, lab, "web", "17001")
	if answer := request(t, lab, "17001", "PUT k v"); answer != "OK" {
		t.Fatalf("the published port answers %q", answer)
	}
	if out := lab.MustNerdctl("exec", "web", "/service", "GET", "k"); out != "v\n" {
		t.Errorf("exec prints %q", out)
	}
	if out := lab.MustNerdctl("top", "web"); !strings.Contains(out, "/service") {
		t.Errorf("top prints %q", out)
	}
	if out := lab.MustNerdctl("ps", "--format", "{{.Names}} {{.Status}} {{.Ports}}"); !strings.Contains(out, "web Up") || !strings.Contains(out, "17001->7000") {
		t.Errorf("ps prints %q", out)
	}
	info := inspect(t, lab, "web")
	if !info.State.Running || info.State.Status != "running" || info.State.Pid == 0 || !strings.HasPrefix(info.NetworkSettings.IPAddress, "198.18.0.") {
		t.Errorf("inspect says %+v", info)
	}

	lab.MustNerdctl("pause", "web")
	if info := inspect(t, lab, "web"); info.State.Status != "paused" {
		t.Errorf("a paused container is %+v", info)
	}
	lab.MustNerdctl("unpause", "web")
	if answer := request(t, lab, "17001", "GET k"); answer != "v" {
		t.Errorf("after unpause the answer is %q", answer)
	}

	lab.MustNerdctl("restart", "web")
	if answer := request(t, lab, "17001", "GET k"); answer != "" {
		t.Errorf("a restarted service still knows %q", answer)
	}
	lab.MustNerdctl("rm", "-f", "web")
	if out := lab.MustNerdctl("ps", "-a", "-q"); out != "" {
		t.Errorf("after rm -f ps shows %q", out)
	}
}

func nerdctlLogs(t *testing.T, lab *harness.Lab) {
	removeByNerdctl(lab, t, "talker")
	lab.MustNerdctl("run", "-d", "--name", "talker", images.Busybox.Ref(), "sh", "-c",
		`trap 'echo got TERM; while ! [ -e /tmp/end ]; do sleep 0.05; done; exit 3' TERM; echo first; echo problem >&2; while ! [ -e /tmp/go ]; do sleep 0.05; done; echo second; while :; do sleep 0.05; done`)
	logs := func(text string) {
		t.Helper()
		lab.WaitFor("the log to hold "+text, func(ctx context.Context) (bool, error) {
			cmd, err := lab.Command(ctx, "nerdctl", "logs", "talker")
			if err != nil {
				return false, err
			}
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := lab.StartCommand(cmd); err != nil {
				return false, err
			}
			err = cmd.Wait()
			return err == nil && strings.Contains(out.String(), text), errors.Join(err, fmt.Errorf("it is %q", &out))
		})
	}
	logs("first\n")
	logs("problem\n")

	follower, err := lab.Command(lab.Context(), "nerdctl", "logs", "-f", "talker")
	if err != nil {
		t.Fatal(err)
	}
	var followed harness.Buffer
	follower.Stdout, follower.Stderr = &followed, &followed
	if err := lab.StartCommand(follower); err != nil {
		t.Fatal(err)
	}
	if err := followed.WaitForText(lab.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	lab.MustNerdctl("exec", "talker", "touch", "/tmp/go")
	if err := followed.WaitForText(lab.Context(), "second"); err != nil {
		t.Fatal(err)
	}

	// nerdctl's logger drops what it has not read when the container ends, so
	// the end waits until the last line is in the log.
	stopped := make(chan error, 1)
	go func() {
		_, err := lab.Nerdctl(lab.Context(), "stop", "--time", "60", "talker")
		stopped <- err
	}()
	logs("got TERM\n")
	if err := followed.WaitForText(lab.Context(), "got TERM"); err != nil {
		t.Error(err)
	}
	lab.MustNerdctl("exec", "talker", "touch", "/tmp/end")
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	// Not 137: SIGTERM reached the application, and it was not killed.
	if out := lab.MustNerdctl("inspect", "--format", "{{.State.ExitCode}}", "talker"); strings.TrimSpace(out) != "3" {
		t.Errorf("the exit code is %q", out)
	}
	_ = unix.Kill(-follower.Process.Pid, unix.SIGKILL)
	_ = follower.Wait()
}

func nerdctlCheckpoint(t *testing.T, lab *harness.Lab) {
	startService(t, lab, "kept", "17002")
	request(t, lab, "17002", "PUT state kept")
	nonce := func() string {
		t.Helper()
		nonce, _, _ := strings.Cut(request(t, lab, "17002", "STAT"), " ")
		return nonce
	}
	old := nonce()

	lab.MustNerdctl("checkpoint", "create", "--leave-running", "kept", "alive")
	if info := inspect(t, lab, "kept"); !info.State.Running {
		t.Fatalf("after --leave-running the container is %+v", info)
	}
	if now := nonce(); now != old {
		t.Fatalf("after --leave-running another service answers: %s, not %s", now, old)
	}
	request(t, lab, "17002", "PUT later known")

	lab.MustNerdctl("checkpoint", "create", "kept", "ended")
	if lab.Runtime == harness.FastMig {
		// nerdctl tells the shim only under the stock shim's name that the
		// service shall end.
		if info := inspect(t, lab, "kept"); !info.State.Running {
			t.Errorf("without options the container is %+v", info)
		}
		lab.MustNerdctl("stop", "kept")
	}
	lab.WaitFor("the container to end", func(context.Context) (bool, error) {
		return !inspect(t, lab, "kept").State.Running, nil
	})

	out := lab.MustNerdctl("checkpoint", "ls", "kept")
	for _, name := range []string{"alive", "ended"} {
		if !strings.Contains(out, name) {
			t.Errorf("checkpoint ls does not show %s: %q", name, out)
		}
	}
	lab.MustNerdctl("start", "--checkpoint", "ended", "kept")
	if now := nonce(); now != old {
		t.Errorf("after start --checkpoint another service answers: %s, not %s", now, old)
	}
	for key, want := range map[string]string{"state": "kept", "later": "known"} {
		if answer := request(t, lab, "17002", "GET "+key); answer != want {
			t.Errorf("%s is %q, not %q", key, answer, want)
		}
	}

	// Back to the older one, in the same container.
	lab.MustNerdctl("stop", "kept")
	lab.MustNerdctl("start", "--checkpoint", "alive", "kept")
	if answer := request(t, lab, "17002", "GET later"); answer != "" {
		t.Errorf("the older checkpoint knows %q of its future", answer)
	}
	if answer := request(t, lab, "17002", "GET state"); answer != "kept" {
		t.Errorf("state is %q", answer)
	}
	lab.MustNerdctl("checkpoint", "rm", "kept", "alive")
	if out := lab.MustNerdctl("checkpoint", "ls", "kept"); strings.Contains(out, "alive") {
		t.Errorf("after checkpoint rm, ls shows %q", out)
	}
	if out, err := lab.Nerdctl(lab.Context(), "start", "--checkpoint", "nosuch", "kept"); err == nil {
		t.Errorf("a checkpoint that is not there starts: %q", out)
	}
}

// The node's bridge and firewall rules live in a network namespace of their
// own, so nothing of them may show on the host.
func TestNerdctlLeavesNetworkAlone(t *testing.T) {
	before := hostLinks(t)
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	lab.MustNerdctl("run", "--rm", "-p", "127.0.0.1:17003:80", images.Busybox.Ref(), "true")
	if after := hostLinks(t); after != before {
		t.Errorf("the host's network devices were\n%s\nand are\n%s", before, after)
	}
}

func hostLinks(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, line := range strings.Split(string(data), "\n") {
		if name, _, ok := strings.Cut(line, ":"); ok {
			names = append(names, strings.TrimSpace(name))
		}
	}
	return strings.Join(names, "\n")
}
