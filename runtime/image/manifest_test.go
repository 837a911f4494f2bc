package image

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func encodedSample(t testing.TB) (*Manifest, []byte) {
	t.Helper()
	m := sampleManifest()
	m.Files = []File{{Name: "inventory.img", Size: 12, SHA256: digest([]byte("a"))}, {Name: "pages-1.img", SHA256: digest(nil)}, {Name: "preserved.tar", SHA256: digest(nil)}}
	m.PreservedPaths = []string{"/a", "/b/\xff"}
	m.CreatedAt = time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600))
	m.complete()
	text, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	return m, text
}

func TestManifestRoundTrip(t *testing.T) {
	m, text := encodedSample(t)
	got, err := decodeManifest(text)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, m) {
		t.Errorf("got  %+v\nwant %+v", got, m)
	}
	if !json.Valid(text) {
		t.Errorf("not JSON:\n%s", text)
	}
}

// A manifest is the checkpoint's root of trust: no damaged one may be taken,
// and damage must not pass for another version.
func TestManifestEveryFlippedByte(t *testing.T) {
	_, text := encodedSample(t)
	for i := range text {
		for _, bit := range []byte{0x01, 0x20, 0x80} {
			damaged := bytes.Clone(text)
			damaged[i] ^= bit
			if _, err := decodeManifest(damaged); !errdefs.IsDataLoss(err) {
				t.Fatalf("byte %d (%q) ^ %#x: got %v, want DataLoss", i, text[i], bit, err)
			}
		}
	}
}

func TestManifestEveryTruncation(t *testing.T) {
	_, text := encodedSample(t)
	for n := range text {
		if _, err := decodeManifest(text[:n]); !errdefs.IsDataLoss(err) {
			t.Fatalf("%d of %d bytes: got %v, want DataLoss", n, len(text), err)
		}
	}
	if _, err := decodeManifest(append(text, ' ')); !errdefs.IsDataLoss(err) {
		t.Errorf("one byte more: got %v, want DataLoss", err)
	}
}

// resign edits a manifest as somebody would who can compute digests.
func resign(text []byte, old, new string) []byte {
	signed, _, _ := splitDigest(text)
	signed = bytes.Replace(bytes.Clone(signed), []byte(old), []byte(new), 1)
	return append(append(bytes.Clone(signed), digest(signed)...), digestTail...)
}

func TestManifestRefused(t *testing.T) {
	_, text := encodedSample(t)
	for _, tc := range []struct {
		name, old, new string
		want           func(error) bool
		says           string
	}{
		{"other version", `"formatVersion": 1`, `"formatVersion": 2`, errdefs.IsFailedPrecondition, "format version 2, this FastMig reads version 1"},
		{"unknown field", `"formatVersion": 1,`, `"formatVersion": 1, "x": 1,`, errdefs.IsDataLoss, `unknown field "x"`},
		{"repeated field", `"formatVersion": 1,`, "\"formatVersion\": 1,\n  \"formatVersion\": 1,", errdefs.IsDataLoss, "another spelling"},
		{"field in other case", `"kernel"`, `"Kernel"`, errdefs.IsDataLoss, "another spelling"},
		{"other white space", `"formatVersion": 1`, `"formatVersion":1`, errdefs.IsDataLoss, "another spelling"},
		{"wrong type", `"formatVersion": 1`, `"formatVersion": "1"`, errdefs.IsDataLoss, "JSON"},
		{"huge number", `"pid": 1000`, `"pid": 1e400`, errdefs.IsDataLoss, ""},
		{"broken JSON", `"formatVersion": 1`, `"formatVersion": {`, errdefs.IsDataLoss, "not valid JSON"},
		{"name that climbs", `"inventory.img"`, `"../inventory"`, errdefs.IsDataLoss, "flat folder"},
		{"absolute name", `"inventory.img"`, `"/etc/passwd"`, errdefs.IsDataLoss, "flat folder"},
		{"name in a sub-folder", `"inventory.img"`, `"a/b"`, errdefs.IsDataLoss, "flat folder"},
		{"empty name", `"inventory.img"`, `""`, errdefs.IsDataLoss, "flat folder"},
		{"dot", `"inventory.img"`, `"."`, errdefs.IsDataLoss, "flat folder"},
		{"dot dot", `"inventory.img"`, `".."`, errdefs.IsDataLoss, "flat folder"},
		{"NUL", `"inventory.img"`, `"a\u0000b"`, errdefs.IsDataLoss, "flat folder"},
		{"control character", `"inventory.img"`, `"a\nb"`, errdefs.IsDataLoss, "flat folder"},
		{"overlong name", `"inventory.img"`, `"` + strings.Repeat("a", 256) + `"`, errdefs.IsDataLoss, "flat folder"},
		{"the manifest's own name", `"inventory.img"`, `"fastmig.json"`, errdefs.IsDataLoss, "FastMig's own"},
		{"a partial folder's name", `"inventory.img"`, `".fastmig-partial-x"`, errdefs.IsDataLoss, "FastMig's own"},
		{"duplicate name", `"inventory.img"`, `"pages-1.img"`, errdefs.IsDataLoss, "twice or out of order"},
		{"out of order", `"inventory.img"`, `"z"`, errdefs.IsDataLoss, "twice or out of order"},
		{"negative size", `"size": 12`, `"size": -1`, errdefs.IsDataLoss, "size -1"},
		{"short digest", digest([]byte("a")), "abc", errdefs.IsDataLoss, "no valid digest"},
		{"upper-case digest", digest([]byte("a")), strings.ToUpper(digest([]byte("a"))), errdefs.IsDataLoss, "no valid digest"},
		{"relative mapped file", `"/usr/lib`, `"usr/lib`, errdefs.IsDataLoss, "mapped file"},
		{"unknown stdio", `"kind": "tty"`, `"kind": "telex"`, errdefs.IsDataLoss, "unknown kind"},
		{"unknown TCP mode", `"tcp": "close"`, `"tcp": "maybe"`, errdefs.IsDataLoss, "TCP mode"},
		{"unknown state", `"running"`, `"flying"`, errdefs.IsDataLoss, "unknown state"},
		{"preserved paths without files", `"preserved.tar"`, `"preserved.tax"`, errdefs.IsDataLoss, "preserved paths"},
		{"relative preserved path", `"/a"`, `"a"`, errdefs.IsDataLoss, "preserved path"},
		{"climbing preserved path", `"/a"`, `"/a/.."`, errdefs.IsDataLoss, "preserved path"},
		{"preserved paths out of order", `"/a"`, `"/c"`, errdefs.IsDataLoss, "preserved path"},
		{"pid 0", `"pid": 1000`, `"pid": 0`, errdefs.IsDataLoss, "pid 0"},
		{"no CRIU version", `"criuVersion": "4.1.1"`, `"criuVersion": "new"`, errdefs.IsDataLoss, "no version of CRIU"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			damaged := resign(text, tc.old, tc.new)
			if bytes.Equal(damaged, text) {
				t.Fatal("the case changes nothing")
			}
			_, err := decodeManifest(damaged)
			if !tc.want(err) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want one with %q", err, tc.says)
			}
		})
	}
}

