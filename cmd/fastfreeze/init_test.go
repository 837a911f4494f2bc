package main_test

import (
	"testing"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
)

func TestStartAtChosenPid(t *testing.T) {
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	for range rounds {
		c := run(t, options{argv: []string{"true"}})
		c.receive(initproto.Ready)
		if err := c.inside(binary, "last-pid", "999"); err != nil {
			t.Fatal(err)
		}
		c.send(initproto.Message{Type: initproto.Start, Flags: initproto.Tied})
		if m := c.receive(initproto.Started); m.Pid != 1000 {
			t.Fatalf("the application has pid %d, want 1000", m.Pid)
		}
		if m := c.receive(initproto.Exited); m.Pid != 1000 || m.Status != 0 {
			t.Fatalf("EXITED %+v", m)
		}
		if code := c.wait(); code != 0 {
			t.Fatalf("exit code %d", code)
		}
	}
}
