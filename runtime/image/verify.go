package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// maxProblems is how many problems an error spells out.
const maxProblems = 5

// Verify reads the whole checkpoint and compares it to its manifest: the same
// files, of the same sizes and contents, and nothing besides. It blocks for as
// long as the disk and the digests take, until ctx ends; after Trust it does
// nothing.
//
// Errors: DataLoss, with the first few problems; the context's.
func (c *Checkpoint) Verify(ctx context.Context) error {
	if c.verified.Load() {
		return nil
	}
	problems, err := c.problems(ctx)
	if err == nil {
		err = whole(problems)
	}
	if err != nil {
		return fmt.Errorf("verify the checkpoint %s: %w", c.Dir(), err)
	}
	return nil
}

// Trust has Verify take the checkpoint for whole from now on: it was verified,
// and nobody else writes to its folder.
func (c *Checkpoint) Trust() { c.verified.Store(true) }

func (c *Checkpoint) problems(ctx context.Context) ([]string, error) {
	files := c.Manifest.Files
	found := make([]string, len(files))
	err := eachFile(ctx, files, runtime.GOMAXPROCS(0), func(i int) error {
		var err error
		found[i], err = c.problem(ctx, files[i])
		return err
	})
	if err != nil {
		return nil, err
	}
	extra, err := c.extra()
	if err != nil {
		return nil, err
	}
	return append(found, extra...), nil
}

// problem says what is wrong with a file, if anything. An error says that it
// could not be found out.
func (c *Checkpoint) problem(ctx context.Context, file File) (string, error) {
	f, problem, err := c.openListed(file)
	if problem != "" || err != nil {
		return problem, err
	}
	defer f.Close()
	sum, err := digestFile(ctx, f, file.Size)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return file.Name + " is being truncated", nil
	case err != nil:
		return "", fmt.Errorf("read %s: %w", file.Name, err)
	case sum != file.SHA256:
		return fmt.Sprintf("%s: content changed", file.Name), nil
	}
	return "", nil
}

// extra lists what the manifest does not.
func (c *Checkpoint) extra() ([]string, error) {
	entries, err := list(c.dir)
	if err != nil {
		return nil, err
	}
	listed := make(map[string]bool, len(c.Manifest.Files))
	for _, f := range c.Manifest.Files {
		listed[f.Name] = true
	}
	var extra []string
	for _, e := range entries {
		if e.name == ManifestName || listed[e.name] {
			continue
		}
		// A power failure right after the commit may leave the writer's folder.
		if e.isPartial() {
			if inside, err := os.ReadDir(filepath.Join(self(c.dir), e.name)); err == nil && len(inside) == 0 {
				continue
			}
		}
		extra = append(extra, fmt.Sprintf("%s is an extra %s", e.name, describe(e.mode)))
	}
	return extra, nil
}

// summary joins the first few problems.
func summary(problems []string) string {
	shown := problems[:min(len(problems), maxProblems)]
	text := strings.Join(shown, ", ")
	if more := len(problems) - len(shown); more > 0 {
		text += fmt.Sprintf(", and %d more", more)
	}
	return text
}
