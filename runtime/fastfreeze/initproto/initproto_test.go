package initproto_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
)

// messages is one of every kind, and its bytes: the layout is a promise to fastfreeze binaries of the same version.
var messages = []struct {
	m     initproto.Message
	bytes string
}{
	{initproto.Message{Type: initproto.Start, Flags: initproto.Terminal | initproto.DropStdio}, "\x02\x01\x05"},
	{initproto.Message{Type: initproto.Start, Flags: initproto.NewStdio | initproto.Command}, "\x02\x01\x18"},
	{initproto.Message{Type: initproto.Tie, Flags: initproto.Tied}, "\x02\x07\x02"},
	{initproto.Message{Type: initproto.Tie}, "\x02\x07\x00"},
	{initproto.Message{Type: initproto.Adopt, Pid: 1000, Flags: initproto.Tied}, "\x02\x02\xe8\x03\x00\x00\x02"},
	{initproto.Message{Type: initproto.Restored}, "\x02\x03"},
	{initproto.Message{Type: initproto.Abandon}, "\x02\x04"},
	{initproto.Message{Type: initproto.Signal, Signo: 64}, "\x02\x05\x40"},
	{initproto.Message{Type: initproto.Ping, Seq: 1 << 40}, "\x02\x06\x00\x00\x00\x00\x00\x01\x00\x00"},
	{initproto.Message{Type: initproto.Ready}, "\x02\x81\x00\x00"},
	{initproto.Message{Type: initproto.Ready, Text: "né"}, "\x02\x81\x03\x00n\xc3\xa9"},
	{initproto.Message{Type: initproto.Started, Pid: 1<<31 - 1}, "\x02\x82\xff\xff\xff\x7f"},
	{initproto.Message{Type: initproto.StartFailed, Errno: 8, Text: "no"}, "\x02\x83\x08\x00\x00\x00\x02\x00no"},
	{initproto.Message{Type: initproto.Exited, Pid: 1, Status: 0x8b}, "\x02\x84\x01\x00\x00\x00\x8b\x00\x00\x00"},
	{initproto.Message{Type: initproto.Pong, Seq: 3}, "\x02\x85\x03\x00\x00\x00\x00\x00\x00\x00"},
}

// sides gives the decoder of the side that receives the type and that of the other.
func sides(t initproto.Type) (right, wrong func([]byte) (initproto.Message, error)) {
	if t.FromInit() {
		return initproto.DecodeFromInit, initproto.DecodeFromShim
	}
	return initproto.DecodeFromShim, initproto.DecodeFromInit
}

func TestLayout(t *testing.T) {
	for _, tc := range messages {
		name := tc.m.Type.String()
		b, err := initproto.Append(nil, &tc.m)
		if err != nil || string(b) != tc.bytes {
			t.Errorf("%s: encoded %q, %v; want %q", name, b, err, tc.bytes)
		}
		right, wrong := sides(tc.m.Type)
		if m, err := right([]byte(tc.bytes)); err != nil || m != tc.m {
			t.Errorf("%s: decoded %+v, %v", name, m, err)
		}
		if _, err := wrong([]byte(tc.bytes)); !errors.Is(err, initproto.ErrType) {
			t.Errorf("%s: the wrong side takes it: %v", name, err)
		}
		for n := range len(tc.bytes) {
			if _, err := right([]byte(tc.bytes[:n])); err == nil {
				t.Errorf("%s: %d of %d bytes are taken", name, n, len(tc.bytes))
			}
		}
		if _, err := right([]byte(tc.bytes + "\x00")); !errors.Is(err, initproto.ErrMalformed) {
			t.Errorf("%s: a trailing byte: %v", name, err)
		}
		if _, err := right([]byte("\x01" + tc.bytes[1:])); !errors.Is(err, initproto.ErrVersion) {
			t.Errorf("%s: another version: %v", name, err)
		}
	}
}

