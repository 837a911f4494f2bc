#include "textflag.h"

// func rawSyscall6(nr, a1, a2, a3, a4, a5, a6 uintptr) (ret uintptr)
TEXT ·rawSyscall6(SB), NOSPLIT, $0-64
	MOVD nr+0(FP), R8
	MOVD a1+8(FP), R0
	MOVD a2+16(FP), R1
	MOVD a3+24(FP), R2
	MOVD a4+32(FP), R3
	MOVD a5+40(FP), R4
	MOVD a6+48(FP), R5
	SVC  $0
	MOVD R0, ret+56(FP)
	RET

// func maskerPC() (handler, restorer uintptr)
TEXT ·maskerPC(SB), NOSPLIT, $0-16
	MOVD $masker<>(SB), R0
	MOVD R0, handler+0(FP)
	MOVD ZR, restorer+8(FP)
	RET

// masker is a signal handler: it makes its thread block all signals from its return on, by setting uc_sigmask
// of the ucontext_t in R2, and counts itself.
TEXT masker<>(SB), NOSPLIT|NOFRAME, $0
	MOVD $-1, R9
	MOVD R9, 40(R2)
	MOVD $·masked(SB), R10

again:
	LDAXRW (R10), R11
	ADDW   $1, R11
	STLXRW R11, (R10), R12
	CBNZ   R12, again
	RET
