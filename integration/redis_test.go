package integration_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/integration/workloads"
)

const (
	mainJobKeys = 100_000
	redisPort   = "6379"
)

// The main job with ctr: a real redis-server moves from one container into
// another with all of its keys, while a client counts.
func TestRedisByCtr(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Redis)
	lab.MustCtr("run", "-d", "--net-host", images.Redis.Ref(), "source")
	source := load(lab, t, "source")
	job := startRedisJob(lab, t, source, "127.0.0.1:"+redisPort)

	before := job.count()
	lab.MustCtr("container", "checkpoint", "--rw", "--image", "--task", "source", "fastmig.test/redis:moved")
	job.goesOn(t, lab) // the source serves on
	after := job.stop()
	if err := workloads.CheckRedis(lab.Context(), source, job.runID, mainJobKeys); err != nil {
		t.Errorf("the source after its checkpoint: %v", err)
	}
	lab.MustCtr("task", "kill", "--signal", "SIGKILL", "source")
	if _, err := source.WaitExit(lab.Context()); err != nil {
		t.Fatal(err)
	}
	lab.MustCtr("task", "delete", "source")
	lab.MustCtr("container", "delete", "source")

	lab.MustCtr("container", "restore", "--rw", "--live", "moved", "fastmig.test/redis:moved")
	job.verify(t, lab, load(lab, t, "moved"), "127.0.0.1:"+redisPort, before, after)
}

// The main job with nerdctl, through a published port. nerdctl restores into
// the container of the same name.
func TestRedisByNerdctl(t *testing.T) {
	lab := harness.New(t, harness.Options{Runtime: harness.InPlace})
	lab.MustImport(images.Redis)
	id := strings.TrimSpace(lab.MustNerdctl("run", "-d", "--name", "redis", "-p", "127.0.0.1:16379:"+redisPort,
		images.Redis.Ref(), "redis-server", "--save", "", "--protected-mode", "no"))
	removeByNerdctl(lab, t, "redis")
	source := load(lab, t, id)
	job := startRedisJob(lab, t, source, "127.0.0.1:16379")

	before := job.count()
	lab.MustNerdctl("checkpoint", "create", "redis", "full")
	after := job.stop()
	if out := lab.MustNerdctl("ps", "-a", "--format", "{{.Status}}"); !strings.HasPrefix(out, "Exited") {
		t.Errorf("after a checkpoint that ends it nerdctl ps says %q", out)
	}
	lab.MustNerdctl("start", "--checkpoint", "full", "redis")
	job.verify(t, lab, load(lab, t, id), "127.0.0.1:16379", before, after)
}

// redisJob is a redis-server full of keys with a client that counts in it.
type redisJob struct {
	runID  string
	values chan int // each counted value, dropped when nobody looks
	ended  chan struct{}
	last   int // valid when ended is closed
	cancel context.CancelFunc
}

func startRedisJob(lab *harness.Lab, t *testing.T, c *harness.Container, address string) *redisJob {
	t.Helper()
	runID, err := workloads.FillRedis(lab.Context(), c, mainJobKeys)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(lab.Context())
	job := &redisJob{runID: runID, values: make(chan int), ended: make(chan struct{}), cancel: cancel}
	t.Cleanup(cancel)
	conn := dialRedis(lab, t, address)
	go func() {
		defer close(job.ended)
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		for {
			n, err := increment(conn)
			if err != nil {
				return // the server ended, or the job did
			}
			job.last = n
			select {
			case job.values <- n:
			default:
			}
		}
	}()
	return job
}

// count is a value of the counter that the client has been told by now.
func (j *redisJob) count() int {
	select {
	case n := <-j.values:
		return n
	case <-j.ended:
		return j.last
	}
}

// goesOn checks that the client's connection still counts.
func (j *redisJob) goesOn(t *testing.T, lab *harness.Lab) {
	t.Helper()
	for range 3 {
		select {
		case <-j.values:
		case <-j.ended:
			t.Fatal("the client lost its connection")
		case <-lab.Context().Done():
			t.Fatal("the server answers no more")
		}
	}
}

// stop ends the client and returns the last value that it was told.
func (j *redisJob) stop() int {
	j.cancel()
	<-j.ended
	return j.last
}

// verify checks that the container continues the server: its keys, its
// counter within what the client saw around the checkpoint, and that it counts
// on from there.
func (j *redisJob) verify(t *testing.T, lab *harness.Lab, c *harness.Container, address string, before, after int) {
	t.Helper()
	if err := workloads.CheckRedis(lab.Context(), c, j.runID, mainJobKeys); err != nil {
		t.Fatal(err)
	}
	count, err := workloads.RedisCounter(lab.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	// The server may have counted once more than the client was told.
	if count < before || count > after+1 {
		t.Errorf("the counter is %d, the client saw %d before and %d after the checkpoint", count, before, after)
	}
	conn := dialRedis(lab, t, address)
	for i := 1; i <= 3; i++ {
		n, err := increment(conn)
		if err != nil {
			t.Fatal(err)
		}
		if n != count+i {
			t.Fatalf("the counter went from %d to %d", count+i-1, n)
		}
	}
}

// redisConn is a client's connection.
type redisConn struct {
	net.Conn
	answers *bufio.Reader
}

// dialRedis connects on the node's machine as soon as somebody listens.
func dialRedis(lab *harness.Lab, t *testing.T, address string) *redisConn {
	t.Helper()
	var conn net.Conn
	lab.WaitFor("a connection to "+address, func(context.Context) (bool, error) {
		err := lab.InMachine(func() (err error) {
			conn, err = net.Dial("tcp", address)
			return err
		})
		return err == nil, err
	})
	t.Cleanup(func() { conn.Close() })
	return &redisConn{conn, bufio.NewReader(conn)}
}

// increment counts the key "counter" up (the redis protocol's inline command
// and integer reply).
func increment(conn *redisConn) (int, error) {
	if _, err := fmt.Fprint(conn, "INCR counter\r\n"); err != nil {
		return 0, err
	}
	line, err := conn.answers.ReadString('\n')
	if err != nil {
		return 0, err
	}
	number, ok := strings.CutPrefix(strings.TrimSpace(line), ":")
	if !ok {
		return 0, errors.New("redis-server answers " + line)
	}
	return strconv.Atoi(number)
}
