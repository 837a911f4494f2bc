package integration_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/shim/api"
)

// faultCheckpoints is where a node has its checkpoints by default.
const faultCheckpoints = "/var/lib/fastmig/checkpoints"

// faultNode is what the tests' nodes differ in.
type faultNode struct {
	checkpoints, storeTimeout, decider string
	// restarts and healthy bound a crash loop.
	restarts int
	healthy  string
}

// faultConfig is a node's configuration with short times. A heartbeat must not be
// missed by a node that is only busy.
func faultConfig(n faultNode) string {
	if n.checkpoints == "" {
		n.checkpoints = faultCheckpoints
	}
	if n.storeTimeout == "" {
		n.storeTimeout = "30s"
	}
	if n.restarts == 0 {
		n.restarts = 8
	}
	if n.healthy == "" {
		n.healthy = "200ms"
	}
	allow := ""
	if n.decider != "" {
		allow = fmt.Sprintf("%q", n.decider)
	}
	return fmt.Sprintf(`checkpoints = %q
store_timeout = %q
hook_timeout = "300ms"
[deciders]
allow = [%s]
timeout = "500ms"
[supervisor]
heartbeat = "300ms"
heartbeat_timeout = "1500ms"
backoff = "10ms"
backoff_max = "100ms"
restarts = %d
healthy = %q
`, n.checkpoints, n.storeTimeout, allow, n.restarts, n.healthy)
}

func one(o outcome) []outcome { return []outcome{o} }

