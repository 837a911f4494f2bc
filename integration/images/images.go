// Package images makes the container images that tests, benchmarks and the
// demo run, out of Debian's packages and without any image registry. Built
// images stay in a cache outside the tree.
package images

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/fastmig/fastmig/integration/internal/checkout"
	"github.com/fastmig/fastmig/internal/debpkg"
)

//go:embed services
var services embed.FS

// unneeded are folders of packages that no program reads; without them images
// are smaller and import faster.
var unneeded = []string{"usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian"}

// recipeVersion is raised when the code below makes other images of the same
// recipes.
const recipeVersion = 2

// Image is a recipe. The package's variables are all there are.
type Image struct {
	// Name is the image's short name.
	Name string

	packages []string
	users    []user
	// files are copied from the services folder: path in the image → name.
	files  map[string]string
	config ocispec.ImageConfig
	// finish does what the packages' own scripts would do.
	finish func(ctx context.Context, root string) error
}

type user struct {
	name string
	id   int
	home string
}

// Ref is the reference under which the image is imported.
func (i Image) Ref() string { return "fastmig.test/" + i.Name + ":test" }

// Archive returns the path of the image as a tar archive in OCI layout,
// building it if the cache lacks it. Building takes from a second to a minute
// and reports to progress, which may be nil. Parallel builds are safe; one of
// them wins.
func (i Image) Archive(ctx context.Context, progress io.Writer) (string, error) {
	if progress == nil {
		progress = io.Discard
	}
	cache, err := checkout.Cache("images")
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, i.Name+"-"+i.key()+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	fmt.Fprintf(progress, "building the image %s (once; the cache is %s) ...\n", i.Name, cache)
	begin := time.Now()
	tmp, err := os.MkdirTemp(cache, i.Name+".tmp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	root := filepath.Join(tmp, "root")
	if err := i.populate(ctx, root, progress); err != nil {
		return "", fmt.Errorf("build the image %s: %w", i.Name, err)
	}
	archive := filepath.Join(tmp, "image.tar")
	if err := writeLayout(archive, root, i.Ref(), i.config); err != nil {
		return "", fmt.Errorf("build the image %s: %w", i.Name, err)
	}
	if err := os.Rename(archive, path); err != nil {
		return "", err
	}
	fmt.Fprintf(progress, "built the image %s in %.1f s\n", i.Name, time.Since(begin).Seconds())
	return path, nil
}

// key digests the recipe. A new version of a Debian package does not change
// it: a cached image stays as it is.
func (i Image) key() string {
	h := sha256.New()
	fmt.Fprintln(h, recipeVersion, i.Name, i.packages, i.users, i.files, i.config)
	_ = fs.WalkDir(services, "services", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			data, _ := services.ReadFile(path)
			fmt.Fprintln(h, path, len(data))
			h.Write(data)
		}
		return nil
	})
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// populate fills root with the image's files.
func (i Image) populate(ctx context.Context, root string, progress io.Writer) error {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if len(i.packages) > 0 {
		cache, err := checkout.Cache("debs")
		if err != nil {
			return err
		}
		debs, err := debpkg.Fetch(ctx, debpkg.Options{Dir: cache, Packages: i.packages, Progress: progress})
		if err != nil {
			return err
		}
		if err := debpkg.Unpack(ctx, debs, root); err != nil {
			return err
		}
		for _, path := range unneeded {
			if err := os.RemoveAll(filepath.Join(root, path)); err != nil {
				return err
			}
		}
	}
	if err := i.writeBasics(ctx, root); err != nil {
		return err
	}
	for path, name := range i.files {
		data, err := services.ReadFile("services/" + name)
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(root, path), data, 0o755); err != nil {
			return err
		}
	}
	if i.finish != nil {
		return i.finish(ctx, root)
	}
	return nil
}

// writeBasics makes what an installer and the packages' scripts make on a real
// system: users, /tmp, the cache of the dynamic loader.
func (i Image) writeBasics(ctx context.Context, root string) error {
	users := append([]user{{"root", 0, "/root"}, {"nobody", 65534, "/nonexistent"}}, i.users...)
	var passwd, group strings.Builder
	for _, u := range users {
		fmt.Fprintf(&passwd, "%s:x:%d:%d::%s:/bin/sh\n", u.name, u.id, u.id, u.home)
		fmt.Fprintf(&group, "%s:x:%d:\n", u.name, u.id)
	}
	for path, text := range map[string]string{"etc/passwd": passwd.String(), "etc/group": group.String()} {
		if err := writeFile(filepath.Join(root, path), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for dir, mode := range map[string]os.FileMode{"tmp": 0o777 | os.ModeSticky, "var/tmp": 0o777 | os.ModeSticky, "run": 0o755, "root": 0o700, "proc": 0o755, "sys": 0o755, "dev": 0o755} {
		path := filepath.Join(root, dir)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
	}
	for _, u := range i.users {
		home := filepath.Join(root, u.home)
		if err := os.MkdirAll(home, 0o755); err != nil {
			return err
		}
		if err := os.Chown(home, u.id, u.id); err != nil {
			return err
		}
	}
	if _, err := os.Stat(filepath.Join(root, "etc/ld.so.conf")); err == nil {
		return command(ctx, "", "/sbin/ldconfig", "-r", root)
	}
	return nil
}

func writeFile(path string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, mode)
}

func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return nil
}
