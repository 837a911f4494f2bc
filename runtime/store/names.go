package store

import (
	"crypto/rand"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Beside NAME a place has .NAME.previous, .NAME.previous-1 and so on with older
// checkpoints, .NAME.new-RANDOM with one in the making, and .NAME.old-RANDOM
// with one that is being removed. No name of one place is one of another's:
// RANDOM has no dot in it.

func (p *place) previous(i int) string {
	if i == 0 {
		return "." + p.name + ".previous"
	}
	return "." + p.name + ".previous-" + strconv.Itoa(i)
}

func (p *place) newName() string { return "." + p.name + ".new-" + rand.Text() }
func (p *place) oldName() string { return "." + p.name + ".old-" + rand.Text() }

// previousIndex is the inverse of previous.
func (p *place) previousIndex(name string) (int, bool) {
	rest, found := strings.CutPrefix(name, p.previous(0))
	if !found {
		return 0, false
	}
	if rest == "" {
		return 0, true
	}
	i, err := strconv.Atoi(strings.TrimPrefix(rest, "-"))
	return i, err == nil && i > 0 && p.previous(i) == name
}

// isLeftover tells names of newName and oldName.
func (p *place) isLeftover(name string) bool {
	rest, found := strings.CutPrefix(name, "."+p.name+".")
	if !found {
		return false
	}
	kind, text, _ := strings.Cut(rest, "-")
	return (kind == "new" || kind == "old") && len(text) == len(rand.Text()) &&
		strings.Trim(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

func (p *place) isNew(name string) bool { return strings.HasPrefix(name, "."+p.name+".new-") }

// names reads the parent folder: the indices of the older checkpoints, newest
// first, and what writers left.
func (p *place) names() (older []int, leftovers []string, err error) {
	fd, err := unix.Openat(int(p.parent.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, withKind(err)
	}
	d := os.NewFile(uintptr(fd), p.parent.Name())
	defer d.Close()
	all, err := d.Readdirnames(-1)
	if err != nil {
		return nil, nil, withKind(err)
	}
	for _, name := range all {
		if i, ok := p.previousIndex(name); ok {
			older = append(older, i)
		} else if p.isLeftover(name) {
			leftovers = append(leftovers, name)
		}
	}
	slices.Sort(older)
	return older, leftovers, nil
}
