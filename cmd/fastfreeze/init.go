package main

import (
	"unsafe"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
)

// state is where PID 1 stands with the application.
type state uint8

const (
	idle      state = iota // there is no application
	starting               // the child exists, its exec is not done
	running                // the application runs
	restoring              // a restore is putting the application below PID 1
	ending                 // the application has ended and PID 1 will, as soon as its other children are gone
)

// pid1 is the one object of this program.
type pid1 struct {
	state state
	self  int
	app   int             // the application's pid in all states but idle
	flags initproto.Flags // of the message that brought the application

	dropped   bool         // the stdio is let go of
	searchIn  string       // PATH
	lookup    *lookupError // of the container's own command
	spawn     spawner      // for the container's own command
	command   command      // another one, while it is being started
	name      string       // argv[0] of the application that is being started
	execPipe  int          // reading end of failPipe while starting, else -1
	socket    int          // -1: the shim is away
	childFd   int          // signalfd of SIGCHLD
	signalFd  int          // signalfd of all other signals
	exitCode  int          // in state ending
	deadline  int64
	early     int32 // status of an application that ended while restoring
	hasEarly  bool
	held      uint64 // signals from the shim that came while restoring
	reapedPid [16]int32
	reapedSt  [16]int32
	reapedAt  int
}

var p1 pid1

// serve is the second start: PID 1 itself. It does not return.
func serve(args []string) {
	prctl(prSetDumpable, 0)
	if setCloexec(socketFd) != 0 {
		die("taking the shim's socket", eINVAL, "descriptor 3 must be a SOCK_SEQPACKET socket")
	}
	// This executable has served its purpose, and what else came by mistake must not reach the application: a
	// leaked descriptor of another mount namespace makes it impossible to checkpoint.
	sys3(sysCloseRange, selfFd, 1<<32-1, 0)
	comm := newCstring("fastfreeze")
	sys3(sysPrctl, prSetName, uintptr(unsafe.Pointer(comm)), 0)
	env := environ(args)
	before := takeOver(args, env)

	p := &p1
	p.self, _ = sys3(sysGetpid, 0, 0, 0)
	if p.self != 1 {
		prctl(prSetChildSubreaper, 1)
	}
	p.socket, p.execPipe = socketFd, -1
	p.searchIn = getenv(env, "PATH")
	p.spawn = spawner{name: args[3], argv: vector(args[3:]), envp: vector(env), mask: before.mask, thpFixed: before.thpFixed}
	p.takeSignals()
	p.find()
	ready := initproto.Message{Type: initproto.Ready}
	if p.lookup != nil {
		ready.Text = p.lookup.text
	}
	p.send(&ready)
	p.loop()
}

// find looks the executable of the container's own command up.
func (p *pid1) find() {
	n, err := lookPath(p.spawn.name, p.searchIn)
	if p.lookup = err; err == nil {
		p.spawn.path = newCstring(string(candidate[:n]))
	}
}

// pollfd is struct pollfd of poll(2).
type pollfd struct {
	fd              int32
	events, revents int16
}

// What the loop hands to the kernel lies in global memory: it neither moves nor is made anew.
var (
	polled  [4]pollfd
	timeout [2]int64
	packet  [initproto.MaxSize]byte
)

// loop waits and acts for as long as there is a PID 1.
func (p *pid1) loop() {
	for {
		if p.state == idle && p.socket < 0 {
			// There is no application and nobody left who could give the word for one.
			exit(exitBroken)
		}
		polled = [4]pollfd{
			{fd: int32(p.childFd), events: pollIn},
			{fd: int32(p.signalFd), events: pollIn},
			{fd: int32(p.execPipe), events: pollIn},
			{fd: int32(p.socket), events: pollIn | pollRdhup},
		}
		if outbox.pending() {
			polled[3].events |= pollOut
		}
		if p.state == restoring {
			// Signals wait until it is known whom they are for.
			polled[1].fd = -1
		}
		var limit uintptr
		if p.state == ending {
			left := p.deadline - now()
			if left <= 0 {
				exit(p.exitCode)
			}
			timeout = [2]int64{left / 1e9, left % 1e9}
			limit = uintptr(unsafe.Pointer(&timeout))
		}
		n, _ := result(waitSyscall6(sysPpoll, uintptr(unsafe.Pointer(&polled)), uintptr(len(polled)), limit, 0, 0, 0))
		if n <= 0 {
			continue
		}
		// The exec's result comes first: what is reaped next may be that very child.
		if polled[2].revents != 0 {
			p.execDone()
		}
		if polled[0].revents != 0 {
			p.reap()
		}
		if polled[3].revents != 0 {
			p.talk(polled[3].revents)
		}
		if polled[1].revents != 0 && p.state != restoring {
			p.forward()
		}
	}
}

