//go:build linux

package toolkit

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/containerd/errdefs"
)

// binary is a CRIU as found, before it is copied into a toolkit.
type binary struct {
	path string
	// within is the folder that everything must come from: an unpacked package,
	// or "/" for the host's own.
	within string
	// libraryPath is where the loader looks first; empty for the host's own.
	libraryPath []string
}

// needsByName are libraries that glibc opens by name when it needs them, so that
// no program lists them: the first is for ending threads (pthread_exit(3)).
var needsByName = []string{"libgcc_s.so.1"}

// collect copies the CRIU with its loader and exactly the libraries that it
// needs into dir, which it creates, and makes sure that the copy needs nothing
// from outside dir.
func collect(ctx context.Context, b binary, dir string) error {
	interp, err := interpreter(b.path)
	if err != nil {
		return err
	}
	loader, err := resolve(b.within, interp)
	if err != nil {
		return err
	}
	libs, err := listLibraries(ctx, loader, b.libraryPath, b.path)
	if err != nil {
		return err
	}
	addByName(libs, b.libraryPath)
	libDir := filepath.Join(dir, LibName)
	if err := errors.Join(makeDir(dir), makeDir(libDir)); err != nil {
		return err
	}
	for _, c := range []struct{ from, to string }{{b.path, CriuName}, {loader, LoaderName}} {
		if err := copyFile(c.from, filepath.Join(dir, c.to), 0o755); err != nil {
			return err
		}
	}
	for name, path := range libs {
		if name == filepath.Base(interp) {
			continue // the loader is there already
		}
		real, err := resolve(b.within, strings.TrimPrefix(path, strings.TrimSuffix(b.within, "/")))
		if err != nil {
			return err
		}
		if err := copyFile(real, filepath.Join(libDir, name), 0o644); err != nil {
			return err
		}
	}
	return selfContained(ctx, dir)
}

// selfContained asks the copied loader where it finds everything.
func selfContained(ctx context.Context, dir string) error {
	libs, err := listLibraries(ctx, filepath.Join(dir, LoaderName), []string{filepath.Join(dir, LibName)}, filepath.Join(dir, CriuName))
	if err != nil {
		return err
	}
	for name, path := range libs {
		if !strings.HasPrefix(path, dir+"/") {
			return fmt.Errorf("the copied CRIU would take %s from %s, outside of the toolkit: %w", name, path, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// interpreter is the loader that an executable names (ELF's PT_INTERP), which
// must be one for this machine.
func interpreter(path string) (string, error) {
	f, err := openELF(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	interp, err := interpOf(f)
	if err != nil {
		return "", fmt.Errorf("read the loader's name of %s: %w", path, err)
	}
	if interp == "" {
		return "", fmt.Errorf("%s is linked statically; a CRIU with a loader of its own is needed: %w", path, errdefs.ErrFailedPrecondition)
	}
	return interp, nil
}

func interpOf(f *elf.File) (string, error) {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		data := make([]byte, p.Filesz)
		if _, err := p.ReadAt(data, 0); err != nil {
			return "", err
		}
		return strings.TrimRight(string(data), "\x00"), nil
	}
	return "", nil
}

var machines = map[string]elf.Machine{
	"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "ppc64le": elf.EM_PPC64,
	"s390x": elf.EM_S390, "riscv64": elf.EM_RISCV, "arm": elf.EM_ARM, "loong64": elf.EM_LOONGARCH,
}

func openELF(path string) (*elf.File, error) {
	f, err := elf.Open(path)
	if err != nil {
		var format *elf.FormatError
		if errors.As(err, &format) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("%s is no ELF executable: %w: %w", path, err, errdefs.ErrInvalidArgument)
		}
		return nil, err
	}
	if want := machines[runtime.GOARCH]; f.Machine != want {
		f.Close()
		return nil, fmt.Errorf("%s is for %v, this machine is %v: %w", path, f.Machine, want, errdefs.ErrInvalidArgument)
	}
	return f, nil
}

// listLibraries asks the loader which libraries a program needs and where it
// finds them (ld.so(8), --list): path by name.
func listLibraries(ctx context.Context, loader string, libraryPath []string, program string) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var args []string
	if len(libraryPath) > 0 {
		args = append(args, "--library-path", strings.Join(libraryPath, ":"))
	}
	text, err := output(ctx, prepare(exec.CommandContext(ctx, loader, append(args, "--list", program)...)), filepath.Base(loader)+" --list")
	if err != nil {
		return nil, fmt.Errorf("list the libraries of %s: %w", program, err)
	}
	return parseList(text)
}

// parseList reads lines like "	libc.so.6 => /lib/libc.so.6 (0x7f…)". Lines
// without an arrow are the kernel's vdso and the loader itself.
func parseList(text string) (map[string]string, error) {
	libs := map[string]string{}
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(strings.TrimSpace(line), " => ")
		if !ok {
			continue
		}
		path, _, _ := strings.Cut(rest, " (")
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("the library %s is %s: install it: %w", name, path, errdefs.ErrFailedPrecondition)
		}
		libs[filepath.Base(name)] = path
	}
	return libs, nil
}

// addByName adds what is opened by name, if it lies where the others do.
func addByName(libs map[string]string, libraryPath []string) {
	dirs := append([]string{}, libraryPath...)
	for _, path := range libs {
		dirs = append(dirs, filepath.Dir(path))
	}
	for _, name := range needsByName {
		for _, dir := range dirs {
			path := filepath.Join(dir, name)
			if _, known := libs[name]; known {
				break
			}
			if _, err := os.Stat(path); err == nil {
				libs[name] = path
			}
		}
	}
}

// resolve follows all links of path inside root, and is the real file's path.
// The packages are signed by the archive that the host's own system comes from,
// so this guards against mistakes (a link that means the installed system), not
// against an attacker.
func resolve(root, path string) (string, error) {
	const maxLinks = 40
	full := filepath.Join(root, path)
	if root == "/" {
		return filepath.EvalSymlinks(full)
	}
	rest := strings.Split(strings.Trim(path, "/"), "/")
	at := root
	for links := 0; len(rest) > 0; {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		if !strings.HasPrefix(next+"/", root+"/") {
			return "", fmt.Errorf("%s leads out of %s: %w", path, root, errdefs.ErrFailedPrecondition)
		}
		target, err := os.Readlink(next)
		if err != nil {
			at = next // no link
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s: too many links: %w", full, errdefs.ErrFailedPrecondition)
		}
		if filepath.IsAbs(target) {
			at = root
		}
		rest = append(strings.Split(strings.Trim(target, "/"), "/"), rest...)
	}
	_, err := os.Stat(at)
	return at, err
}
