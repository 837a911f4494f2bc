package main

// System call numbers of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).
const (
	sysRead           = 0
	sysWrite          = 1
	sysClose          = 3
	sysLseek          = 8
	sysMmap           = 9
	sysMunmap         = 11
	sysRtSigaction    = 13
	sysRtSigprocmask  = 14
	sysIoctl          = 16
	sysSchedYield     = 24
	sysGetpid         = 39
	sysSendto         = 44
	sysRecvmsg        = 47
	sysClone          = 56
	sysExecve         = 59
	sysWait4          = 61
	sysKill           = 62
	sysFcntl          = 72
	sysSetsid         = 112
	sysRtSigtimedwait = 128
	sysRtSigqueueinfo = 129
	sysPrctl          = 157
	sysGetdents64     = 217
	sysClockGettime   = 228
	sysExitGroup      = 231
	sysTgkill         = 234
	sysOpenat         = 257
	sysNewfstatat     = 262
	sysFaccessat      = 269
	sysPpoll          = 271
	sysSignalfd4      = 289
	sysDup3           = 292
	sysPipe2          = 293
	sysExecveat       = 322
	sysCloseRange     = 436
	sysFaccessat2     = 439
)

// statModeOffset is where st_mode lies in struct stat.
const statModeOffset = 24

// saRestorer: the kernel wants the address of the code that ends a signal handler.
const saRestorer = 0x04000000