// faults are the rows: those of the paper, and then those that it does not have.
func faults() []fault {
	const restarts = "checkpoint: stops, service goes on; else: restarts by the decided mode"
	order := func(text string) func(*subject) error {
		return func(s *subject) error { return s.order(text) }
	}
	everywhere := func(c cell) map[phase]cell {
		return map[phase]cell{inOperation: c, inCheckpoint: c, inRestore: c}
	}
	list := []fault{
		{name: "memory exceeded", paper: restarts,
			opts:  subjectOptions{spec: []oci.SpecOpts{oci.WithMemoryLimit(48 << 20)}},
			cells: everywhere(cell{inject: order(orderMemory), want: one(inStandby)})},
		{name: "storage full", paper: restarts, setup: fullStore,
			cells: map[phase]cell{
				inOperation:  {inject: fillStore, heal: emptyStore, want: one(wentOn)},
				inCheckpoint: {inject: fillStore, heal: emptyStore, first: true, op: mustFail, text: "space", want: one(wentOn)},
				inRestore:    {inject: fillStore, heal: emptyStore, first: true, op: mustSucceed, want: one(wasRestored)},
			}},
		{name: "SIGINT to the service", paper: restarts, cells: signalled(unix.SIGINT)},
		{name: "SIGKILL to the service", paper: restarts, cells: signalled(unix.SIGKILL)},
		{name: "unexpected exit code", paper: restarts,
			cells: everywhere(cell{inject: order(orderExit), want: one(fromScratch)})},
	}
	for _, kind := range []string{"a bit of the pages flipped", "manifest cut", "file missing"} {
		list = append(list, fault{name: "checkpoint corrupted: " + kind, paper: restarts,
			cells: map[phase]cell{
				inOperation:  {inject: damage(kind, 1), lossy: true, want: one(wentOn)},
				inCheckpoint: {inject: damage(kind, 1), lossy: true, op: mustSucceed, want: one(wentOn)},
				inRestore:    {inject: damage(kind, 1), lossy: true, first: true, op: mustSucceed, text: "passed over", want: one(wasRestored)},
			}})
	}
	return append(list, []fault{
		{name: "every checkpoint corrupted", paper: restarts,
			cells: map[phase]cell{
				inRestore: {inject: damage("manifest cut", 2), lossy: true, first: true, op: mustFail, want: one(inStandby)},
			}},
		{name: "store not answering", paper: "restore: hangs until the network is back", setup: hangingStore,
			cells: map[phase]cell{
				inOperation:  {inject: hangStore, heal: wakeStore, want: one(wentOn)},
				inCheckpoint: {inject: hangStore, heal: wakeStore, first: true, op: mustFail, text: "does not answer", want: one(wentOn)},
				inRestore:    {inject: hangStore, heal: wakeStore, first: true, op: mustFail, text: "does not answer", want: one(inStandby)},
			}},
		{name: "store stops answering half-way", paper: "–", setup: hangingStore,
			cells: map[phase]cell{
				inCheckpoint: {inject: hangStore, heal: wakeStore, want: one(wentOn)},
				inRestore:    {inject: hangStore, heal: wakeStore, want: []outcome{wasRestored, inStandby}},
			}},
		{name: "FastFreeze killed", paper: "–", cells: initSignalled(unix.SIGKILL)},
		{name: "FastFreeze crashed (SIGSEGV)", paper: "–", cells: initSignalled(unix.SIGSEGV)},
		{name: "FastFreeze stopped", paper: "–",
			cells: map[phase]cell{
				inOperation:  {inject: stopInit, want: one(wentOn)},
				inCheckpoint: {inject: stopInit, op: mustSucceed, want: one(wentOn)},
				inRestore:    {inject: stopInit, want: []outcome{wasRestored, inStandby}},
			}},
		{name: "FastFreeze hung", paper: "–",
			cells: map[phase]cell{
				// Not in a checkpoint: CRIU would wait for the debugger, which is how it hangs here.
				inOperation: {inject: hangInit, want: one(wasRestored)},
				inRestore:   {inject: hangInit, heal: hungReplaced, slow: true, want: []outcome{wasRestored, inStandby}},
			}},
		{name: "CRIU killed", paper: "–",
			cells: map[phase]cell{
				inCheckpoint: {inject: killCRIU, op: mustFail, text: "kill", want: one(wentOn)},
				inRestore:    {inject: killCRIU, op: mustSucceed, text: "once more", want: one(wasRestored)},
			}},
		{name: "decider hanging", paper: "–", setup: hangingDecider,
			opts:  subjectOptions{annotations: map[string]string{"io.fastmig.on-exit": deciderPath}},
			cells: everywhere(cell{inject: order(orderExit), want: one(inStandby)})},
		{name: "hook hanging", paper: "–",
			cells: map[phase]cell{
				inCheckpoint: {inject: nothing, first: true, hooks: &api.Hooks{BeforeCheckpoint: []string{"sleep", "1000"}}, op: mustFail, text: "hook", want: one(wentOn)},
				inRestore:    {inject: nothing, first: true, hooks: &api.Hooks{BeforeRestore: []string{"sleep", "1000"}}, op: mustFail, text: "hook", want: one(inStandby)},
			}},
		{name: "shim killed", paper: "–", ends: true, cells: everywhere(cell{inject: shootShim, want: one(hasEnded)})},
		{name: "containerd killed", paper: "–",
			cells: map[phase]cell{
				inOperation:  {inject: killContainerd, want: one(wentOn)},
				inCheckpoint: {inject: killContainerd, op: mustSucceed, want: one(wentOn)},
				inRestore:    {inject: killContainerd, op: mustSucceed, want: one(wasRestored)},
			}},
	}...)
}

func nothing(*subject) error { return nil }

// signalled are the cells of a signal to the service. One that comes to what is not
// wholly restored yet is met by a second try.
func signalled(sig unix.Signal) map[phase]cell {
	toService := func(s *subject) error {
		pid, err := s.appPid()
		if err != nil {
			return err
		}
		return unix.Kill(pid, sig)
	}
	toRestored := func(s *subject) error {
		init, err := s.initPid()
		if err != nil {
			return err
		}
		for _, pid := range s.pids() {
			if pid != init {
				return ignoreGone(unix.Kill(pid, sig))
			}
		}
		return errMissed
	}
	return map[phase]cell{
		inOperation: {inject: toService, want: one(inStandby)},
		// A signal that waits for the frozen service is in its checkpoint.
		inCheckpoint: {inject: toService, want: one(inStandby), useless: true},
		inRestore:    {inject: toRestored, want: []outcome{inStandby, wasRestored}},
	}
}