// talk sends what waits and handles all messages that are there.
func (p *pid1) talk(revents int16) {
	if revents&pollOut != 0 {
		p.flush()
	}
	for p.socket >= 0 {
		n, e := p.receive()
		switch {
		case e == eINTR:
			continue
		case e == eAGAIN:
			if revents&(pollErr|pollNval) != 0 {
				p.shimGone()
			}
			return
		case e != 0, n == 0 && revents&(pollHup|pollRdhup) != 0:
			received.close()
			p.shimGone()
			return
		case n > len(packet):
			received.close()
			continue
		}
		// Whoever sends what this version does not know learns nothing from a dead PID 1.
		if m, err := initproto.DecodeFromShim(packet[:n]); err == nil {
			p.handle(&m)
		}
		received.close()
		if n == 0 {
			return
		}
	}
}

// shimGone: the application goes on without the shim.
func (p *pid1) shimGone() {
	closeFd(p.socket)
	p.socket = -1
	outbox = queue{}
	if p.state == restoring {
		// The restore may have finished; if not, there is no application to see.
		p.restored()
	}
}

func (p *pid1) handle(m *initproto.Message) {
	switch m.Type {
	case initproto.Ping:
		p.send(&initproto.Message{Type: initproto.Pong, Seq: m.Seq})
	case initproto.Start:
		p.start(m)
	case initproto.Adopt:
		p.adopt(int(m.Pid), m.Flags)
	case initproto.Restored:
		p.restored()
	case initproto.Abandon:
		p.abandon()
	case initproto.Signal:
		p.signal(int(m.Signo))
	case initproto.Tie:
		if p.hasApp() || p.state == restoring {
			p.flags = p.flags&^initproto.Tied | m.Flags
		}
	}
}

// start forks the application. Up to the fork it makes no thread, and of the container's own command, if that
// was found before, nothing is allocated (see settle.go); another command lies in memory of its own.
func (p *pid1) start(m *initproto.Message) {
	if p.state != idle {
		p.startFailed(eBUSY, "starting the application: there is one already")
		return
	}
	if received.cut || received.count != m.Descriptors() {
		p.startFailed(eMFILE, "starting the application: "+itoa(received.count)+" descriptors came, not "+itoa(m.Descriptors())+
			": the container's limit of open files may be too low for them")
		return
	}
	renew := m.Flags&initproto.NewStdio != 0
	if p.dropped && !renew {
		p.startFailed(eINVAL, "starting the application: the stdio was let go of when the last one ran; new descriptors must come along")
		return
	}
	if p.launch(m.Flags, renew) {
		return
	}
	p.name = ""
	p.command.free()
	if renew && p.dropped {
		// What came is not to be held open by a container without an application.
		dropStdio()
	}
}

