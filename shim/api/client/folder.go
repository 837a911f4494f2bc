//go:build linux

package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fastmig/fastmig/shim/api"
)

// listTimeout is what a shim has to tell its status when all are asked.
const listTimeout = 2 * time.Second

// Folder is where the sockets of a node's containers are: NAMESPACE/ID.sock below it.
type Folder string

// Default is the folder of a node.
const Default Folder = api.SocketDir

// Name of a container under FastMig.
type Name struct{ Namespace, ID string }

func (n Name) String() string { return n.Namespace + "/" + n.ID }

// Listed is a container that has a socket: its status, or why there is none. As JSON
// it is the status, or an object with its name and the error.
type Listed struct {
	Namespace string `json:"namespace"`
	ID        string `json:"id"`
	*api.Status
	Error *api.Error `json:"error,omitempty"`
}

// List asks all containers of the node that are in the namespace (in all, if that is
// empty) for their status, at the same time and not for long. One that does not answer is
// listed with its error.
func List(ctx context.Context, namespace string) ([]Listed, error) {
	return Default.List(ctx, namespace)
}

// Dial makes a client of a container, as the function does.
func (f Folder) Dial(namespace, id string) *Client {
	return newClient(f.Path(Name{namespace, id}),
		fmt.Sprintf("no such container under FastMig in namespace %s: %s; `fastmig ps` lists them", namespace, id))
}

// Path of a container's socket. What cannot be a name leads nowhere, instead of
// elsewhere.
func (f Folder) Path(n Name) string {
	if !plain(n.Namespace) || !plain(n.ID) {
		return filepath.Join(string(f), "no name", "no name")
	}
	return filepath.Join(string(f), n.Namespace, n.ID+".sock")
}

// plain says whether a name stays in the folder that it is looked up in.
func plain(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
}

// Names are the containers that have a socket in the namespace (in all, if that is
// empty), sorted. None is not an error.
func (f Folder) Names(namespace string) ([]Name, error) {
	namespaces := []string{namespace}
	if namespace == "" {
		entries, err := readDir(string(f))
		if err != nil {
			return nil, err
		}
		namespaces = nil
		for _, e := range entries {
			if e.IsDir() {
				namespaces = append(namespaces, e.Name())
			}
		}
	}
	var names []Name
	for _, ns := range namespaces {
		if !plain(ns) {
			return nil, &api.Error{Kind: "invalid_argument", Message: fmt.Sprintf("%q is no namespace's name", ns)}
		}
		entries, err := readDir(filepath.Join(string(f), ns))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if id, ok := strings.CutSuffix(e.Name(), ".sock"); ok && id != "" && e.Type() == fs.ModeSocket {
				names = append(names, Name{ns, id})
			}
		}
	}
	slices.SortFunc(names, func(a, b Name) int {
		return strings.Compare(a.Namespace+"\x00"+a.ID, b.Namespace+"\x00"+b.ID)
	})
	return names, nil
}

// readDir lists a folder; one that is not there is empty.
func readDir(path string) ([]os.DirEntry, error) {
	entries, err := os.ReadDir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, denied(path)
	case err != nil:
		return nil, fmt.Errorf("list the containers: %w", err)
	}
	return entries, nil
}

// List is as the function.
func (f Folder) List(ctx context.Context, namespace string) ([]Listed, error) {
	names, err := f.Names(namespace)
	if err != nil {
		return nil, err
	}
	listed := make([]Listed, len(names))
	var wait sync.WaitGroup
	for i, n := range names {
		wait.Go(func() {
			listed[i] = f.ask(ctx, n)
		})
	}
	wait.Wait()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("list the containers: %w", ctx.Err())
	}
	return listed, nil
}

func (f Folder) ask(ctx context.Context, n Name) Listed {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	s, err := f.Dial(n.Namespace, n.ID).Status(ctx)
	if err == nil {
		return Listed{Namespace: n.Namespace, ID: n.ID, Status: &s}
	}
	var e *api.Error
	switch {
	case errors.As(err, &e):
	case ctx.Err() != nil:
		e = &api.Error{Kind: "deadline_exceeded", Message: fmt.Sprintf("the shim did not tell its status within %v: it hangs, or the node is overloaded", listTimeout)}
	default:
		e, _ = api.NewError(err, "")
	}
	return Listed{Namespace: n.Namespace, ID: n.ID, Error: e}
}
