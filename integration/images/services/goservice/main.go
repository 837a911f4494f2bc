// Command goservice is the test service for an image that holds nothing else.
// The same service exists in Python, JavaScript and Java.
//
// It listens on TCP port 7000 and answers each line with a line:
//
//	PUT key value   "OK"
//	GET key         the value, empty if there is none
//	STAT            "NONCE TICKS": NONCE is random and made at the start,
//	                TICKS is counted up by a thread
//
// Both live in memory only, so they tell a service that was restored from one
// that was started again. With an argument the program is a client that sends
// it as a line and prints the answer.
package main

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const address = "127.0.0.1:7000"

func main() {
	if len(os.Args) > 1 {
		if err := ask(strings.Join(os.Args[1:], " ")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	listener, err := net.Listen("tcp", ":7000")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	random := make([]byte, 8)
	rand.Read(random)
	s := &service{nonce: hex.EncodeToString(random)}
	go s.count()
	for {
		conn, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go s.serve(conn)
	}
}

type service struct {
	nonce string
	ticks atomic.Int64
	store sync.Map
}

func (s *service) count() {
	for range time.Tick(5 * time.Millisecond) {
		s.ticks.Add(1)
	}
}

func (s *service) serve(conn net.Conn) {
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		fmt.Fprintln(conn, s.answer(lines.Text()))
	}
}

func (s *service) answer(line string) string {
	verb, rest, _ := strings.Cut(line, " ")
	key, value, _ := strings.Cut(rest, " ")
	switch verb {
	case "PUT":
		s.store.Store(key, value)
		return "OK"
	case "GET":
		if v, ok := s.store.Load(key); ok {
			return v.(string)
		}
		return ""
	case "STAT":
		return fmt.Sprintf("%s %d", s.nonce, s.ticks.Load())
	}
	return "ERR"
}

func ask(line string) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprintln(conn, line)
	answer, err := bufio.NewReader(conn).ReadString('\n')
	fmt.Print(answer)
	return err
}
