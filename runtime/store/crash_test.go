package store

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// crashMarker in the environment makes the test program a writer that dies:
// "STEP KEEP URL TEXT FOLDER".
const crashMarker = "FASTMIG_TEST_CRASH"

func TestMain(m *testing.M) {
	if job := os.Getenv(crashMarker); job != "" {
		dyingWriter(job)
	}
	os.Exit(m.Run())
}

// dyingWriter takes a checkpoint, and is killed at so many steps of it. It says
// when the checkpoint was reported.
func dyingWriter(job string) {
	words := strings.SplitN(job, " ", 5)
	at, _ := strconv.Atoi(words[0])
	var steps atomic.Int64
	die := func(string) {
		if steps.Add(1) == int64(at) {
			_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	atStep.Store(&die)
	s := storeIn(words[4])
	s.Keep, _ = strconv.Atoi(words[1])
	u, err := Parse(words[2])
	if err == nil {
		err = s.take(u, words[3])
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("reported")
	os.Exit(0)
}

// TestCrash kills a writer at every step. A checkpoint that was reported is
// found until a newer one is, and what dead writers leave does not pile up.
func TestCrash(t *testing.T) {
	for _, url := range both {
		for keep := 1; keep <= 3; keep++ {
			t.Run(fmt.Sprintf("%s keep %d", url, keep), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				s, u := storeIn(dir), mustParse(t, url)
				s.Keep = keep
				mustTake(t, s, u, "0")
				last := "0" // was found, so must be found until a newer one is
				parent, name := s.folder(t, u)
				for step, done := 1, false; !done; step++ {
					text := strconv.Itoa(step)
					cmd := exec.Command(os.Args[0])
					cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d %s %s %s", crashMarker, step, keep, url, text, dir))
					out, err := cmd.Output()
					ws := cmd.ProcessState.Sys().(interface{ Signaled() bool })
					switch {
					case err == nil && string(out) == "reported\n":
						done, last = true, text
					case err == nil || !ws.Signaled() || len(out) > 0:
						t.Fatalf("step %d: %v, %s", step, err, out)
					}
					got, _ := newestText(t, s, u)
					if got != last && got != text {
						t.Fatalf("step %d: found %q; reported were %q, maybe %q", step, got, last, text)
					}
					last = got
					if n := len(namesIn(t, parent)); n > keep+3 {
						t.Fatalf("step %d: %d folders: %q", step, n, namesIn(t, parent))
					}
					if step > 200 {
						t.Fatal("the writer never ends")
					}
					if done && step < 15 {
						t.Errorf("only %d steps", step)
					}
				}
				mustTake(t, s, u, "end")
				want := []string{name, "." + name + ".previous", "." + name + ".previous-1"}
				expectNames(t, parent, want[:keep]...)
				if url == both[1] {
					expectNames(t, s.Private)
				}
			})
		}
	}
}
