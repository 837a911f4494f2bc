package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	objects["timerfd"] = timerfd
	objects["setitimer"] = setitimer
	objects["posix-timer"] = posixTimer
	objects["signalfd"] = signalfd
	objects["pending-signals"] = pendingSignals
	objects["clocks"] = clocks
}

func timerfd() (check, error) {
	make := func(spec unix.ItimerSpec) (int, error) {
		fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
		if err != nil {
			return 0, err
		}
		return fd, unix.TimerfdSettime(fd, 0, &spec, nil)
	}
	tick, err := make(unix.ItimerSpec{Interval: unix.Timespec{Nsec: 5e7}, Value: unix.Timespec{Nsec: 5e7}})
	if err != nil {
		return nil, err
	}
	far, err := make(unix.ItimerSpec{Value: unix.Timespec{Sec: 5000}})
	return func(bool) error {
		for range 2 {
			if err := readable(tick); err != nil {
				return err
			}
			buf := [8]byte{}
			if _, err := unix.Read(tick, buf[:]); err != nil || binary.NativeEndian.Uint64(buf[:]) == 0 {
				return fmt.Errorf("the ticks are %v, %v", buf, err)
			}
		}
		var left unix.ItimerSpec
		if err := unix.TimerfdGettime(far, &left); err != nil {
			return err
		}
		if left.Value.Sec > 5000 || left.Value.Sec < 4000 {
			return fmt.Errorf("the far timer has %d s left", left.Value.Sec)
		}
		return nil
	}, err
}

// arrives checks that a signal comes twice.
func arrives(sig os.Signal) check {
	c := make(chan os.Signal, 1)
	signal.Notify(c, sig)
	return func(bool) error {
		for range 3 { // the first may be an old one
			select {
			case <-c:
			case <-time.After(10 * time.Second):
				return fmt.Errorf("no %v comes", sig)
			}
		}
		return nil
	}
}

func setitimer() (check, error) {
	c := arrives(unix.SIGALRM)
	_, err := unix.Setitimer(unix.ItimerReal, unix.Itimerval{
		Interval: unix.Timeval{Usec: 50_000}, Value: unix.Timeval{Usec: 50_000},
	})
	return c, err
}

func posixTimer() (check, error) {
	c := arrives(unix.SIGUSR1)
	event := struct { // struct sigevent
		value         uintptr
		signo, notify int32
		_             [48]byte
	}{signo: int32(unix.SIGUSR1)}
	var id int32
	if _, _, errno := unix.Syscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&id))); errno != 0 {
		return nil, errno
	}
	spec := unix.ItimerSpec{Interval: unix.Timespec{Nsec: 5e7}, Value: unix.Timespec{Nsec: 5e7}}
	_, _, errno := unix.Syscall6(unix.SYS_TIMER_SETTIME, uintptr(id), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
	if errno != 0 {
		return nil, errno
	}
	return c, nil
}

// block keeps a signal from the calling thread and returns the set of it.
func block(sig unix.Signal) (unix.Sigset_t, error) {
	var set unix.Sigset_t
	set.Val[0] = 1 << (sig - 1)
	return set, unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil)
}

func signalfd() (check, error) {
	set, err := block(unix.SIGUSR2)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Signalfd(-1, &set, unix.SFD_CLOEXEC|unix.SFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	raise := func() error { return unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGUSR2) }
	if err := raise(); err != nil {
		return nil, err
	}
	return func(bool) error {
		var info unix.SignalfdSiginfo
		buf := (*[unsafe.Sizeof(info)]byte)(unsafe.Pointer(&info))[:]
		if _, err := unix.Read(fd, buf); err != nil {
			return fmt.Errorf("no signal in it: %w", err)
		}
		return errors.Join(want("the signal", info.Signo, uint32(unix.SIGUSR2)), raise())
	}, nil
}

// pendingSignals queues three signals with values.
func pendingSignals() (check, error) {
	const signo = 40
	set, err := block(signo)
	if err != nil {
		return nil, err
	}
	type siginfo struct {
		signo, errno, code, _ int32
		pid, uid              int32
		value                 int64
		_                     [96]byte
	}
	queue := func() error {
		for i := range int64(3) {
			info := siginfo{signo: signo, code: -1, pid: int32(os.Getpid()), value: 100 + i} // SI_QUEUE
			if _, _, errno := unix.Syscall6(unix.SYS_RT_TGSIGQUEUEINFO, uintptr(os.Getpid()), uintptr(unix.Gettid()), signo,
				uintptr(unsafe.Pointer(&info)), 0, 0); errno != 0 {
				return errno
			}
		}
		return nil
	}
	if err := queue(); err != nil {
		return nil, err
	}
	return func(bool) error {
		for i := range int64(3) {
			var info siginfo
			var now unix.Timespec
			if _, _, errno := unix.Syscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&set)), uintptr(unsafe.Pointer(&info)),
				uintptr(unsafe.Pointer(&now)), 8, 0, 0); errno != 0 {
				return fmt.Errorf("signal %d of 3: %w", i+1, errno)
			}
			if err := want("the value", info.value, 100+i); err != nil {
				return err
			}
		}
		return queue()
	}, nil
}

// clocks must go on: never back, and by no more than the time that passed.
func clocks() (check, error) {
	names := map[int32]string{unix.CLOCK_MONOTONIC: "CLOCK_MONOTONIC", unix.CLOCK_BOOTTIME: "CLOCK_BOOTTIME", unix.CLOCK_MONOTONIC_RAW: "CLOCK_MONOTONIC_RAW"}
	read := func(clock int32) int64 {
		var ts unix.Timespec
		_ = unix.ClockGettime(clock, &ts)
		return ts.Nano()
	}
	old := map[int32]int64{}
	for clock := range names {
		old[clock] = read(clock)
	}
	wall, start := read(unix.CLOCK_REALTIME), time.Now()
	elapsed := time.Duration(0)
	return func(bool) error {
		passed := read(unix.CLOCK_REALTIME) - wall
		wall += passed
		for clock, name := range names {
			now := read(clock)
			advance := now - old[clock]
			if advance < 0 || advance > passed+int64(time.Second) {
				return fmt.Errorf("%s advanced by %v while %v passed", name, time.Duration(advance), time.Duration(passed))
			}
			old[clock] = now
		}
		// The same without a system call, through the vDSO.
		now := time.Since(start)
		if now < elapsed || now-elapsed > time.Duration(passed)+time.Second {
			return fmt.Errorf("the vDSO's clock advanced by %v while %v passed", now-elapsed, time.Duration(passed))
		}
		elapsed = now
		return nil
	}, nil
}
