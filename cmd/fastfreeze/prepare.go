package main

import "unsafe"

// PID 1 is this program started twice: some things must hold before the Go runtime starts, and only the first
// start can see to them. No huge pages (with them the heap's first byte costs 2 MiB), none of the container's
// GO* variables in the runtime's hands (they are meant for the application), and a name in the process list
// that says what this is instead of "/proc/self/fd/4".

// preparedVerb replaces "init" for the second start, which puts "init" back in its place. The last character
// is "1" if huge pages were disabled from the start; a signal mask that was not empty follows in hexadecimal.
const preparedVerb = "run0"

func isPrepared(verb string) bool {
	n := len(preparedVerb)
	return (len(verb) == n || len(verb) == n+16) && verb[:n-1] == preparedVerb[:n-1] && (verb[n-1] == '0' || verb[n-1] == '1')
}

const (
	socketFd = 3
	selfFd   = 4
)

// prepare is the first start. It does not return.
func prepare(args []string) {
	prctl(prSetDumpable, 0)
	var mask uint64
	sys4(sysRtSigprocmask, sigBlock, 0, uintptr(unsafe.Pointer(&mask)), 8)
	verb := []byte(preparedVerb)
	if prctl(prGetThpDisable, 0) == 1 {
		verb[3] = '1'
	} else {
		prctl(prSetThpDisable, 1)
	}
	if mask != 0 {
		verb = appendHex(verb, mask)
	}
	env := environ(args)
	hideRuntimeSettings(env)

	argv := vector(args)
	argv[0] = newCstring("fastfreeze")
	argv[1] = newCstring(string(verb))
	envp := vector(env)
	// The way that the container runtime came is tried first: what allowed it allows it again.
	for _, path := range [...]string{"/proc/self/fd/4", "/proc/self/exe"} {
		p := newCstring(path)
		sys3(sysExecve, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0])))
	}
	empty := newCstring("")
	_, e := result(rawSyscall6(sysExecveat, selfFd, uintptr(unsafe.Pointer(empty)),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0])), atEmptyPth, 0))
	die("executing itself", e, "descriptor 4 must be the executable of fastfreeze")
}

// prepared is what the first start found and the application must get back.
type prepared struct {
	mask     uint64
	thpFixed bool // huge pages were disabled by us
}

// takeOver is the second start's counterpart of prepare: it reads what the verb says and undoes the marks in
// the arguments and the environment, where /proc/1/cmdline and /proc/1/environ show them.
func takeOver(args, env []string) prepared {
	verb := args[1]
	p := prepared{mask: parseHex(verb[len(preparedVerb):]), thpFixed: verb[3] == '0'}
	mem := unsafe.Slice(unsafe.StringData(verb), len(verb))
	for i := range mem {
		mem[i] = ' '
	}
	copy(mem, "init")
	showRuntimeSettings(env)
	return p
}

// environ gives the environment as it lies in memory behind the arguments, so that it can be handed on byte for
// byte and changed in place. The runtime only has copies.
func environ(args []string) []string {
	env := runtimeEnvs()
	p := unsafe.Pointer(unsafe.StringData(args[0]))
	for _, a := range args {
		p = unsafe.Add(p, len(a)+1)
	}
	for i, copied := range env {
		s := unsafe.String((*byte)(p), len(copied))
		if s != copied {
			die("reading the environment", eINVAL, "the kernel lays out the environment in an unknown way")
		}
		env[i] = s
		p = unsafe.Add(p, len(s)+1)
	}
	return env
}

// runtimeSettings are the variables that the Go runtime acts on. In a container's environment they are meant
// for the application.
var runtimeSettings = [...]string{"GODEBUG=", "GOGC=", "GOMAXPROCS=", "GOMEMLIMIT=", "GOTRACEBACK="}

// hidden stands for the "G" of a runtime setting between the first start and the second.
const hidden = 0x01

func hideRuntimeSettings(env []string) { markRuntimeSettings(env, 'G', hidden) }
func showRuntimeSettings(env []string) { markRuntimeSettings(env, hidden, 'G') }

// markRuntimeSettings changes the first byte of the runtime's variables in place.
func markRuntimeSettings(env []string, from, to byte) {
	for _, v := range env {
		for _, name := range runtimeSettings {
			if len(v) >= len(name) && v[0] == from && v[1:len(name)] == name[1:] {
				*unsafe.StringData(v) = to
			}
		}
	}
}

const hexDigits = "0123456789abcdef"

func appendHex(b []byte, v uint64) []byte {
	for shift := 60; shift >= 0; shift -= 4 {
		b = append(b, hexDigits[v>>shift&0xf])
	}
	return b
}

// parseHex reads what appendHex wrote; anything else counts as far as it is readable.
func parseHex(s string) uint64 {
	var v uint64
	for i := 0; i < len(s); i++ {
		for d := range hexDigits {
			if s[i] == hexDigits[d] {
				v = v<<4 | uint64(d)
			}
		}
	}
	return v
}