func TestManifestTooLong(t *testing.T) {
	if _, err := decodeManifest(make([]byte, maxManifest+1)); !errdefs.IsDataLoss(err) {
		t.Errorf("read: got %v, want DataLoss", err)
	}
	m, _ := encodedSample(t)
	m.Application.Args = []string{strings.Repeat("a", maxManifest)}
	if _, err := m.encode(); !errdefs.IsOutOfRange(err) {
		t.Errorf("write: got %v, want OutOfRange", err)
	}
}

// What would not read back must not be written.
func TestManifestNotText(t *testing.T) {
	for _, field := range []func(m *Manifest) *string{
		func(m *Manifest) *string { return &m.Image },
		func(m *Manifest) *string { return &m.ContainerID },
		func(m *Manifest) *string { return &m.CPU.Features[0] },
	} {
		m, _ := encodedSample(t)
		*field(m) = "a\xff"
		if _, err := m.encode(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("got %v, want InvalidArgument", err)
		}
	}
}

func TestEscape(t *testing.T) {
	for _, s := range []string{"", "plain", `\`, `\\`, `\x41`, "\xff", "a\xffb\\", "ä\u2028\x00", `\xzz`, "\ufffd"} {
		e := escape(s)
		if got := unescape(e); got != s {
			t.Errorf("%q became %q via %q", s, got, e)
		}
	}
}

// FuzzManifest feeds the parser with texts that are made to pass the digest, as
// an attacker would.
func FuzzManifest(f *testing.F) {
	_, text := encodedSample(f)
	signed, _, _ := splitDigest(text)
	f.Add(string(signed))
	f.Add(string(text))
	seeds, err := filepath.Glob("testdata/manifests/*.json")
	if err != nil || len(seeds) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, seed := range seeds {
		raw, err := os.ReadFile(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(raw))
	}
	f.Fuzz(func(t *testing.T, in string) {
		if _, err := decodeManifest([]byte(in)); err == nil && !strings.HasSuffix(in, digestTail) {
			t.Fatal("taken without a digest")
		}
		signed := []byte(in)
		if !bytes.HasSuffix(signed, []byte(digestHead)) {
			signed = append(signed, digestHead...)
		}
		full := append(append(bytes.Clone(signed), digest(signed)...), digestTail...)
		m, err := decodeManifest(full)
		if err != nil {
			if !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) {
				t.Fatalf("an error without a kind: %v", err)
			}
			return
		}
		for _, file := range m.Files {
			if filepath.Base(file.Name) != file.Name || file.Size < 0 {
				t.Fatalf("took file %+v", file)
			}
		}
		again, err := m.encode()
		if err != nil || !bytes.Equal(again, full) {
			t.Fatalf("does not encode to itself: %v", err)
		}
	})
}
