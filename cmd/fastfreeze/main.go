// One processor is what PID 1 uses: the runtime shall not keep cgroup files open to learn how many there are.
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command fastfreeze is what FastMig puts into a container: PID 1, which starts the application on the shim's
// word, forwards signals, reaps, and reports how the application ended.
//
// It runs with the container's user and rights, once for every container of a node. So it holds little memory,
// allocates nothing while it waits, never blocks on the shim, and trusts no message.
package main

const version = "0.1.0"

const usage = `fastfreeze ` + version + `: PID 1 of containers that run under FastMig. The shim starts it, not you.

  fastfreeze init -- APP [ARGS...]   be PID 1 of a container and start APP when the shim says so
                                     (descriptor 3: the shim's socket, descriptor 4: this executable)
  fastfreeze last-pid N              let the next process of this pid namespace get pid N+1
  fastfreeze warm FILE               move to the cgroup whose cgroup.procs FILE is: makes the next moves fast

To run a container: ctr run --runtime io.containerd.fastmig.v2 IMAGE ID
To see what this node can do: fastmig check
`

// exitUsage is the exit code for a wrong command line, exitBroken for a PID 1 that cannot work.
const (
	exitUsage  = 2
	exitBroken = 125
)

func main() {
	args := runtimeArgs()
	verb := ""
	if len(args) > 1 {
		verb = args[1]
	}
	switch {
	case verb == "last-pid" && len(args) == 3:
		lastPid(args[2])
	case verb == "warm" && len(args) == 3:
		warm(args[2])
	case verb == "init" && len(args) > 3 && args[2] == "--":
		prepare(args)
	case isPrepared(verb) && len(args) > 3:
		serve(args)
	case verb == "--version":
		writeAll(2, "fastfreeze "+version+"\n")
	case verb == "" || verb == "--help" || verb == "-h":
		writeAll(2, usage)
	default:
		writeAll(2, "fastfreeze: unknown command or missing arguments: "+verb+"\n"+usage)
	}
	exit(exitUsage)
}

// die ends a PID 1 that cannot do its work and says why on the container's stderr.
func die(what string, e errno, remedy string) {
	writeAll(2, "fastfreeze: "+what+": "+e.Error()+"; "+remedy+"\n")
	exit(exitBroken)
}
