//go:build linux

package criu

import ("testing";"os";"strings"; "fmt";"path/filepath"; "time"; "context"; "os/exec"; "golang.org/x/sys/unix")

func TestZZ(t *testing.T) {
	tool := realTool(t)
	tool.Prepare(t.Context())
	save := func(name string, log *os.File, err error) {
		x := readLog(t, log)
		os.MkdirAll("/tmp/logs", 0o755)
		os.WriteFile("/tmp/logs/"+name+".log", []byte(x), 0o644)
		fmt.Println("=====", name, err==nil)
		for _, l := range strings.Split(x,"\n") { if strings.Contains(l, "Error") && !strings.Contains(l,"RLIMIT_NOFILE") { fmt.Println(l) } }
		if err!=nil && !strings.Contains(x, "Error") { fmt.Println(err) }
	}
	d := func(name string, f func(a *container, o *DumpOptions)) {
		t.Run(name, func(t *testing.T) {
		a := newContainer(t)
		app := newService(t)
		cp := newCheckpoint(t)
		if strings.Contains(name, "leaked") { f, _ := os.Open("/etc/passwd"); app.theirs[2]=f}
		if strings.Contains(name, "tty") { app = newTerminal(t, a) }
		a.startWith(app, request{Pid: 1000, SameSession: strings.Contains(name,"session"), TTY: strings.Contains(name, "tty")})
		o := a.dumpOf(app, cp)
		f(a, &o)
		_, err := tool.Dump(testContext(t), o)
		save(name, cp.log, err)
		})
	}
	d("leaked", func(a *container, o *DumpOptions) {})
	d("tty", func(a *container, o *DumpOptions) {})
	d("session", func(a *container, o *DumpOptions) {})
	d("nopid", func(a *container, o *DumpOptions) {o.Pid=77})
	d("zeropid", func(a *container, o *DumpOptions) {o.Pid=0})
	d("init", func(a *container, o *DumpOptions) {o.Pid=1})
	d("frozen", func(a *container, o *DumpOptions) {a.freezer.freeze()})
	d("full", func(a *container, o *DumpOptions) {
		unix.Mount("x", o.Images.Name(), "tmpfs", 0, "size=64k")
		o.Images, _ = os.Open(o.Images.Name())
	})
	d("full2", func(a *container, o *DumpOptions) {
		unix.Mount("x", o.Images.Name(), "tmpfs", 0, "size=500k")
		o.Images, _ = os.Open(o.Images.Name())
	})
	d("roimages", func(a *container, o *DumpOptions) {
		unix.Mount("x", o.Images.Name(), "tmpfs", unix.MS_RDONLY, "size=500k")
		o.Images, _ = os.Open(o.Images.Name())
	})
	d("noproc", func(a *container, o *DumpOptions) {
		exec.Command("nsenter","-t",fmt.Sprint(a.cmd.Process.Pid),"-m","/app").Run()
		out, err := exec.Command("nsenter",fmt.Sprintf("--mount=/proc/%d/ns/mnt",a.cmd.Process.Pid),"busybox","umount","/proc").CombinedOutput()
		fmt.Println(string(out), err)
	})
	t.Run("extunix", func(t *testing.T) {
		a := newContainer(t)
		srv := a.start(900)
		srv.ask("listen unix /tmp/sock")
		app := a.start(1000)
		app.ask("connect unix /tmp/sock")
		cp := newCheckpoint(t)
		_, err := tool.Dump(testContext(t), a.dumpOf(app, cp))
		save("extunix", cp.log, err)
	})
	r := func(name string, setup []string, f func(a,b *container, o *RestoreOptions)) {
		t.Run(name, func(t *testing.T) {
		a, b := newContainer(t), newContainer(t)
		app := a.start(1000)
		for _, s := range setup { app.ask("%s", s) }
		cp := a.dump(tool, app)
		o := b.restoreOf(cp, app, newService(t))
		f(a, b, &o)
		_, err := tool.Restore(testContext(t), o)
		save("r-"+name, o.Log, err)
		})
	}
	r("pidtaken", nil, func(a,b *container, o *RestoreOptions) { b.start(1000) })
	r("tidtaken", []string{"fanout 1"}, func(a,b *container, o *RestoreOptions) { x:= b.start(900); x.ask("fanout 20") })
	r("missing", []string{"file /tmp/x text"}, func(a,b *container, o *RestoreOptions) { })
	r("size", []string{"file /tmp/x text"}, func(a,b *container, o *RestoreOptions) { os.WriteFile(b.root()+"/tmp/x", []byte("longer"), 0o600) })
	r("mode", []string{"file /tmp/x text"}, func(a,b *container, o *RestoreOptions) { os.WriteFile(b.root()+"/tmp/x", []byte("text"), 0o644) })
	r("noimages", nil, func(a,b *container, o *RestoreOptions) { o.Images,_ = os.Open(t.TempDir()) })
	r("nocore", nil, func(a,b *container, o *RestoreOptions) { os.Remove(o.Images.Name()+"/core-1000.img") })
	r("trunc", nil, func(a,b *container, o *RestoreOptions) { os.Truncate(o.Images.Name()+"/core-1000.img", 40) })
	r("truncpages", []string{"memory 2"}, func(a,b *container, o *RestoreOptions) { os.Truncate(o.Images.Name()+"/pages-1.img", 4096) })
	r("noinherit", nil, func(a,b *container, o *RestoreOptions) { o.InheritFD=nil; })
	r("wronginherit", nil, func(a,b *container, o *RestoreOptions) { for k:=range o.InheritFD { o.InheritFD[k], _ = os.Open("/etc/passwd") } })
	r("port", []string{"listen tcp 127.0.0.1:7000"}, func(a,b *container, o *RestoreOptions) { b.start(900).ask("listen tcp 127.0.0.1:7000") })
	r("addr", []string{"listen tcp 127.0.0.1:7000"}, func(a,b *container, o *RestoreOptions) { })
	r("unixdir", []string{"listen unix /tmp/sock"}, func(a,b *container, o *RestoreOptions) { os.Remove(b.root()+"/tmp") })
	r("unixtaken", []string{"listen unix /tmp/sock"}, func(a,b *container, o *RestoreOptions) {b.start(900).ask("listen unix /tmp/sock") })
	r("ro", []string{"file /tmp/x text unlinked"}, func(a,b *container, o *RestoreOptions) {
		out, err := exec.Command("nsenter",fmt.Sprintf("--mount=/proc/%d/ns/mnt",b.cmd.Process.Pid), "busybox","mount","-o","remount,ro","/").CombinedOutput()
		fmt.Println(string(out), err)
	})
	r("binary", nil, func(a,b *container, o *RestoreOptions) { os.Remove(b.root()+"/app"); os.WriteFile(b.root()+"/app", []byte("other"), 0o755) })
	r("pids", []string{"fanout 10"}, func(a,b *container, o *RestoreOptions) {
		g := filepath.Join("/sys/fs/cgroup/pids", "fmxx")
		os.Mkdir(g, 0o755); os.WriteFile(g+"/pids.max", []byte("5"), 0)
		f, _ := os.Open(g); o.Place.CgroupTasks=[]*os.File{f}
	})
	r("oom", []string{"memory 60"}, func(a,b *container, o *RestoreOptions) {
		g := filepath.Join("/sys/fs/cgroup/memory", "fmxx")
		os.Mkdir(g, 0o755); os.WriteFile(g+"/memory.limit_in_bytes", []byte("30M"), 0)
		f, _ := os.Open(g); o.Place.CgroupTasks=[]*os.File{f}
	})
	_ = context.Background; _ = time.Second; _ = exec.Command; _ = unix.Mount; _ = filepath.Join
}
