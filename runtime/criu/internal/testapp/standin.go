//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// trap leaves a file that says that this program was run under the name of a tool which
// nobody should run in the container.
func trap(name string) error {
	return os.WriteFile("/trap-"+filepath.Base(name), nil, 0o600)
}

// standin plays CRIU, started as its loader: it does what the file in the place of CRIU's
// binary says, one command a line. The kernel probe always succeeds.
func standin(args []string) error {
	n := len(args)
	sock, err := strconv.Atoi(args[n-1])
	if err != nil {
		return err
	}
	var script []byte
	for i, arg := range args {
		if arg == "--no-default-config" {
			if script, err = os.ReadFile(args[i-1]); err != nil {
				return err
			}
		}
	}
	if fd := os.Getenv("FASTMIG_KDAT_NEW_FD"); fd != "" {
		if err := os.WriteFile("/proc/self/fd/"+fd, []byte("probe"), 0); err != nil {
			return err
		}
		script = []byte("receive\nanswer FEATURE_CHECK true\n")
	}
	for line := range strings.Lines(string(script)) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if err := play(sock, words); err != nil {
			return fmt.Errorf("%s: %w", strings.TrimSpace(line), err)
		}
	}
	return nil
}

func play(sock int, words []string) error {
	text := strings.Join(words[1:], " ")
	switch words[0] {
	case "log":
		_, err := fmt.Fprintln(os.Stderr, text)
		return err
	case "environment":
		_, err := fmt.Fprintln(os.Stderr, strings.Join(os.Environ(), "\n"))
		return err
	case "exit":
		os.Exit(number(words, 1))
	case "kill":
		return unix.Kill(os.Getpid(), unix.SIGKILL)
	case "fork": // a child that stays
		_, err := syscall.ForkExec("/proc/self/exe", []string{"testapp", "hang"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
		return err
	case "hang":
		signal.Ignore(unix.SIGTERM)
		rest()
	case "obey": // until SIGTERM
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, unix.SIGTERM)
		<-stop
	case "receive":
		_, err := receive(sock)
		return err
	case "notify":
		pid := int32(number(words, 2))
		kind := rpc.CriuReqType_NOTIFY
		yes := true
		if err := send(sock, &rpc.CriuResp{Type: &kind, Success: &yes, Notify: &rpc.CriuNotify{Script: &words[1], Pid: &pid}}); err != nil {
			return err
		}
		req, err := receive(sock)
		if err == nil && !req.GetNotifySuccess() {
			os.Exit(1)
		}
		return err
	case "answer":
		kind := rpc.CriuReqType(rpc.CriuReqType_value[words[1]])
		ok := words[2] == "true"
		pid := int32(number(words, 3))
		return send(sock, &rpc.CriuResp{Type: &kind, Success: &ok, Restore: &rpc.CriuRestoreResp{Pid: &pid}})
	case "garbage":
		_, err := unix.Write(sock, bytes.Repeat([]byte{0xff}, number(words, 1)))
		return err
	}
	return nil
}

func send(sock int, resp *rpc.CriuResp) error {
	b, err := resp.MarshalVT()
	if err == nil {
		_, err = unix.Write(sock, b)
	}
	return err
}

func receive(sock int) (*rpc.CriuReq, error) {
	b := make([]byte, 64<<10)
	n, err := unix.Read(sock, b)
	if err != nil {
		return nil, err
	}
	req := new(rpc.CriuReq)
	return req, req.UnmarshalVT(b[:n])
}
