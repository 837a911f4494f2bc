//go:build linux

package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/errdefs"
)

// shield is a Shield at work.
type shield struct {
	service, outside *cgroup
	frozen           []cgroup // Others that were running
	warmed           chan struct{}
}

// raise freezes the container's other processes.
func raise(ctx context.Context, s Shield) (*shield, error) {
	sh := new(shield)
	if (s.Service == nil) != (s.Outside == nil) {
		return nil, fmt.Errorf("shield CRIU: Service and Outside belong together: %w", errdefs.ErrInvalidArgument)
	}
	for _, n := range []struct {
		folder *os.File
		group  **cgroup
	}{{s.Service, &sh.service}, {s.Outside, &sh.outside}} {
		if n.folder == nil {
			continue
		}
		c, err := openFreezer(n.folder)
		// The root of a hierarchy cannot be frozen, but CRIU can be moved there.
		if err != nil && n.group != &sh.outside {
			return nil, fmt.Errorf("shield CRIU: %w", err)
		}
		c.folder = n.folder
		*n.group = &c
	}
	for _, folder := range s.Others {
		c, err := openFreezer(folder)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("shield CRIU: %w", err), sh.lower())
		}
		already, err := c.asked()
		if err == nil && !already {
			sh.frozen = append(sh.frozen, c)
			err = c.freezeAndWait(ctx)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("shield CRIU: %w", err), sh.lower())
		}
	}
	return sh, nil
}

// warm takes the time that the first move between cgroups needs, some milliseconds for a
// grace period of the kernel's, out of the moment when the processes wait to run: it moves
// CRIU to where it is already, while CRIU starts and works.
func (s *shield) warm(criu int) {
	if s.service == nil || s.warmed != nil {
		return
	}
	s.warmed = make(chan struct{})
	go func() {
		defer close(s.warmed)
		_ = s.service.write("cgroup.procs", strconv.Itoa(criu))
	}()
}

// close comes before the restored processes run: CRIU, still holding them all, leaves their
// cgroup, and they are frozen in it.
func (s *shield) close(criu int) error {
	if s.service == nil {
		return nil
	}
	// A late warming would bring CRIU back into the frozen cgroup.
	s.settle()
	if err := s.outside.write("cgroup.procs", strconv.Itoa(criu)); err != nil {
		return fmt.Errorf("shield CRIU: move it out of the service's cgroup: %w", err)
	}
	if err := s.service.freeze(); err != nil {
		return fmt.Errorf("shield CRIU: %w", err)
	}
	return nil
}

func (s *shield) settle() {
	if s.warmed != nil {
		<-s.warmed
	}
}

// thawService lets killed processes die.
func (s *shield) thawService() {
	if s.service != nil {
		_ = s.service.thaw() // lower reports it
	}
}

// lower ends the shield: CRIU is gone.
func (s *shield) lower() error {
	s.settle()
	var errs []error
	if s.service != nil {
		errs = append(errs, s.service.thaw())
	}
	for _, c := range s.frozen {
		errs = append(errs, c.thaw())
	}
	return errors.Join(errs...)
}

// clear kills what a failed restore left.
func (s *shield) clear() error {
	if s.service == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), killGrace)
	defer cancel()
	return s.service.killAll(ctx)
}
