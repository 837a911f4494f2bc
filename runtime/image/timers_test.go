package image

import (
	"os"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timerfd"
	"google.golang.org/protobuf/proto"
)

func TestRearmTimers(t *testing.T) {
	dir := t.TempDir()
	owner := &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)}
	timer := func(id uint32, ticks, value, interval uint64) proto.Message {
		return &fdinfo.FileEntry{Type: fdinfo.FdTypes_TIMERFD.Enum(), Id: proto.Uint32(id), Tfd: &timerfd.TimerfdEntry{
			Id: proto.Uint32(id), Flags: proto.Uint32(0), Fown: owner, Clockid: proto.Uint32(1), Ticks: &ticks, SettimeFlags: proto.Uint32(0),
			Vsec: proto.Uint64(0), Vnsec: &value, Isec: proto.Uint64(0), Insec: &interval,
		}}
	}
	writeImage(t, dir, filesImage, "FILES",
		timer(1, 1, 0, 50), // expired, periodic
		timer(2, 0, 20, 50),
		timer(3, 1, 0, 0), // expired, once
		timer(4, 0, 0, 0), // disarmed
	)
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	// The second time there is nothing to mend.
	for range 2 {
		if err := RearmTimers(d); err != nil {
			t.Fatal(err)
		}
		want := map[uint32]uint64{1: 50, 2: 20, 3: 0, 4: 0}
		seen := 0
		if err := readImage(d, filesImage, &fdinfo.FileEntry{}, func(e *fdinfo.FileEntry) error {
			seen++
			if got := e.GetTfd().GetVnsec(); got != want[e.GetId()] {
				t.Errorf("timer %d expires in %d ns, not %d", e.GetId(), got, want[e.GetId()])
			}
			return nil
		}); err != nil || seen != len(want) {
			t.Fatal(seen, err)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("left in the folder: %v, %v", names, err)
	}
}
