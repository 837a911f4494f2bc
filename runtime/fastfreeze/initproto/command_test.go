package initproto_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
)

// take gives all strings of a command, as PID 1 takes them.
func take(t *testing.T, c initproto.CommandLine) (args, env []string) {
	t.Helper()
	next := func() string {
		s, ok := strings.CutSuffix(string(c.Next()), "\x00")
		if !ok {
			t.Fatalf("a string of %+v has no end", c)
		}
		return s
	}
	for range c.Args {
		args = append(args, next())
	}
	for range c.Env {
		env = append(env, next())
	}
	if rest := c.Next(); rest != nil {
		t.Fatalf("%q is too much", rest)
	}
	return args, env
}

func TestCommand(t *testing.T) {
	for _, tc := range []struct{ args, env []string }{
		{[]string{"true"}, nil},
		{[]string{""}, []string{""}},
		{[]string{"sh", "-c", "", "é\n\x1b\xff"}, []string{"PATH=/bin", "NOEQUALS", "", "X=1", "X=2"}},
		{slices.Repeat([]string{"a"}, 10000), slices.Repeat([]string{"LONG=" + strings.Repeat("x", 1000)}, 1000)},
		{[]string{"x", strings.Repeat("y", initproto.MaxCommand-8-3)}, nil},
	} {
		c, err := initproto.DecodeCommand(initproto.EncodeCommand(tc.args, tc.env))
		if err != nil {
			t.Fatalf("%.100q, %.100q: %v", tc.args, tc.env, err)
		}
		if args, env := take(t, c); !slices.Equal(args, tc.args) || !slices.Equal(env, tc.env) {
			t.Errorf("%.100q, %.100q come as %.100q, %.100q", tc.args, tc.env, args, env)
		}
	}
	if got := string(initproto.EncodeCommand([]string{"a", ""}, []string{"B=1"})); got != "\x02\x00\x00\x00\x01\x00\x00\x00a\x00\x00B=1\x00" {
		t.Errorf("encoded as %q", got)
	}
}

func TestCommandRefused(t *testing.T) {
	whole := string(initproto.EncodeCommand([]string{"sh", "-c", ""}, []string{"A=1"}))
	refused := map[string]string{
		"no program":        string(initproto.EncodeCommand(nil, []string{"A=1"})),
		"nothing":           string(initproto.EncodeCommand(nil, nil)),
		"NUL in argument":   string(initproto.EncodeCommand([]string{"a\x00b"}, []string{"A=1"})),
		"NUL in variable":   string(initproto.EncodeCommand([]string{"a"}, []string{"A=\x00"})),
		"too long":          string(initproto.EncodeCommand([]string{"x", strings.Repeat("y", initproto.MaxCommand-8-2)}, nil)),
		"trailing string":   whole + "\x00",
		"trailing byte":     whole + "x",
		"sum of counts 2³²": "\x02\x00\x00\x00\xff\xff\xff\xffa\x00",
	}
	for n := range len(whole) {
		refused["cut to "+whole[:n]] = whole[:n]
	}
	for name, b := range refused {
		if c, err := initproto.DecodeCommand([]byte(b)); !errors.Is(err, initproto.ErrCommand) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

func TestDecodeCommandAllocatesNothing(t *testing.T) {
	b := initproto.EncodeCommand([]string{"sh", "-c", "true"}, []string{"A=1"})
	if n := testing.AllocsPerRun(100, func() {
		c, err := initproto.DecodeCommand(b)
		if err != nil {
			t.Fatal(err)
		}
		for c.Next() != nil {
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzDecodeCommand: whatever comes, no panic; and what is taken is exactly what the encoder makes of it.
func FuzzDecodeCommand(f *testing.F) {
	f.Add(initproto.EncodeCommand([]string{"sh", "-c", ""}, []string{"PATH=/bin"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := initproto.DecodeCommand(b)
		if err != nil {
			return
		}
		args, env := take(t, c)
		if again := initproto.EncodeCommand(args, env); string(again) != string(b) {
			t.Errorf("%q is decoded as %q, %q and encoded as %q", b, args, env, again)
		}
	})
}
