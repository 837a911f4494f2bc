package integration_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/shim/api"
)

// aloneInStandby waits until nothing of a restore is left, and checks that the container
// is in standby and works.
func aloneInStandby(t *testing.T, lab *harness.Lab, c *harness.Container, init uint32) {
	t.Helper()
	waitState(t, lab, c, api.Standby)
	equal(t, "the first process", c.Task.Pid(), init)
	lab.WaitFor("all that was restored to be gone", func(ctx context.Context) (bool, error) {
		pids, err := c.Task.Pids(ctx)
		return err == nil && len(pids) == 1 && pids[0].Pid == init && len(below(int(init))) == 0, errors.Join(err, fmt.Errorf("%v", pids))
	})
	wantState(t, lab, c, api.Standby)
	equal(t, "an exec's output", lab.MustExec(c, "echo", "here"), "here\n")
}

// TestFailedRestores lets warm restores fail in several ways: the container is in standby
// after each, and the next restore succeeds.
func TestFailedRestores(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	source := lab.MustRun(crowd())
	continues := ticking(lab, t, source)
	good, bad := nodeURL(), nodeURL()
	saveTo(t, lab, source, bad, true)
	spoil(t, filepath.Join(nodeCheckpoints(lab), strings.TrimPrefix(bad, "node:")))
	saveTo(t, lab, source, good, false)
	target := lab.MustRun(standby(crowd()))
	init := target.Task.Pid()
	shim := shimOf(lab, t, target)
	inTheMiddle := func(t *testing.T, lab *harness.Lab) {
		lab.WaitFor("CRIU to have restored some processes", func(context.Context) (bool, error) {
			return criuOf(shim) != 0 && len(below(shim)) > 20, nil
		})
	}
	recovers := func(t *testing.T, lab *harness.Lab) {
		t.Helper()
		aloneInStandby(t, lab, target, init)
		restoreFrom(t, lab, target, good)
		continues(target)
		_, err := target.Interface().Standby(lab.Context(), api.StopRequest{})
		check(t, err)
	}
	for _, test := range []labTest{
		{"damaged", func(t *testing.T, lab *harness.Lab) {
			_, err := target.Interface().Restore(lab.Context(), api.RestoreRequest{ImageURL: bad})
			var e *api.Error
			if !errors.As(err, &e) || e.Kind != "data_loss" {
				t.Fatalf("the restore: %v", err)
			}
			wantText(t, e.Message, bad, "changed")
		}},
		{"client gone", func(t *testing.T, lab *harness.Lab) {
			ctx, cancel := context.WithCancel(lab.Context())
			defer cancel()
			result := make(chan error, 1)
			go func() {
				_, err := target.Interface().Restore(ctx, api.RestoreRequest{ImageURL: good})
				result <- err
			}()
			inTheMiddle(t, lab)
			cancel()
			if err := <-result; !errors.Is(err, context.Canceled) {
				t.Fatalf("the restore: %v", err)
			}
			s := waitState(t, lab, target, api.Standby)
			wantText(t, s.Reason, "cancel")
		}},
		{"CRIU killed twice", func(t *testing.T, lab *harness.Lab) {
			result := make(chan error, 1)
			go func() {
				_, err := target.Interface().Restore(lab.Context(), api.RestoreRequest{ImageURL: good})
				result <- err
			}()
			inTheMiddle(t, lab)
			first := criuOf(shim)
			kill(t, first)
			// It is tried once more.
			lab.WaitFor("another CRIU to be at work", func(context.Context) (bool, error) {
				pid := criuOf(shim)
				return pid != 0 && pid != first && len(below(shim)) > 20, nil
			})
			kill(t, criuOf(shim))
			err := <-result
			refused(t, "the restore", err, nil)
			if err != nil {
				wantText(t, err.Error(), "kill")
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			lab := lab.For(t)
			test.run(t, lab)
			recovers(t, lab)
		})
	}
	t.Run("CRIU killed once", func(t *testing.T) {
		lab := lab.For(t)
		type answer struct {
			r   api.Result
			err error
		}
		result := make(chan answer, 1)
		go func() {
			r, err := target.Interface().Restore(lab.Context(), api.RestoreRequest{ImageURL: good})
			result <- answer{r, err}
		}()
		inTheMiddle(t, lab)
		kill(t, criuOf(shim))
		a := <-result
		check(t, a.err)
		wantText(t, strings.Join(a.r.Notes, "\n"), "once more")
		continues(target)
		equal(t, "the application", serviceOf(t, lab, target).AppPid, a.r.AppPid)
	})
}

// TestForged lets a container bring a checkpoint of its own with more rights than the
// container has: it is refused with the reason.
func TestForged(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	// Whoever may write to the volume can put there what some other machine has dumped.
	volume := t.TempDir()
	check(t, os.Chmod(volume, 0o777))
	with := func(spec ...oci.SpecOpts) harness.RunOptions {
		opts := script(`echo up; while :; do sleep 0.02; done`)
		opts.Spec = append(spec, oci.WithMounts([]specs.Mount{{Type: "bind", Source: volume, Destination: "/vol", Options: []string{"rbind", "rw"}}}))
		return opts
	}
	asUser := func(uid uint32) oci.SpecOpts {
		return withProcess(func(p *specs.Process) {
			p.User = specs.User{UID: uid, GID: uid}
			if c := p.Capabilities; c != nil {
				c.Bounding, c.Effective, c.Permitted, c.Inheritable, c.Ambient = nil, nil, nil, nil, nil
			}
		})
	}
	for _, f := range []struct {
		name         string
		forger, jail []oci.SpecOpts
		texts        []string
	}{
		{"no seccomp filter", nil, []oci.SpecOpts{seccomp.WithDefaultProfile()}, []string{"seccomp"}},
		{"may gain privileges", []oci.SpecOpts{noNewPrivileges(false)}, []oci.SpecOpts{noNewPrivileges(true)}, []string{"no_new_privs"}},
		{"another user", []oci.SpecOpts{asUser(0)}, []oci.SpecOpts{asUser(1234)}, []string{"user"}},
		{"more capabilities", []oci.SpecOpts{oci.WithAllCurrentCapabilities}, nil, []string{"capabilit"}},
	} {
		t.Run(f.name, func(t *testing.T) {
			lab := lab.For(t)
			url := "file:/vol/" + harness.NewID("ckpt")
			source := lab.MustRun(with(f.forger...))
			waitText(t, lab, source.Output, "up\n")
			saveTo(t, lab, source, url, false)
			check(t, filepath.WalkDir(volume, func(path string, _ os.DirEntry, err error) error {
				return errors.Join(err, os.Chmod(path, 0o777))
			}))
			target := lab.MustRun(standby(with(f.jail...)))
			a := post(t, lab, target, "/run", `{"image_url":`+quoted(url)+`}`)
			if a.Status < 400 {
				t.Fatalf("it was restored: %s", a.Text)
			}
			wantText(t, strings.ToLower(a.Text), f.texts...)
			aloneInStandby(t, lab, target, target.Task.Pid())
			restoreFrom(t, lab, source, url) // where it fits
		})
	}
}

// TestExchanged has the container exchange the files of its checkpoint, again and again,
// while it is being restored: what comes back is what was verified, or nothing does.
func TestExchanged(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	c := lab.MustRun(crowd())
	continues := ticking(lab, t, c)
	saveTo(t, lab, c, "file:/ckpt", false)
	// Two wholes to exchange: the checkpoint, and one whose files are all spoilt; and in
	// the same places, files that change while they are open.
	lab.MustExec(c, "sh", "-c", `cp -a /ckpt /bad && cp -a /ckpt /good && for f in /bad/*.img; do dd if=/dev/urandom of=$f bs=4096 count=1 conv=notrunc 2>/dev/null; done`)
	meddler := startExec(t, lab, c, execOptions{args: []string{"sh", "-c", `while :; do
		for f in /bad/pages-*.img; do cat $f >/ckpt/${f##*/}; done; for f in /bad/core-10*.img; do cp $f /ckpt/.x; mv /ckpt/.x /ckpt/${f##*/}; done
		echo round
		for f in /good/pages-*.img; do cat $f >/ckpt/${f##*/}; done; for f in /good/core-10*.img; do cp $f /ckpt/.x; mv /ckpt/.x /ckpt/${f##*/}; done
		done`}})
	waitText(t, lab, meddler.output, "round\n")
	restored := 0
	for range 4 {
		r, err := c.Interface().Restore(lab.Context(), api.RestoreRequest{ImageURL: "file:/ckpt"})
		var e *api.Error
		switch {
		case err == nil:
			restored++
			if r.Checkpoint == nil {
				t.Fatalf("the result is %+v", r)
			}
			continues(c)
			_, err := c.Interface().Standby(lab.Context(), api.StopRequest{})
			check(t, err)
		case !errors.As(err, &e) || e.Kind != "data_loss":
			t.Errorf("a restore of files that change: %v", err)
		}
		wantState(t, lab, c, api.Standby)
	}
	t.Logf("%d of 4 restores found the checkpoint whole", restored)
	check(t, meddler.Kill(lab.Context(), 9))
	meddler.exit(t, lab)
	lab.MustExec(c, "sh", "-c", "rm -r /ckpt && cp -a /good /ckpt")
	restoreFrom(t, lab, c, "file:/ckpt")
	continues(c)
}
