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
	// inTheMiddle waits for a restore to be under way and returns CRIU's pid; 0: the restore has ended already, as answer
	// tells. not is a CRIU that does not count.
	inTheMiddle := func(lab *harness.Lab, not int, answer chan restoreAnswer) int {
		for lab.Context().Err() == nil && len(answer) == 0 {
			// Without a pause: it does not take long.
			if pid := criuOf(shim); pid != 0 && pid != not && len(below(pid)) > 5 {
				return pid
			}
		}
		return 0
	}
	begin := func(ctx context.Context) chan restoreAnswer {
		answer := make(chan restoreAnswer, 1)
		go func() {
			r, err := target.Interface().Restore(ctx, api.RestoreRequest{ImageURL: good})
			answer <- restoreAnswer{r, err}
		}()
		return answer
	}
	// tries repeats what may come too late.
	tries := func(t *testing.T, lab *harness.Lab, try func() bool) {
		t.Helper()
		for range 10 {
			if try() {
				return
			}
			_, err := target.Interface().Standby(lab.Context(), api.StopRequest{})
			check(t, err)
		}
		t.Fatal("all restores were over before they could be disturbed")
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
			wantText(t, e.Message, bad, "content changed")
		}},
		{"client gone", func(t *testing.T, lab *harness.Lab) {
			tries(t, lab, func() bool {
				ctx, cancel := context.WithCancel(lab.Context())
				defer cancel()
				answer := begin(ctx)
				pid := inTheMiddle(lab, 0, answer)
				cancel()
				err := (<-answer).err
				if err == nil {
					return false
				}
				if !errors.Is(err, context.Canceled) {
					t.Fatalf("the restore: %v", err)
				}
				s := waitState(t, lab, target, api.Standby, api.Running)
				if pid == 0 || s.State == api.Running {
					return false
				}
				wantText(t, s.Reason, "cancel")
				return true
			})
		}},
		{"CRIU killed twice", func(t *testing.T, lab *harness.Lab) {
			tries(t, lab, func() bool {
				answer := begin(lab.Context())
				first := inTheMiddle(lab, 0, answer)
				if first != 0 {
					kill(t, first)
					// It is tried once more.
					if second := inTheMiddle(lab, first, answer); second != 0 {
						kill(t, second)
					}
				}
				err := (<-answer).err
				if err != nil {
					wantText(t, err.Error(), "kill")
				}
				return err != nil
			})
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
		tries(t, lab, func() bool {
			answer := begin(lab.Context())
			if pid := inTheMiddle(lab, 0, answer); pid != 0 {
				kill(t, pid)
			}
			a := <-answer
			check(t, a.err)
			continues(target)
			equal(t, "the application", serviceOf(t, lab, target).AppPid, a.r.AppPid)
			return strings.Contains(strings.Join(a.r.Notes, "\n"), "once more")
		})
	})
}

type restoreAnswer struct {
	r   api.Result
	err error
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