// launch does the work of start. If it fails, it has said so.
func (p *pid1) launch(flags initproto.Flags, renew bool) bool {
	spawn, lookup := &p.spawn, p.lookup
	if flags&initproto.Command != 0 {
		spawn = &p.command.spawn
		if e, text := p.command.load(int(received.fd[received.count-1]), &p.spawn); e != 0 {
			p.startFailed(e, text)
			return false
		}
		lookup = p.command.find()
	} else if lookup != nil {
		p.find()
		lookup = p.lookup
	}
	if lookup != nil {
		p.startFailed(lookup.code, lookup.text)
		return false
	}
	if renew {
		for i := range 3 {
			if _, e := sys3(sysDup3, uintptr(received.fd[i]), uintptr(i), 0); e != 0 {
				p.startFailed(e, "starting the application: taking its descriptor "+itoa(i)+": "+e.Error())
				return false
			}
		}
		received.close()
	}
	if flags&initproto.Terminal != 0 {
		dropTerminal()
	}
	if _, e := sys3(sysPipe2, uintptr(unsafe.Pointer(&execPipe)), oCloexec|oNonblock, 0); e != 0 {
		p.startFailed(e, "starting the application: making a pipe: "+e.Error())
		return false
	}
	p.name, spawn.terminal, spawn.failPipe = spawn.name, flags&initproto.Terminal != 0, int(execPipe[1])
	pid, e := spawn.fork()
	closeFd(int(execPipe[1]))
	if e != 0 {
		closeFd(int(execPipe[0]))
		p.startFailed(e, "starting the application: clone: "+e.Error())
		return false
	}
	p.state, p.app, p.flags, p.execPipe = starting, pid, flags, int(execPipe[0])
	return true
}

var (
	execPipe [2]int32
	execFail failure
)

// execDone reads what became of the exec: nothing to read at the end of the pipe means that it succeeded.
func (p *pid1) execDone() {
	n, e := sys3(sysRead, uintptr(p.execPipe), uintptr(unsafe.Pointer(&execFail)), unsafe.Sizeof(execFail))
	if e == eAGAIN || e == eINTR {
		return
	}
	closeFd(p.execPipe)
	p.execPipe = -1
	if n == int(unsafe.Sizeof(execFail)) {
		p.state = idle
		p.startFailed(execFail.code, execFail.describe(p.name))
		if p.dropped {
			dropStdio()
		}
	} else {
		p.dropped = false
		p.begin()
	}
	p.name = ""
	p.command.free()
}

// begin: the application runs.
func (p *pid1) begin() {
	p.state = running
	if p.flags&(initproto.DropStdio|initproto.Terminal) == initproto.DropStdio {
		dropStdio()
		p.dropped = true
	}
	p.send(&initproto.Message{Type: initproto.Started, Pid: int32(p.app)})
}

func (p *pid1) startFailed(e errno, text string) {
	p.send(&initproto.Message{Type: initproto.StartFailed, Errno: uint32(e), Text: text})
}

// adopt: pid will be the application as soon as the restore is done.
func (p *pid1) adopt(pid int, flags initproto.Flags) {
	if p.state != idle || pid == p.self {
		p.startFailed(eBUSY, "adopting a restored application: there is one already")
		return
	}
	p.state, p.app, p.flags, p.hasEarly, p.held = restoring, pid, flags, false, 0
	if flags&initproto.Terminal != 0 {
		dropTerminal()
	}
}

// restored: the process that was announced is there, or was and has ended since.
func (p *pid1) restored() {
	if p.state != restoring {
		return
	}
	status, ended := p.early, p.hasEarly
	if !ended && kill(p.app, 0) == eSRCH {
		// A word that came late: it may have been reaped before it was announced.
		if status, ended = p.reaped(p.app); !ended {
			p.state = idle
			p.startFailed(eSRCH, "adopting a restored application: process "+itoa(p.app)+" is not there")
			p.release()
			return
		}
	}
	p.begin()
	p.release()
	if ended {
		p.ended(status)
	}
}

// abandon: the restore failed; what it left is not the application.
func (p *pid1) abandon() {
	if p.state != restoring {
		return
	}
	p.state = idle
	if p.hasEarly {
		p.forget(p.app)
	}
	p.release()
}

// release gives the signals that came while restoring to whom they are for.
func (p *pid1) release() {
	held := p.held
	p.held = 0
	for sig := 1; sig <= numSig; sig++ {
		if held&sigset(sig) != 0 {
			p.signal(sig)
		}
	}
}
