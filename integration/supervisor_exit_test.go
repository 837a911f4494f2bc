package integration_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/shim/api"
)

// TestExits has the service end in many ways, and looks what follows.
func TestExits(t *testing.T) {
	lab := harness.New(t, harness.Options{Config: faultConfig(faultNode{})})
	lab.MustImport(images.Busybox)
	for _, test := range []labTest{
		{"default logic", testDefaultLogic},
		{"startup modes", testStartupModes},
		{"startup option file", testStartupFile},
		{"decider", testDecider},
		{"decider not allowed", testDeciderNotAllowed},
		{"crash loop", testCrashLoop},
		{"periodic checkpoints", testPeriodic},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, lab.For(t)) })
	}
}

// testDefaultLogic: 0 restores, a signal is standby, all else begins anew.
func testDefaultLogic(t *testing.T, lab *harness.Lab) {
	s := newSubject(t, lab, subjectOptions{})
	for _, c := range []struct {
		order string
		want  outcome
	}{
		{orderExit0, wasRestored},
		{orderExit7, fromScratch},
		{"rm /state/order; kill -TERM $$; sleep 5", inStandby},
		{"rm /state/order; exit 159", inStandby},
		{"rm /state/order; exit 160", fromScratch},
	} {
		check(t, s.ready())
		mark := s.mark()
		check(t, s.order(c.order))
		_, err := s.becomes(mark, c.want)
		if err != nil {
			t.Fatalf("%s: %v", c.order, err)
		}
		check(t, s.sound())
	}
}

func testStartupModes(t *testing.T, lab *harness.Lab) {
	waits := newSubject(t, lab, subjectOptions{annotations: map[string]string{"io.fastmig.startup": "standby"}})
	_, err := waits.becomes(0, inStandby)
	check(t, err)
	check(t, waits.sound())
	_, err = waits.api.Start(lab.Context(), api.StartRequest{})
	check(t, err)
	check(t, waits.counts())
	check(t, waits.checkpoint())
	life := waits.since(waits.mark())[0].life

	again := newSubject(t, lab, subjectOptions{annotations: map[string]string{"io.fastmig.startup": "restore", "io.fastmig.image-url": waits.url}})
	check(t, again.counts())
	equal(t, "the restored service's life", again.since(again.mark())[0].life, life)
}

// testStartupFile: the decided mode can be read and changed in the file.
func testStartupFile(t *testing.T, lab *harness.Lab) {
	s := newSubject(t, lab, subjectOptions{})
	check(t, s.ready())
	file := lab.HostPath(filepath.Join(api.SocketDir, lab.Namespace, s.c.ID()+".startup"))
	for _, c := range []struct {
		order string
		text  string
	}{
		{orderExit0, "1"}, {orderExit7, "0"}, {"rm /state/order; exit 130", "2"},
	} {
		check(t, s.order(c.order))
		lab.WaitFor("the decided mode to be written", func(context.Context) (bool, error) {
			text, err := os.ReadFile(file)
			return err == nil && strings.TrimSpace(string(text)) == c.text, errors.Join(err, fmt.Errorf("it says %q, not %q", text, c.text))
		})
		_, err := s.api.WaitState(lab.Context(), api.Running, api.Standby)
		check(t, err)
		check(t, s.ready())
	}
}

func testDecider(t *testing.T, lab *harness.Lab) {
	// It is told the event twice, and answers by the exit status.
	check(t, writeDecider(lab, `read -r line
[ "$line" = "$1" ] || { echo standby; exit; }
echo "$1" > `+lab.HostPath("/var/lib/decider-event")+`
case "$1" in
*'"exit_status":7'*) echo scratch ;;
*'"exit_status":3'*) echo 1 ;;
*) echo 2 ;;
esac`))
	check(t, lab.WriteConfig(faultConfig(faultNode{decider: deciderPath})))
	t.Cleanup(func() { check(t, lab.WriteConfig(faultConfig(faultNode{}))) })
	s := newSubject(t, lab, subjectOptions{annotations: map[string]string{"io.fastmig.on-exit": deciderPath}})
	for _, c := range []struct {
		order string
		want  outcome
	}{{orderExit7, fromScratch}, {orderExit, wasRestored}, {orderExit0, inStandby}} {
		check(t, s.ready())
		mark := s.mark()
		check(t, s.order(c.order))
		_, err := s.becomes(mark, c.want)
		if err != nil {
			t.Fatalf("%s: %v", c.order, err)
		}
	}
	event, err := os.ReadFile(lab.HostPath("/var/lib/decider-event"))
	check(t, err)
	wantText(t, string(event), `"event":"exit"`, `"id":"`+s.c.ID()+`"`, `"checkpoint":true`, `"exit_status":0`)
}

func testDeciderNotAllowed(t *testing.T, lab *harness.Lab) {
	_, err := lab.Run(lab.Context(), harness.RunOptions{
		Image: images.Busybox.Ref(), Args: []string{"sleep", "1000"},
		Annotations: map[string]string{"io.fastmig.on-exit": "/usr/bin/true"},
	})
	if err == nil {
		t.Fatal("a program that the node does not allow was taken for a decider")
	}
	wantText(t, err.Error(), "io.fastmig.on-exit", "/usr/bin/true")
}

// testCrashLoop: a service that never gets well is left in standby, with the reason,
// and a start on request begins anew.
func testCrashLoop(t *testing.T, lab *harness.Lab) {
	check(t, lab.WriteConfig(faultConfig(faultNode{restarts: 4, healthy: "1m"})))
	t.Cleanup(func() { check(t, lab.WriteConfig(faultConfig(faultNode{}))) })
	s := newSubject(t, lab, subjectOptions{change: func(r *harness.RunOptions) {
		r.Args = []string{"sh", "-c", "[ -e /state/well ] || exit 3\n" + faultScript}
	}})
	st, err := s.api.WaitState(lab.Context(), api.Standby)
	check(t, err)
	wantText(t, st.Reason, "crash loop", "status 3")
	equal(t, "the number of its lives", st.Starts, 5)
	check(t, os.WriteFile(filepath.Join(s.state, "well"), nil, 0o644))
	_, err = s.api.Start(lab.Context(), api.StartRequest{})
	check(t, err)
	check(t, s.counts())
	check(t, s.sound())
}

func testPeriodic(t *testing.T, lab *harness.Lab) {
	s := newSubject(t, lab, subjectOptions{annotations: map[string]string{"io.fastmig.checkpoint-interval": "1s"}})
	check(t, s.counts())
	dir := lab.HostPath(faultCheckpoints)
	digests := map[string]bool{}
	lab.WaitFor("four checkpoints", func(ctx context.Context) (bool, error) {
		st, err := s.api.Status(ctx)
		if err == nil && st.Checkpoint != nil {
			digests[st.Checkpoint.Digest] = true
		}
		return len(digests) >= 4, err
	})
	// The newest and the one before.
	lab.WaitFor("the older ones to be removed", func(context.Context) (bool, error) {
		all, err := filepath.Glob(filepath.Join(dir, "*"+s.c.ID()+"*"))
		return len(all) == 2, errors.Join(err, fmt.Errorf("%v", all))
	})
	mark := s.mark()
	check(t, s.order(orderExit0))
	_, err := s.becomes(mark, wasRestored)
	check(t, err)
}
