//go:build linux

// Package client speaks to the FastMig interface of containers on this node, each
// of which has a unix socket of its own.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/shim/api"
)

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 16 << 20

// Client speaks to one container's shim. It holds no connection between its calls
// and may be used by several goroutines at once.
//
// Its methods return what the shim refused as *api.Error, which wraps the errdefs
// kind; so do a socket that is missing (not found), one that nobody listens on
// (unavailable) and one that is not the caller's (permission denied). When the context
// ends, they return an error that wraps the context's.
type Client struct {
	socket  string
	missing string // what is said when there is no socket
	http    http.Client
}

// Dial makes a client of a container. It opens nothing: that there is no such container
// is what the first call says.
func Dial(namespace, id string) *Client { return Default.Dial(namespace, id) }

// New makes a client of the socket at path.
func New(path string) *Client { return newClient(path, "no container listens at "+path) }

func newClient(path, missing string) *Client {
	c := &Client{socket: path, missing: missing}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, path) },
		// A connection a call: an operation lasts long, and its end is the connection's.
		DisableKeepAlives:  true,
		DisableCompression: true,
	}
	return c
}

// Status asks how the service is.
func (c *Client) Status(ctx context.Context) (api.Status, error) {
	var s api.Status
	return s, c.call(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// Checkpoint writes a checkpoint of the service and returns when it is whole. When ctx
// ends before that, the shim takes the operation back.
func (c *Client) Checkpoint(ctx context.Context, r api.CheckpointRequest) (api.Result, error) {
	return c.operate(ctx, "checkpoint", r)
}

// Restore brings the service back from a checkpoint and returns when it runs. When ctx
// ends before that, the shim takes the operation back.
func (c *Client) Restore(ctx context.Context, r api.RestoreRequest) (api.Result, error) {
	return c.operate(ctx, "restore", r)
}

// Start starts the service from scratch and returns when it runs.
func (c *Client) Start(ctx context.Context, r api.StartRequest) (api.Result, error) {
	return c.operate(ctx, "start", r)
}

// Stop ends the service as the request says and returns when it has ended.
func (c *Client) Stop(ctx context.Context, r api.StopRequest) (api.Result, error) {
	return c.operate(ctx, "stop", r)
}

// Standby ends the service at once, if it runs, and returns when it has ended.
func (c *Client) Standby(ctx context.Context, r api.StopRequest) (api.Result, error) {
	return c.operate(ctx, "standby", r)
}

func (c *Client) operate(ctx context.Context, name string, request any) (api.Result, error) {
	var r api.Result
	return r, c.call(ctx, http.MethodPost, "/v1/"+name, request, &r)
}

// call sends a request and decodes the answer.
func (c *Client) call(ctx context.Context, method, path string, request, answer any) error {
	resp, err := c.send(ctx, method, path, request, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(answer); err != nil {
		return c.broken(ctx, fmt.Errorf("decode the shim's answer to %s: %w", path, err))
	}
	return nil
}

// send sends a request and returns its answer if that is 2xx.
func (c *Client) send(ctx context.Context, method, path string, request any, header http.Header) (*http.Response, error) {
	var body io.Reader
	if request != nil {
		b, err := json.Marshal(request)
		if err != nil {
			return nil, fmt.Errorf("encode the request of %s: %w", path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://fastmig"+path, body)
	if err != nil {
		return nil, fmt.Errorf("make the request of %s: %w", path, err)
	}
	if header != nil {
		req.Header = header
	}
	if request != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.broken(ctx, err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, refused(resp)
	}
	return resp, nil
}

// broken says what a conversation means that failed.
func (c *Client) broken(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the request was given up: %w", ctx.Err())
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENAMETOOLONG):
		return &api.Error{Kind: "not_found", Message: c.missing}
	case errors.Is(err, unix.ECONNREFUSED):
		return &api.Error{Kind: "unavailable",
			Message: fmt.Sprintf("nobody listens at %s: the container's shim is gone, and the container with it; delete the container", c.socket)}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return denied(c.socket)
	}
	return &api.Error{Kind: "unavailable",
		Message: fmt.Sprintf("the shim at %s ended the conversation before it had answered (%v): ask for the status", c.socket, err)}
}

func denied(path string) *api.Error {
	return &api.Error{Kind: "permission_denied", Message: fmt.Sprintf("connect to %s: permission denied: it is root's alone; run this as root", path)}
}

// refused makes an error of an answer that is not 2xx.
func refused(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	e := new(api.Error)
	if err == nil && json.Unmarshal(body, e) == nil && e.Kind != "" {
		return e
	}
	return &api.Error{Kind: "internal", Message: fmt.Sprintf("the shim answered %s: %s: is it of the same release as this client?",
		resp.Status, strings.TrimSpace(string(body)))}
}