func ignoreGone(err error) error {
	if err == unix.ESRCH {
		return nil
	}
	return err
}

// initSignalled are the cells of a deadly signal to FastFreeze.
func initSignalled(sig unix.Signal) map[phase]cell {
	send := func(s *subject) error {
		pid, err := s.initPid()
		if err != nil {
			return err
		}
		return unix.Kill(pid, sig)
	}
	return map[phase]cell{
		inOperation:  {inject: send, want: one(wasRestored)},
		inCheckpoint: {inject: send, want: one(wasRestored)},
		inRestore:    {inject: send, want: []outcome{inStandby, wasRestored}},
	}
}

// stopInit stops PID 1, and waits until somebody has noticed.
func stopInit(s *subject) error {
	pid, err := s.initPid()
	if err == nil {
		err = unix.Kill(pid, unix.SIGSTOP)
	}
	if err != nil {
		return err
	}
	// A frozen process stops later.
	go func() { _ = s.continued(pid) }()
	return nil
}

// continued waits until a process is not stopped.
func (s *subject) continued(pid int) error {
	ctx, cancel := context.WithTimeout(s.lab.Context(), 20*time.Second)
	defer cancel()
	return harness.WaitFor(ctx, "PID 1 to go on", func(context.Context) (bool, error) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || !strings.Contains(string(data), ") T "), nil
	})
}

func killCRIU(s *subject) error {
	pid := criuOf(s.shim)
	if pid == 0 {
		return errMissed
	}
	return unix.Kill(pid, unix.SIGKILL)
}

func shootShim(s *subject) error { return unix.Kill(s.shim, unix.SIGKILL) }

func killContainerd(s *subject) error {
	if err := s.lab.KillDaemon(s.lab.Context()); err != nil {
		return err
	}
	return s.lab.StartDaemon(s.lab.Context())
}

// damage spoils the newest checkpoints.
func damage(kind string, count int) func(*subject) error {
	return func(s *subject) error {
		name := strings.TrimPrefix(s.url, "node:")
		dirs := []string{name, "." + name + ".previous"}[:count]
		for _, dir := range dirs {
			if err := damageAt(filepath.Join(s.lab.HostPath(faultCheckpoints), dir), kind); err != nil {
				return err
			}
		}
		return nil
	}
}

func damageAt(dir, kind string) error {
	pages, err := filepath.Glob(filepath.Join(dir, "pages-*.img"))
	if err != nil || len(pages) == 0 {
		return fmt.Errorf("no pages in %s: %v", dir, err)
	}
	switch kind {
	case "file missing":
		return os.Remove(pages[0])
	case "manifest cut":
		manifest := filepath.Join(dir, "fastmig.json")
		st, err := os.Stat(manifest)
		if err != nil {
			return err
		}
		return os.Truncate(manifest, st.Size()/2)
	}
	f, err := os.OpenFile(pages[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], 100); err != nil {
		return err
	}
	b[0] ^= 1
	_, err = f.WriteAt(b[:], 100)
	return err
}

// deciderPath is a program on the node's machine, in folders of root's alone.
const deciderPath = "/var/lib/fastmig-decider"

// writeDecider puts a decider onto the node's machine.
func writeDecider(lab *harness.Lab, script string) error {
	return os.WriteFile(lab.HostPath(deciderPath), []byte("#!/bin/sh\n"+script+"\n"), 0o755)
}

func hangingDecider(t *testing.T, lab *harness.Lab) func() {
	check(t, writeDecider(lab, "exec sleep 1000"))
	check(t, lab.WriteConfig(faultConfig(faultNode{decider: deciderPath})))
	return func() {}
}
