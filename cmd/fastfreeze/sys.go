package main

import "unsafe"

// This program makes its system calls itself: importing the package syscall
// would raise the soft limit of open files at start, and the application must
// see the one of its container (and every page that is not linked is saved in
// every container of a node).

// Linux's values (include/uapi), the same on x86-64 and arm64.
const (
	atFdcwd    = -100
	atEmptyPth = 0x1000
	atEaccess  = 0x200
	xOK        = 1

	oWronly   = 0x1
	oNonblock = 0x800
	oCloexec  = 0x80000

	fSetfd    = 2
	fdCloexec = 1

	pollIn    = 0x1
	pollOut   = 0x4
	pollErr   = 0x8
	pollHup   = 0x10
	pollNval  = 0x20
	pollRdhup = 0x2000

	msgCtrunc      = 0x8
	msgTrunc       = 0x20
	msgDontwait    = 0x40
	msgNosignal    = 0x4000
	msgCmsgCloexec = 0x40000000
	solSocket      = 1
	scmRights      = 1

	seekEnd      = 2
	protRead     = 0x1
	protWrite    = 0x2
	mapPrivate   = 0x2
	mapAnonymous = 0x20

	sigBlock   = 0
	sigSetmask = 2
	sigDfl     = 0
	sigIgn     = 1

	siQueue = -1

	saSiginfo = 0x4
	saOnstack = 0x08000000
	saRestart = 0x10000000

	tiocSctty = 0x540e
	tiocNotty = 0x5422

	wNohang = 1
	wAll    = 0x40000000

	prSetDumpable       = 4
	prSetName           = 15
	prSetChildSubreaper = 36
	prSetThpDisable     = 41
	prGetThpDisable     = 42

	clockMonotonic = 1

	sIfmt  = 0o170000
	sIfdir = 0o040000
)

// Signals that are named in this program (signal(7)).
const (
	sigHUP  = 1
	sigINT  = 2
	sigQUIT = 3
	sigKILL = 9
	sigPIPE = 13
	sigILL  = 4
	sigBUS  = 7
	sigFPE  = 8
	sigSEGV = 11
	sigTERM = 15
	sigCHLD = 17
	sigCONT = 18
	sigTTIN = 21
	sigTTOU = 22
	sigURG  = 23
	numSig  = 64
)

// rawSyscall6 enters the kernel and returns its raw answer, -errno on failure. The Go scheduler is not told.
func rawSyscall6(nr, a1, a2, a3, a4, a5, a6 uintptr) (ret uintptr)

//go:linkname entersyscall runtime.entersyscall
func entersyscall()

//go:linkname exitsyscall runtime.exitsyscall
func exitsyscall()

//go:linkname runtimeArgs os.runtime_args
func runtimeArgs() []string

//go:linkname runtimeEnvs syscall.runtime_envs
func runtimeEnvs() []string

// waitSyscall6 is rawSyscall6 for calls that wait: the scheduler gives the processor away, so that no thread
// of the runtime polls while PID 1 has nothing to do. Pointers must be to memory that does not move.
//
//go:nosplit
func waitSyscall6(nr, a1, a2, a3, a4, a5, a6 uintptr) uintptr {
	entersyscall()
	r := rawSyscall6(nr, a1, a2, a3, a4, a5, a6)
	exitsyscall()
	return r
}

// errno is a Linux error number; zero is none.
type errno uint32

// result splits the kernel's answer.
//
//go:nosplit
func result(r uintptr) (int, errno) {
	if e := -int(r); e > 0 && e < 4096 {
		return -1, errno(e)
	}
	return int(r), 0
}

// sys3 and sys4 take pointers as uintptr(unsafe.Pointer(p)) in the call itself: what they point to is then
// moved to the heap and kept. The paths that PID 1 takes again and again use global memory instead.
//
//go:uintptrescapes
//go:nosplit
func sys3(nr, a1, a2, a3 uintptr) (int, errno) { return result(rawSyscall6(nr, a1, a2, a3, 0, 0, 0)) }

//go:uintptrescapes
//go:nosplit
func sys4(nr, a1, a2, a3, a4 uintptr) (int, errno) {
	return result(rawSyscall6(nr, a1, a2, a3, a4, 0, 0))
}

