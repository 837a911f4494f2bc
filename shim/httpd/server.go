//go:build linux

// Package httpd is the FastMig interface of one container: HTTP on a unix
// socket of the host and, if asked for, on a TCP port in the container's own
// network.
package httpd

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/fastmig/fastmig/shim/api"
)

// Service is what the interface speaks for. Its operations block until they have
// ended or ctx does; what they are called with has the right form, but need not
// make sense. Their errors have errdefs' kinds.
type Service interface {
	Status() api.Status
	Run(context.Context, api.Run, Origin) (api.Result, error)
	CheckpointRun(context.Context, api.CheckpointRun, Origin) (api.Result, error)
	Checkpoint(context.Context, api.CheckpointRequest) (api.Result, error)
	Restore(context.Context, api.RestoreRequest) (api.Result, error)
	Start(context.Context, api.StartRequest) (api.Result, error)
	Stop(context.Context, api.StopRequest) (api.Result, error)
	Standby(context.Context, api.StopRequest) (api.Result, error)
	// Events are those after the number that are still known, and then the new ones. The
	// channel is closed when ctx ends or the container does.
	Events(ctx context.Context, after uint64) <-chan api.Event
}

// Origin says where a request came from.
type Origin bool

// The origins. What came by the container's network is as hostile as the container.
const (
	Host    Origin = false
	Network Origin = true
)

// Config is what Serve needs.
type Config struct {
	Service Service
	// Metrics answers GET /metrics; nil: there are none.
	Metrics http.Handler
	// Socket is the path of the unix socket. Its folder is made if it is missing.
	Socket string
	// Port in the container's network; 0: none.
	Port int
	// NetNS opens the container's network namespace; it is needed with a Port. The file
	// is closed by the server.
	NetNS func() (*os.File, error)
}

// timing is how long the server waits for its clients.
type timing struct {
	header    time.Duration // for a request's head
	body      time.Duration // for its body, and for what is written at its start
	write     time.Duration // for one write of an answer
	idle      time.Duration // for the next request on a connection
	keepAlive time.Duration // between two signs of life on a stream of events
}

var defaultTiming = timing{
	header:    10 * time.Second,
	body:      10 * time.Second,
	write:     10 * time.Second,
	idle:      30 * time.Second,
	keepAlive: 15 * time.Second,
}

const (
	// maxHeader bounds a request's head; net/http adds 4 KiB to it.
	maxHeader = 4 << 10
	// maxNetworkConns bounds the connections from the container's network: each costs
	// the shim some 20 KiB.
	maxNetworkConns = 64
	// maxNetworkBodies bounds the requests with a body that are served at once for the
	// container's network: each may take some MiB of the shim's memory, which the
	// container's limit does not cover.
	maxNetworkBodies = 4
)

// errClosing is why a request ends with its server.
var errClosing = fmt.Errorf("the container's FastMig interface is being closed: %w", errdefs.ErrUnavailable)

// Server answers for one container. It costs one goroutine for each listener, and one
// or two for each connection.
type Server struct {
	service   Service
	metrics   http.Handler
	timing    timing
	slots     chan struct{} // held by requests with a body from the network
	socket    *socket
	servers   []*http.Server
	listeners []net.Listener
	loops     sync.WaitGroup // the servers' accept loops

	ctx    context.Context // of all requests
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	running int           // requests; under mu
	closing bool          // no further request begins; under mu
	idle    chan struct{} // closed when closing and no request runs
}

// Serve listens and answers until Close. When it returns without an error the sockets
// take connections. ErrAlreadyExists: another living shim has the socket, or a program
// of the container the port.
func Serve(cfg Config) (*Server, error) {
	return serve(cfg, defaultTiming)
}

func serve(cfg Config, t timing) (_ *Server, err error) {
	s := &Server{service: cfg.Service, metrics: cfg.Metrics, timing: t, slots: make(chan struct{}, maxNetworkBodies), idle: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	if s.socket, err = listenUnix(cfg.Socket); err != nil {
		return nil, err
	}
	var network net.Listener
	if cfg.Port != 0 {
		if network, err = listenNetwork(cfg.Port, cfg.NetNS); err != nil {
			return nil, errors.Join(err, s.socket.remove(), s.socket.listener.Close())
		}
	}
	s.start(s.socket.listener, Host)
	if network != nil {
		s.start(newLimited(network, maxNetworkConns), Network)
	}
	return s, nil
}

// noHTTP2 keeps net/http from setting up what only TLS needs.
var noHTTP2 = func() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return p
}()

var errorLog = stdlog.New(logWriter{}, "", 0)

// logWriter takes net/http's own complaints. They are mostly about clients.
type logWriter struct{}

func (logWriter) Write(p []byte) (int, error) {
	log.L.Debug("FastMig interface: " + strings.TrimSpace(string(p)))
	return len(p), nil
}

// start serves a listener. There is no WriteTimeout: an operation may take as long as
// it takes; each write has its own deadline.
func (s *Server) start(l net.Listener, o Origin) {
	h := &http.Server{
		Handler:           handler{s, o},
		Protocols:         noHTTP2,
		ReadHeaderTimeout: s.timing.header,
		IdleTimeout:       s.timing.idle,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          errorLog,
		BaseContext:       func(net.Listener) context.Context { return s.ctx },
	}
	s.servers = append(s.servers, h)
	s.listeners = append(s.listeners, l)
	s.loops.Go(func() {
		if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			log.L.WithError(err).Error("FastMig interface: it takes no more connections")
		}
	})
}

// begin counts a request in; false: the server is being closed.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.running++
	return true
}

func (s *Server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running--; s.closing && s.running == 0 {
		close(s.idle)
	}
}

// CloseNetwork ends the listener in the container's network namespace, which it keeps
// alive; connections that are open there end with their requests.
func (s *Server) CloseNetwork() {
	if len(s.servers) < 2 {
		return
	}
	s.servers[1].Close()
}

// Close takes no more connections, cancels the requests that run, waits for them until
// ctx ends, and closes what is left. The socket's file is removed, unless it is
// another's by now. ErrDeadlineExceeded or ErrCanceled: requests still run; they
// are cancelled and have lost their clients. A second call does nothing.
//
// A server with a Port keeps the container's network namespace alive until then.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return nil
	}
	s.closing = true
	if s.running == 0 {
		close(s.idle)
	}
	s.mu.Unlock()

	// http.Server.Shutdown is of no use here: it would wait up to five seconds for a
	// connection on which nothing was ever said.
	err := s.socket.remove()
	for _, l := range s.listeners {
		l.Close() // an error: its loop has closed it
	}
	s.cancel(errClosing)
	select {
	case <-s.idle:
	case <-ctx.Done():
		s.mu.Lock()
		n := s.running
		s.mu.Unlock()
		if n > 0 {
			err = errors.Join(err, fmt.Errorf("close the FastMig interface: %d requests still run: %w", n, ctx.Err()))
		}
	}
	for _, h := range s.servers {
		if cerr := h.Close(); !errors.Is(cerr, net.ErrClosed) { // the listener is
			err = errors.Join(err, cerr)
		}
	}
	s.loops.Wait()
	return err
}
