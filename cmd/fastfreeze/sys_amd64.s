#include "textflag.h"

// func rawSyscall6(nr, a1, a2, a3, a4, a5, a6 uintptr) (ret uintptr)
TEXT ·rawSyscall6(SB), NOSPLIT, $0-64
	MOVQ nr+0(FP), AX
	MOVQ a1+8(FP), DI
	MOVQ a2+16(FP), SI
	MOVQ a3+24(FP), DX
	MOVQ a4+32(FP), R10
	MOVQ a5+40(FP), R8
	MOVQ a6+48(FP), R9
	SYSCALL
	MOVQ AX, ret+56(FP)
	RET

// func maskerPC() (handler, restorer uintptr)
TEXT ·maskerPC(SB), NOSPLIT, $0-16
	LEAQ masker<>(SB), AX
	MOVQ AX, handler+0(FP)
	LEAQ restorer<>(SB), AX
	MOVQ AX, restorer+8(FP)
	RET

// masker is a signal handler: it makes its thread block all signals from its return on, by setting uc_sigmask
// of the ucontext_t in DX, and counts itself.
TEXT masker<>(SB), NOSPLIT|NOFRAME, $0
	MOVQ $-1, 296(DX)
	LOCK
	INCL ·masked(SB)
	RET

// restorer ends a signal handler: rt_sigreturn.
TEXT restorer<>(SB), NOSPLIT|NOFRAME, $0
	MOVQ $15, AX
	SYSCALL
	INT  $3
