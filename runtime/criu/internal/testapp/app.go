//go:build linux

package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

// app is the application: an interpreter of one-line commands with some state, so that a
// test can set up any resource and see after a restore whether it is still there.
type app struct {
	values map[string]string
	held   []any // resources kept open
	fd     int   // of the command file
	conn   net.Conn
}

// runApp answers each line on stdin with one line on stdout: "ok …" or "error …".
func runApp(args []string) error {
	a := &app{values: map[string]string{}}
	for _, line := range args {
		if _, err := a.do(strings.Fields(line)); err != nil {
			return err
		}
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		words := strings.Fields(in.Text())
		if len(words) == 0 {
			continue
		}
		answer, err := a.do(words)
		if err != nil {
			answer = "error " + err.Error()
		} else {
			answer = strings.TrimSpace("ok " + answer)
		}
		if _, err := fmt.Println(answer); err != nil {
			return err
		}
	}
	return in.Err()
}

func (a *app) do(words []string) (string, error) {
	if len(words) == 0 {
		return "", nil
	}
	arg := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	switch words[0] {
	case "set":
		a.values[arg(1)] = arg(2)
		return "", nil
	case "get":
		return a.values[arg(1)], nil
	case "pid":
		return strconv.Itoa(os.Getpid()), nil
	case "ppid":
		return strconv.Itoa(os.Getppid()), nil
	}
	resource, found := resources[words[0]]
	if !found {
		return "", fmt.Errorf("no such command: %s", words[0])
	}
	return resource(a, words[1:])
}
