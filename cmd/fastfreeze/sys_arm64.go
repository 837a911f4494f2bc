package main

// System call numbers of arm64 (include/uapi/asm-generic/unistd.h).
const (
	sysDup3           = 24
	sysFcntl          = 25
	sysIoctl          = 29
	sysFaccessat      = 48
	sysOpenat         = 56
	sysClose          = 57
	sysPipe2          = 59
	sysGetdents64     = 61
	sysLseek          = 62
	sysRead           = 63
	sysWrite          = 64
	sysPpoll          = 73
	sysSignalfd4      = 74
	sysNewfstatat     = 79
	sysExitGroup      = 94
	sysClockGettime   = 113
	sysSchedYield     = 124
	sysKill           = 129
	sysTgkill         = 131
	sysRtSigaction    = 134
	sysRtSigprocmask  = 135
	sysRtSigtimedwait = 137
	sysRtSigqueueinfo = 138
	sysSetsid         = 157
	sysPrctl          = 167
	sysGetpid         = 172
	sysSendto         = 206
	sysRecvmsg        = 212
	sysMunmap         = 215
	sysClone          = 220
	sysExecve         = 221
	sysMmap           = 222
	sysWait4          = 260
	sysExecveat       = 281
	sysCloseRange     = 436
	sysFaccessat2     = 439
)

// statModeOffset is where st_mode lies in struct stat.
const statModeOffset = 16

// saRestorer is zero: the kernel has the code that ends a signal handler in its vDSO.
const saRestorer = 0
