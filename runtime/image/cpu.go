package image

import (
	"slices"
	"strings"
)

// Which flags of /proc/cpuinfo matter is a list of what does, not of what does
// not: a flag is needed if an unprivileged program can run into its absence,
// that is, if it stands for instructions or register state of user mode.
// Programs look once, at their start (the C library picks its memcpy), and use
// what they found until they end; restored on a CPU without it they die of
// SIGILL. Flags of virtual machines, power management, speculation controls,
// page tables, and names that the kernel invents for its own use do not matter,
// and differ between kernels on the same CPU.

// userFeaturesX86 are instructions and register state of user mode.
var userFeaturesX86 = strings.Fields(`
	3dnow 3dnowext 3dnowprefetch abm adx aes apx avx avx2 bmi1 bmi2
	clflush clflushopt clwb clzero cmov cx16 cx8 enqcmd f16c fma fma4 fpu
	fsgsbase fxsr fxsr_opt gfni hle lahf_lm lwp misalignsse mmx mmxext monitorx
	lam movbe movdir64b movdiri mpx nopl ospke osxsave pclmulqdq pku pni popcnt
	aeskle kl widekl ptwrite raoint rdpid rdpru rdrand rdseed rdtscp rtm serialize
	sep sha_ni sha512 sm3 sm4 ssse3 syscall tbm tsc tsxldtrk user_shstk vaes
	vpclmulqdq waitpkg xgetbv1 xop xsave xsavec xsaveopt`)

// userFamiliesX86 are families of such features that still grow.
var userFamiliesX86 = []string{"avx512", "avx10", "avx_", "amx_", "sse"}

// notUserFeaturesOther are the flags of the other architectures that do not
// matter: theirs are the kernel's promises to programs (AT_HWCAP), nearly all
// of them instructions.
var notUserFeaturesOther = []string{"cpuid", "evtstrm"}

// lackingFeatures returns what code on the source may be using and the
// destination does not have.
func lackingFeatures(arch string, source, destination []string) []string {
	var lacking []string
	for _, f := range source {
		if userFeature(arch, f) && !slices.Contains(destination, f) {
			lacking = append(lacking, f)
		}
	}
	return lacking
}

func userFeature(arch, feature string) bool {
	if arch != "amd64" && arch != "386" {
		return !slices.Contains(notUserFeaturesOther, feature)
	}
	return slices.Contains(userFeaturesX86, feature) ||
		slices.ContainsFunc(userFamiliesX86, func(p string) bool { return strings.HasPrefix(feature, p) })
}
