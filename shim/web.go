//go:build linux

package shim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/internal/config"
	"github.com/fastmig/fastmig/runtime/store"
	"github.com/fastmig/fastmig/shim/api"
	"github.com/fastmig/fastmig/shim/httpd"
	"github.com/fastmig/fastmig/shim/metrics"
	"github.com/fastmig/fastmig/shim/policy"
	"github.com/fastmig/fastmig/shim/service"
)

// closeTimeout bounds the wait for requests that are being answered.
const closeTimeout = 5 * time.Second

// web is a service as the HTTP interface sees it.
type web struct {
	*service.Service
	server *httpd.Server
}

var _ httpd.Service = (*web)(nil)

func (w *web) Run(ctx context.Context, r api.Run, o httpd.Origin) (api.Result, error) {
	return w.Service.Run(ctx, r, o == httpd.Network)
}

func (w *web) CheckpointRun(ctx context.Context, r api.CheckpointRun, o httpd.Origin) (api.Result, error) {
	return w.Service.CheckpointRun(ctx, r, o == httpd.Network)
}

// startupFile is where the mode of a service's next start is.
func startupFile(namespace, id string) string {
	return filepath.Join(api.SocketDir, namespace, id+".startup")
}

// serve makes the container's service, and its HTTP interface.
func (t *task) serve(node *config.Config) (err error) {
	if t.settings.Mode != ModeFastFreeze {
		return nil
	}
	t.node = node
	t.store = &store.Store{Node: node.Checkpoints, Root: t.root, Keep: node.Keep, Timeout: time.Duration(node.StoreTimeout)}
	recorder := metrics.New(t.ns, t.id)
	t.svc = service.New(service.Config{
		ID: t.id, Namespace: t.ns, Args: t.spec.Process.Args, Env: t.spec.Process.Env,
		Settings: t.settings.Settings, Node: node, Body: body{t}, Recorder: recorder,
		StartupFile: startupFile(t.ns, t.id),
	})
	if t.settings.Supervise != service.SuperviseNever {
		t.heart = newHeart(t, node.Supervisor)
	}
	w := &web{Service: t.svc}
	cfg := httpd.Config{
		Service: w, Metrics: recorder.Handler(func() api.State { return w.Status().State }),
		Socket: api.SocketPath(t.ns, t.id), Port: t.settings.HTTPPort,
	}
	if cfg.Port != 0 {
		cfg.NetNS = t.ownNetwork
	}
	if w.server, err = httpd.Serve(cfg); err != nil {
		return fmt.Errorf("serve the FastMig interface: %w", err)
	}
	t.web = w
	return nil
}

// ownNetwork opens the container's network namespace, which must not be the node's.
func (t *task) ownNetwork() (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", t.init.pid()))
	if err != nil {
		return nil, fmt.Errorf("open the container's network namespace: %w", err)
	}
	var ours, theirs unix.Stat_t
	if err = unix.Stat("/proc/self/ns/net", &ours); err == nil {
		err = unix.Fstat(int(f.Fd()), &theirs)
	}
	if err == nil && ours.Ino == theirs.Ino && ours.Dev == theirs.Dev {
		err = fmt.Errorf("io.fastmig.http: the container uses the node's network, to which its interface must not be open: leave the port out: %w", errdefs.ErrInvalidArgument)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// current are the settings with what requests have changed.
func (t *task) current() Settings {
	set := t.settings
	if t.svc != nil {
		set.Settings = t.svc.Settings()
	}
	return set
}

// quiet is called when the container has ended: nothing works in it any more, and
// its network is not held.
func (t *task) quiet() {
	if t.heart != nil {
		t.heart.stop()
	}
	if t.svc != nil {
		t.svc.End("the container has ended")
	}
	if t.web != nil {
		t.web.server.CloseNetwork()
	}
	if inc := t.inc.Load(); inc != nil && inc.pins != nil {
		inc.pins.Close()
	}
}

// retire gives up what quiet leaves for those who look at an ended container.
func (t *task) retire(ctx context.Context) {
	t.quiet()
	if t.web != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if err := t.web.server.Close(ctx); err != nil {
			log.G(ctx).WithError(err).WithField("id", t.id).Warn("end the FastMig interface")
		}
	}
	if t.svc != nil {
		t.svc.Close()
		_ = os.Remove(startupFile(t.ns, t.id))
	}
}

// asStock says that nothing distinguishes the container from one of the stock shim.
func (s Settings) asStock() bool {
	return s.Startup == api.StartScratch && s.OnExit == service.OnExitTied && s.ImageURL == "" &&
		s.Supervise != service.SuperviseAlways && s.HTTPPort == 0
}

// check refuses what the node does not allow.
func (s Settings) check(node *config.Config) error {
	if s.OnExit == service.OnExitTied || s.OnExit == service.OnExitDefault || s.OnExit == "" {
		return nil
	}
	if _, err := policy.NewDecider(node.Deciders, s.OnExit); err != nil {
		return fmt.Errorf("annotation io.fastmig.on-exit: %w", err)
	}
	return nil
}