//go:uintptrescapes
//go:nosplit
func sys6(nr, a1, a2, a3, a4, a5, a6 uintptr) (int, errno) {
	return result(rawSyscall6(nr, a1, a2, a3, a4, a5, a6))
}

func exit(code int) {
	for {
		sys3(sysExitGroup, uintptr(code), 0, 0)
	}
}

func closeFd(fd int) { sys3(sysClose, uintptr(fd), 0, 0) }

func prctl(op, arg uintptr) int {
	n, _ := result(rawSyscall6(sysPrctl, op, arg, 0, 0, 0, 0))
	return n
}

func setCloexec(fd int) errno {
	_, e := sys3(sysFcntl, uintptr(fd), fSetfd, fdCloexec)
	return e
}

func kill(pid, sig int) errno {
	_, e := sys3(sysKill, uintptr(pid), uintptr(sig), 0)
	return e
}

// writeAll writes s to fd as far as that is possible.
func writeAll(fd int, s string) {
	for len(s) > 0 {
		n, e := sys3(sysWrite, uintptr(fd), uintptr(unsafe.Pointer(unsafe.StringData(s))), uintptr(len(s)))
		if e != 0 || n == 0 {
			return
		}
		s = s[n:]
	}
}

const (
	ePERM    = errno(1)
	eNOENT   = errno(2)
	eSRCH    = errno(3)
	eINTR    = errno(4)
	eIO      = errno(5)
	e2BIG    = errno(7)
	eNOEXEC  = errno(8)
	eCHILD   = errno(10)
	eAGAIN   = errno(11)
	eNOMEM   = errno(12)
	eACCES   = errno(13)
	eBUSY    = errno(16)
	eNOTDIR  = errno(20)
	eISDIR   = errno(21)
	eINVAL   = errno(22)
	eMFILE   = errno(24)
	eNOTTY   = errno(25)
	eTXTBSY  = errno(26)
	eNAMETOO = errno(36)
	eNOSYS   = errno(38)
	eLOOP    = errno(40)
)

// Error gives the C library's words, as users of other runtimes know them.
func (e errno) Error() string {
	switch e {
	case ePERM:
		return "operation not permitted"
	case eNOENT:
		return "no such file or directory"
	case eSRCH:
		return "no such process"
	case eIO:
		return "input/output error"
	case e2BIG:
		return "argument list too long"
	case eNOEXEC:
		return "exec format error"
	case eAGAIN:
		return "resource temporarily unavailable"
	case eNOMEM:
		return "cannot allocate memory"
	case eACCES:
		return "permission denied"
	case eBUSY:
		return "device or resource busy"
	case eNOTDIR:
		return "not a directory"
	case eISDIR:
		return "is a directory"
	case eINVAL:
		return "invalid argument"
	case eMFILE:
		return "too many open files"
	case eNOTTY:
		return "inappropriate ioctl for device"
	case eTXTBSY:
		return "text file busy"
	case eNAMETOO:
		return "file name too long"
	case eNOSYS:
		return "function not implemented"
	case eLOOP:
		return "too many levels of symbolic links"
	}
	return "error number " + itoa(int(e))
}

// itoa writes n, which is not negative, in decimal.
func itoa(n int) string {
	var b [20]byte
	i := len(b)
	for {
		i--
		b[i] = byte('0' + n%10)
		if n /= 10; n == 0 {
			return string(b[i:])
		}
	}
}

// atoi reads a number of decimal digits only.
func atoi(s string) (int, bool) {
	n := 0
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' || n > 1<<30 {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n, len(s) > 0
}

// cstring is a string that ends with NUL in memory that the collector does not move.
type cstring *byte

func newCstring(s string) cstring {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return &b[0]
}

// vector makes the NULL-terminated array that execve takes of strings that the kernel put on our stack: each
// is followed by NUL there, so they go on byte for byte without a copy.
func vector(s []string) []*byte {
	v := make([]*byte, len(s)+1)
	for i := range s {
		v[i] = unsafe.StringData(s[i])
		if len(s[i]) == 0 {
			v[i] = newCstring("")
		}
	}
	return v
}
