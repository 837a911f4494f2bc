package criu
import ("testing";"os";"os/exec";"fmt";"sort";"time";"io")
func TestZZ(t *testing.T) {
	tool := realTool(t); tool.Prepare(t.Context())
	for _, n := range []int{1,16} { for _, shield := range []bool{false,true} {
	var ds, rs []time.Duration
	for range 15 {
	a,b := newContainer(t),newContainer(t)
	for _, c := range []*container{a,b} { exec.Command("cp","/bin/busybox",c.root()+"/busybox").Run() }
	app := newService(t)
	script := fmt.Sprintf("i=1; while [ $i -lt %d ]; do /busybox sleep 1000 </dev/null & i=$((i+1)); done; echo go; read x; echo done", n)
	a.startWith(app, request{Pid:1000, Args: []string{"/busybox","sh","-c",script}})
	app.reader.ReadString('\n')
	cp := newCheckpoint(t)
	o := a.dumpOf(app, cp)
	a.freezer.freeze(); o.FreezeCgroup=a.freezer.dir
	r0, err := tool.Dump(testContext(t), o)
	if err != nil { t.Fatal(err) }
	os.WriteFile("/tmp/d.log", []byte(readLog(t, o.Log)), 0644)
	a.freezer.thaw()
	ds = append(ds, r0.Took)
	var ro RestoreOptions
	again := newService(t)
	if shield { var sv *freezer; ro, sv = b.shielded(cp, app, again, newFreezer); defer sv.control().killAll(t.Context()) } else { ro = b.restoreOf(cp, app, again) }
	r, err := tool.Restore(testContext(t), ro)
	if err != nil { t.Fatal(err) }
	rs = append(rs, r.Took)
	os.WriteFile("/tmp/r.log", []byte(readLog(t, ro.Log)), 0644)
	io.WriteString(again.in, "\n")
	l,_ := again.reader.ReadString('\n')
	if l != "done\n" { t.Fatal(l) }
	b.stop(); a.stop()
	}
	sort.Slice(ds, func(i,j int) bool {return ds[i]<ds[j]}); sort.Slice(rs, func(i,j int) bool {return rs[i]<rs[j]})
	fmt.Println(n, shield, "dump", ds[0], ds[7], ds[14], "restore", rs[0], rs[7], rs[14])
	}}
}
