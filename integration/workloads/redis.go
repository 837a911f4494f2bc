package workloads

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/fastmig/fastmig/integration/harness"
)

// redisBatch is how many keys are read by one command.
const redisBatch = 1000

// redisKeys is how many keys the matrix's redis-server holds.
const redisKeys = 5000

func fillRedis(ctx context.Context, c *harness.Container) (Check, error) {
	run, err := FillRedis(ctx, c, redisKeys)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, c *harness.Container) error {
		if err := CheckRedis(ctx, c, run, redisKeys); err != nil {
			return err
		}
		before, err := RedisCounter(ctx, c)
		if err != nil {
			return err
		}
		if _, err := redis(ctx, c, "INCR", "counter"); err != nil {
			return err
		}
		after, err := RedisCounter(ctx, c)
		if err != nil {
			return err
		}
		return expect("the counter", strconv.Itoa(after), strconv.Itoa(before+1))
	}, nil
}

// FillRedis waits for the server and writes the keys key:0 … in one go. It
// returns the server's run id, which a server makes at its start.
func FillRedis(ctx context.Context, c *harness.Container, keys int) (runID string, err error) {
	runID, err = eventually(ctx, "redis-server to answer", func(ctx context.Context) (string, error) { return redisRunID(ctx, c) })
	if err != nil {
		return "", err
	}
	var commands bytes.Buffer
	for i := range keys {
		fmt.Fprintf(&commands, "SET key:%d %s\r\n", i, redisValue(i))
	}
	out, err := c.ExecInput(ctx, commands.Bytes(), "redis-cli", "--pipe")
	if err != nil {
		return "", err
	}
	if !strings.Contains(out, fmt.Sprintf("errors: 0, replies: %d", keys)) {
		return "", fmt.Errorf("redis-cli --pipe says %q", out)
	}
	return runID, nil
}

func redisValue(i int) string { return fmt.Sprintf("value:%d:%d", i, i*7919%104729) }

// CheckRedis verifies that the server is the one of the run id and that it
// holds every key of FillRedis with its value.
func CheckRedis(ctx context.Context, c *harness.Container, runID string, keys int) error {
	now, err := eventually(ctx, "redis-server to answer", func(ctx context.Context) (string, error) { return redisRunID(ctx, c) })
	if err != nil {
		return err
	}
	if err := expect("redis-server's run id", now, runID); err != nil {
		return err
	}
	var commands bytes.Buffer
	for i := range keys {
		if i%redisBatch == 0 {
			fmt.Fprint(&commands, "\nMGET")
		}
		fmt.Fprintf(&commands, " key:%d", i)
	}
	fmt.Fprintln(&commands)
	out, err := c.ExecInput(ctx, commands.Bytes(), "redis-cli")
	if err != nil {
		return err
	}
	values := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(values) != keys {
		return fmt.Errorf("%d values came back, not %d", len(values), keys)
	}
	for i, value := range values {
		if err := expect(fmt.Sprintf("key:%d", i), value, redisValue(i)); err != nil {
			return err
		}
	}
	return nil
}

// RedisCounter reads the key "counter", 0 if there is none.
func RedisCounter(ctx context.Context, c *harness.Container) (int, error) {
	out, err := redis(ctx, c, "GET", "counter")
	if err != nil || out == "" {
		return 0, err
	}
	return strconv.Atoi(out)
}

func redisRunID(ctx context.Context, c *harness.Container) (string, error) {
	info, err := redis(ctx, c, "INFO", "server")
	if err != nil {
		return "", err
	}
	for _, line := range strings.Split(info, "\n") {
		if id, ok := strings.CutPrefix(strings.TrimSpace(line), "run_id:"); ok {
			return id, nil
		}
	}
	return "", fmt.Errorf("no run id in %q", info)
}

func redis(ctx context.Context, c *harness.Container, command ...string) (string, error) {
	out, err := c.Exec(ctx, append([]string{"redis-cli", "-e"}, command...)...)
	return strings.TrimSpace(out), err
}