func TestRefused(t *testing.T) {
	for name, b := range map[string]string{
		"unknown flag":           "\x02\x01\x20",
		"adopt with a command":   "\x02\x02\x01\x00\x00\x00\x10",
		"tie with a terminal":    "\x02\x07\x01",
		"signal 0":               "\x02\x05\x00",
		"signal 65":              "\x02\x05\x41",
		"adopt pid 0":            "\x02\x02\x00\x00\x00\x00\x00",
		"started pid -1":         "\x02\x82\xff\xff\xff\xff",
		"escape in text":         "\x02\x81\x01\x00\x1b",
		"newline in text":        "\x02\x81\x01\x00\n",
		"text not UTF-8":         "\x02\x81\x01\x00\xff",
		"text longer than said":  "\x02\x81\x01\x00ab",
		"text shorter than said": "\x02\x81\x03\x00ab",
		"text over its bound":    "\x02\x81\x01\x04" + strings.Repeat("a", initproto.MaxText+1),
		"oversize":               "\x02\x81" + strings.Repeat("a", initproto.MaxSize),
		"unknown type":           "\x02\x86",
	} {
		if m, err := sidesOf(b)([]byte(b)); err == nil {
			t.Errorf("%s: decoded as %+v", name, m)
		}
	}
	for _, m := range []initproto.Message{
		{Type: initproto.Start, Flags: 32},
		{Type: initproto.Adopt, Pid: 1, Flags: initproto.Command},
		{Type: initproto.Tie, Flags: initproto.DropStdio},
		{Type: initproto.Adopt, Pid: -1},
		{Type: initproto.Adopt, Pid: 1, Flags: 128},
		{Type: initproto.Signal},
		{Type: initproto.Signal, Signo: 65},
		{Type: initproto.Started},
		{Type: initproto.Exited},
		{Type: 0x7f},
	} {
		if b, err := initproto.Append(nil, &m); err == nil || len(b) != 0 {
			t.Errorf("%+v is encoded as %q", m, b)
		}
	}
}

func sidesOf(b string) func([]byte) (initproto.Message, error) {
	right, _ := sides(initproto.Type(b[1]))
	return right
}

func TestTextIsCleaned(t *testing.T) {
	for in, want := range map[string]string{
		"exec: \"a\x1b[2Jb\x7f\xff\n\x00\"":          "exec: \"a?[2Jb????\"",
		strings.Repeat("é", initproto.MaxText):       strings.Repeat("é", initproto.MaxText/2),
		"x" + strings.Repeat("é", initproto.MaxText): "x" + strings.Repeat("é", (initproto.MaxText-1)/2),
	} {
		b, err := initproto.Append(nil, &initproto.Message{Type: initproto.Ready, Text: in})
		if err != nil {
			t.Fatal(err)
		}
		if m, err := initproto.DecodeFromInit(b); err != nil || m.Text != want {
			t.Errorf("%q comes as %q, %v", in, m.Text, err)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	buf := make([]byte, 0, initproto.MaxSize)
	if n := testing.AllocsPerRun(100, func() {
		for i := range messages {
			b, err := initproto.Append(buf, &messages[i].m)
			if err != nil {
				t.Fatal(err)
			}
			if !messages[i].m.Type.FromInit() {
				if _, err := initproto.DecodeFromShim(b); err != nil {
					t.Fatal(err)
				}
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, tc := range messages {
		seen[tc.m.Type.String()] = true
	}
	if len(seen) != 12 || seen["UNKNOWN"] || initproto.Type(0).String() != "UNKNOWN" {
		t.Errorf("names %v", seen)
	}
}

// FuzzDecode: whatever comes, no panic; and what is taken is exactly what the encoder makes of it.
func FuzzDecode(f *testing.F) {
	for _, tc := range messages {
		f.Add([]byte(tc.bytes))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, decode := range []func([]byte) (initproto.Message, error){initproto.DecodeFromInit, initproto.DecodeFromShim} {
			m, err := decode(b)
			if err != nil {
				continue
			}
			again, err := initproto.Append(nil, &m)
			if err != nil || string(again) != string(b) {
				t.Errorf("%q is decoded as %+v and encoded as %q, %v", b, m, again, err)
			}
		}
	})
}

// TestSeeds: the corpus that the fuzzer starts from is kept with the code.
func TestSeeds(t *testing.T) {
	seeds, err := filepath.Glob("testdata/fuzz/*/*")
	if err != nil || len(seeds) < 20 {
		t.Fatalf("%d seeds, %v", len(seeds), err)
	}
	for _, seed := range seeds {
		if b, err := os.ReadFile(seed); err != nil || !strings.HasPrefix(string(b), "go test fuzz v1\n") {
			t.Errorf("%s: %v", seed, err)
		}
	}
}
