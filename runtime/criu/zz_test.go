package criu
import ("testing";"fmt";"os";"os/exec";"syscall";"golang.org/x/sys/unix";"strings")
func TestZZtty(t *testing.T) {
	tool := realTool(t)
	a, b := newContainer(t), newContainer(t)
	app := newTerminal(t, a)
	a.startWith(app, request{Pid: 1000, TTY: true})
	cp := newCheckpoint(t)
	key := app.terminalKey()
	_, err := tool.Dump(testContext(t), DumpOptions{Place: a.place(), Pid: 1000, Images: cp.images, Log: cp.log, External: []string{key}})
	fmt.Println("no shelljob dump", err)
	again := newTerminal(t, b)
	_, err = tool.Restore(testContext(t), RestoreOptions{Place: b.place(), Images: cp.images, Log: cp.log, InheritFD: map[string]*os.File{key: again.theirs[0]}})
	fmt.Println("no shelljob restore", err)
	fmt.Println(again.ask("tty"))
	fmt.Println(stateOf(b.cmd.Process.Pid), nsOf(t, b.cmd.Process.Pid, "user"))
}
func TestZZuser(t *testing.T) {
	tool := realTool(t)
	// a container in a user namespace
	userns = true
	a, b := newContainer(t), newContainer(t)
	app := a.start(1000)
	cp := newCheckpoint(t)
	_, err := tool.Dump(testContext(t), a.dumpOf(app, cp))
	fmt.Println("userns dump", err)
	l := readLog(t, cp.log)
	for _, x := range strings.Split(l, "\n") { if strings.Contains(x, "rror") || strings.Contains(x, "Warn") { fmt.Println(x) } }
	if err == nil {
	o := b.restoreOf(cp, app, newService(t))
	_, err = tool.Restore(testContext(t), o)
	fmt.Println("userns restore", err)
	l = readLog(t, o.Log)
	for _, x := range strings.Split(l, "\n") { if strings.Contains(x, "rror") || strings.Contains(x, "Warn") { fmt.Println(x) } }
	}
	_ = exec.Command; _ = syscall.Kill; _ = unix.Kill
}
