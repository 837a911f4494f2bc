//go:build linux

package fastfreeze

import (
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

const someStatus = "Name:\tx\nUid:\t10\t10\t10\t10\nGid:\t20\t20\t20\t20\nGroups:\t20 30 \nCapPrm:\t0000000000000000\n" +
	"CapBnd:\t000001fffeffffff\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n"

func TestParseStatus(t *testing.T) {
	got, err := parseStatus(someStatus)
	ids := func(id uint32) []uint32 { return []uint32{id, id, id, id} }
	want := status{bounding: 0x1fffeffffff, noNewPrivs: true, seccomp: true, filters: 1, uid: ids(10), gid: ids(20), groups: []uint32{20, 30}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "CapBnd:\t0\n",
		strings.Replace(someStatus, "000001fffeffffff", "x", 1),
		strings.Replace(someStatus, "NoNewPrivs", "Other", 1),
		strings.Replace(someStatus, "\t10\t10\t10\t10", "\t10", 1),
		strings.Replace(someStatus, "20 30", "20 -1", 1),
	} {
		if _, err := parseStatus(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if s, err := parseStatus(string(own)); err != nil || s.bounding == 0 {
		t.Errorf("our own: %+v, %v", s, err)
	}
}

func TestFixedIDs(t *testing.T) {
	const all, none = ^uint64(0), uint64(0)
	const setuid, setgid = uint64(1) << 7, uint64(1) << 6
	for _, tc := range []struct {
		name                string
		uid                 uint32
		bounding, permitted uint64
		noNewPrivs          bool
		user, group, groups bool // cannot change
	}{
		{"root", 0, all, all, false, false, false, false},
		// A setuid program changes the user, without any capability.
		{"root without setuid", 0, all &^ setuid, all &^ setuid, false, false, false, false},
		{"root without setgid", 0, all &^ setgid, all &^ setgid, false, false, false, true},
		{"root, no new privileges", 0, all, all, true, false, false, false},
		{"root without setuid, no new privileges", 0, all &^ setuid, all &^ setuid, true, true, false, false},
		{"root without permissions, no new privileges", 0, all, none, true, true, true, true},
		{"a user", 7, all, none, false, false, false, false},
		{"a user without any", 7, none, none, false, false, false, true},
		{"a user, no new privileges", 7, all, none, true, true, true, true},
		{"a user with ambient setuid, no new privileges", 7, all, setuid, true, false, true, true},
	} {
		s := status{bounding: tc.bounding, permitted: tc.permitted, noNewPrivs: tc.noNewPrivs,
			uid: []uint32{tc.uid, tc.uid, tc.uid, tc.uid}, gid: []uint32{5, 5, 5, 5}, groups: []uint32{6}}
		r := s.rights()
		if (r.User != nil) != tc.user || tc.user && *r.User != tc.uid {
			t.Errorf("%s: user %v", tc.name, r.User)
		}
		if (r.Group != nil) != tc.group || tc.group && *r.Group != 5 {
			t.Errorf("%s: group %v", tc.name, r.Group)
		}
		if want := []uint32{5, 6}; (r.Groups != nil) != tc.groups || tc.groups && !reflect.DeepEqual(r.Groups, want) {
			t.Errorf("%s: groups %v", tc.name, r.Groups)
		}
	}
}

func TestBaseFilters(t *testing.T) {
	for _, tc := range []struct {
		s    status
		want string
	}{
		{status{}, "0"},
		{status{seccomp: true}, "not noted"}, // the kernel does not tell
		{status{seccomp: true, filters: 1}, "not noted"},
		{status{seccomp: true, filters: 3}, "3"},
	} {
		got := "not noted"
		if n := tc.s.baseFilters(); n != nil {
			got = strconv.Itoa(*n)
		}
		if got != tc.want {
			t.Errorf("%+v: %s, want %s", tc.s, got, tc.want)
		}
	}
}

func TestParseProfile(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "unconfined\n": "", "cri-containerd.apparmor.d (enforce)\n": "cri-containerd.apparmor.d",
		"system_u:system_r:container_t:s0:c1,c2\x00": "system_u:system_r:container_t:s0:c1,c2",
	} {
		if got := parseProfile(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestMapID(t *testing.T) {
	const maps = "         0     100000      65536\n     70000          5          1\n"
	for id, want := range map[uint32]uint32{100000: 0, 100007: 7, 165535: 65535, 165536: 65534, 5: 70000, 6: 65534} {
		if got, err := mapID(maps, id); err != nil || got != want {
			t.Errorf("%d: %d, %v; want %d", id, got, err, want)
		}
	}
	if got, err := mapID("0 0 4294967295\n", 1234); err != nil || got != 1234 {
		t.Errorf("the same: %d, %v", got, err)
	}
	if _, err := mapID("0 0\n", 0); err == nil {
		t.Error("half a line is taken")
	}
}
