package workloads

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

const storeSize = 50

// asker sends one line to a service inside the container.
type asker func(ctx context.Context, c *harness.Container, port int, line string) (string, error)

func askByShell(ctx context.Context, c *harness.Container, port int, line string) (string, error) {
	out, err := c.Exec(ctx, "bash", images.Ask, strconv.Itoa(port), line)
	return strings.TrimSuffix(out, "\n"), err
}

func askBySelf(ctx context.Context, c *harness.Container, _ int, line string) (string, error) {
	out, err := c.Exec(ctx, append([]string{"/service"}, strings.Split(line, " ")...)...)
	return strings.TrimSuffix(out, "\n"), err
}

// fillService is for the test services of images/services.
func fillService(ask asker) func(context.Context, *harness.Container) (Check, error) {
	stat := func(ctx context.Context, c *harness.Container) (mark, error) {
		answer, err := ask(ctx, c, images.ServicePort, "STAT")
		if err != nil {
			return mark{}, err
		}
		return parseMark(answer)
	}
	return func(ctx context.Context, c *harness.Container) (Check, error) {
		counts, err := fillMark(ctx, c, stat)
		if err != nil {
			return nil, err
		}
		for i := range storeSize {
			answer, err := ask(ctx, c, images.ServicePort, fmt.Sprintf("PUT key%d value %d", i, i*i))
			if err != nil {
				return nil, err
			}
			if err := expect("the answer", answer, "OK"); err != nil {
				return nil, err
			}
		}
		return func(ctx context.Context, c *harness.Container) error {
			if err := counts(ctx, c); err != nil {
				return err
			}
			for i := range storeSize {
				answer, err := ask(ctx, c, images.ServicePort, fmt.Sprintf("GET key%d", i))
				if err != nil {
					return err
				}
				if err := expect(fmt.Sprintf("key%d", i), answer, fmt.Sprintf("value %d", i*i)); err != nil {
					return err
				}
			}
			return nil
		}, nil
	}
}

// fillMemcached stores a value for each of many keys; each request is a
// connection, so all threads take part.
func fillMemcached(ctx context.Context, c *harness.Container) (Check, error) {
	ask := func(ctx context.Context, c *harness.Container, line string) (string, error) {
		return askByShell(ctx, c, 11211, line)
	}
	if _, err := eventually(ctx, "memcached to answer", func(ctx context.Context) (string, error) { return ask(ctx, c, "version") }); err != nil {
		return nil, err
	}
	for i := range storeSize {
		value := strconv.Itoa(i * i)
		answer, err := ask(ctx, c, fmt.Sprintf("set key%d 0 0 %d\r\n%s", i, len(value), value))
		if err != nil {
			return nil, err
		}
		if err := expect("the answer", answer, "STORED"); err != nil {
			return nil, err
		}
	}
	count := 0
	return func(ctx context.Context, c *harness.Container) error {
		for i := range storeSize {
			// incr by zero answers with the number that is stored.
			answer, err := ask(ctx, c, fmt.Sprintf("incr key%d 0", i))
			if err != nil {
				return err
			}
			if i == 0 {
				count, err = strconv.Atoi(answer)
				if err != nil || count < 0 {
					return fmt.Errorf("key0 is %q", answer)
				}
				continue
			}
			if err := expect(fmt.Sprintf("key%d", i), answer, strconv.Itoa(i*i)); err != nil {
				return err
			}
		}
		answer, err := ask(ctx, c, "incr key0 1")
		if err != nil {
			return err
		}
		return expect("the count", answer, strconv.Itoa(count+1))
	}, nil
}

// fillNginx makes requests; their number is in the memory that the workers
// share.
func fillNginx(ctx context.Context, c *harness.Container) (Check, error) {
	get := func(ctx context.Context, c *harness.Container, path string) (string, error) {
		return c.Exec(ctx, "bash", "-c", fmt.Sprintf(`exec 3<>/dev/tcp/127.0.0.1/80 && printf 'GET %s HTTP/1.0\r\n\r\n' >&3 && cat <&3`, path))
	}
	requests := func(ctx context.Context, c *harness.Container) (int, error) {
		answer, err := get(ctx, c, "/status")
		if err != nil {
			return 0, err
		}
		_, numbers, _ := strings.Cut(answer, "requests\n")
		words := strings.Fields(numbers)
		if len(words) < 3 {
			return 0, fmt.Errorf("no count of requests in %q", answer)
		}
		return strconv.Atoi(words[2])
	}
	hello := func(ctx context.Context, c *harness.Container) error {
		answer, err := get(ctx, c, "/")
		if err != nil {
			return err
		}
		if !strings.Contains(answer, "200 OK") || !strings.HasSuffix(answer, "hello from nginx\n") {
			return fmt.Errorf("the page is %q", answer)
		}
		return nil
	}
	if _, err := eventually(ctx, "nginx to answer", func(ctx context.Context) (int, error) { return requests(ctx, c) }); err != nil {
		return nil, err
	}
	for range storeSize {
		if err := hello(ctx, c); err != nil {
			return nil, err
		}
	}
	old, err := requests(ctx, c)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, c *harness.Container) error {
		now, err := requests(ctx, c)
		if err != nil {
			return err
		}
		if now <= old {
			return fmt.Errorf("nginx counts %d requests after %d: it was started again", now, old)
		}
		for range 8 {
			if err := hello(ctx, c); err != nil {
				return err
			}
		}
		next, err := requests(ctx, c)
		if err != nil {
			return err
		}
		return expect("the count of requests", strconv.Itoa(next), strconv.Itoa(now+9))
	}, nil
}

// fillPostgres makes a table; the server's start time tells whether it was
// started again.
func fillPostgres(ctx context.Context, c *harness.Container) (Check, error) {
	sql := func(ctx context.Context, c *harness.Container, query string) (string, error) {
		out, err := c.Exec(ctx, "bash", "-c", `exec /usr/lib/postgresql/*/bin/psql -v ON_ERROR_STOP=1 -Atqc "$0"`, query)
		return strings.TrimSpace(out), err
	}
	started, err := eventually(ctx, "PostgreSQL to answer", func(ctx context.Context) (string, error) {
		return sql(ctx, c, "select pg_postmaster_start_time()")
	})
	if err != nil {
		return nil, err
	}
	if _, err := sql(ctx, c, "create table t as select i, i*i as square from generate_series(1, 10000) i; create sequence s"); err != nil {
		return nil, err
	}
	return func(ctx context.Context, c *harness.Container) error {
		now, err := sql(ctx, c, "select pg_postmaster_start_time()")
		if err != nil {
			return err
		}
		if err := expect("the server's start time", now, started); err != nil {
			return err
		}
		sum, err := sql(ctx, c, "select count(*), sum(square) from t")
		if err != nil {
			return err
		}
		if err := expect("the table", sum, "10000|333383335000"); err != nil {
			return err
		}
		// A write reaches the log and a checkpoint all data files.
		_, err = sql(ctx, c, "select nextval('s'); insert into t values (0, 0); delete from t where i = 0; checkpoint")
		return err
	}, nil
}
