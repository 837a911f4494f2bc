package workloads

import (
	"context"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/fastmig/fastmig/integration/harness"
)

const (
	tickFile = "/tmp/tick"
	treeDir  = "/tmp/tree"
	treeSize = 16
)

func fillTick(ctx context.Context, c *harness.Container) (Check, error) {
	return fillMark(ctx, c, func(ctx context.Context, c *harness.Container) (mark, error) {
		out, err := c.Exec(ctx, "cat", tickFile)
		if err != nil {
			return mark{}, err
		}
		return parseMark(out)
	})
}

// fillMark is for programs whose only state is their mark.
func fillMark(ctx context.Context, c *harness.Container, read func(context.Context, *harness.Container) (mark, error)) (Check, error) {
	old, err := eventually(ctx, "the first count", func(ctx context.Context) (mark, error) { return read(ctx, c) })
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, c *harness.Container) error {
		return old.continues(ctx, func(ctx context.Context) (mark, error) { return read(ctx, c) })
	}, nil
}

// fillTerminal types into the shell, whose variables are the state.
func fillTerminal(ctx context.Context, c *harness.Container) (Check, error) {
	if err := typeLine(ctx, c, `state=$RANDOM$RANDOM; trap 'echo caught' USR1; echo "start:$state:$$:"`, "start:"); err != nil {
		return nil, err
	}
	// The echo of what was typed comes first; the answer has digits instead.
	state, err := eventually(ctx, "the shell's answer", func(context.Context) (string, error) {
		for _, line := range strings.Split(c.Output.String(), "\n") {
			words := strings.Split(strings.TrimSpace(line), ":")
			if len(words) == 4 && words[0] == "start" {
				if _, err := strconv.Atoi(words[1]); err == nil {
					return words[1] + ":" + words[2], nil
				}
			}
		}
		return "", fmt.Errorf("so far: %q", c.Output)
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, c *harness.Container) error {
		// A new word for each check: the output still holds earlier answers.
		word := harness.NewID("check")
		if err := typeLine(ctx, c, fmt.Sprintf(`tty >/dev/null && echo "%s=$state:$$"`, word), word+"="+state); err != nil {
			return fmt.Errorf("ask the shell on its terminal: %w", err)
		}
		return typeLine(ctx, c, "kill -USR1 $$", "caught")
	}, nil
}

func typeLine(ctx context.Context, c *harness.Container, line, answer string) error {
	// The pipe to the container is not buffered: a shell that does not read
	// must not block the test.
	written := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c.Stdin, line+"\n")
		written <- err
	}()
	ctx, cancel := context.WithTimeout(ctx, progressTimeout)
	defer cancel()
	select {
	case err := <-written:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return fmt.Errorf("nobody reads the terminal: %w", ctx.Err())
	}
	return c.Output.WaitForText(ctx, answer)
}

// treeState maps a process of the tree to its mark and its parent.
type treeState map[int]struct {
	mark
	parent int
}

func readTree(ctx context.Context, c *harness.Container) (treeState, error) {
	out, err := c.Exec(ctx, "grep", "", "-r", treeDir)
	if err != nil {
		return nil, err
	}
	state := treeState{}
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		path, text, _ := strings.Cut(line, ":")
		pid, err := strconv.Atoi(filepath.Base(path))
		words := strings.Fields(text)
		if err != nil || len(words) != 3 {
			return nil, fmt.Errorf("half a line: %q", line) // read while it was written
		}
		m, err := parseMark(words[0] + " " + words[1])
		if err != nil {
			return nil, err
		}
		parent, err := strconv.Atoi(words[2])
		if err != nil {
			return nil, err
		}
		entry := state[pid]
		entry.mark, entry.parent = m, parent
		state[pid] = entry
	}
	if len(state) != treeSize {
		return nil, fmt.Errorf("%d processes, not %d", len(state), treeSize)
	}
	return state, nil
}

func fillTree(ctx context.Context, c *harness.Container) (Check, error) {
	read := func(c *harness.Container) (treeState, error) {
		return eventually(ctx, "all processes of the tree", func(ctx context.Context) (treeState, error) { return readTree(ctx, c) })
	}
	old, err := read(c)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, c *harness.Container) error {
		for pid := range maps.Keys(old) {
			was := old[pid]
			err := was.continues(ctx, func(ctx context.Context) (mark, error) {
				state, err := readTree(ctx, c)
				if err != nil {
					return mark{}, err
				}
				now, ok := state[pid]
				// The root's parent is the container's affair.
				if _, inTree := old[was.parent]; !ok || inTree && now.parent != was.parent {
					return mark{}, harness.Final(fmt.Errorf("its parent is %d, not %d", now.parent, was.parent))
				}
				return now.mark, nil
			})
			if err != nil {
				return fmt.Errorf("process %d of the tree: %w", pid, err)
			}
		}
		return nil
	}, nil
}
