package main

import (
	"unsafe"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
)

// queue keeps messages for a shim that does not read at the moment. PID 1 does not wait for it: what finds no
// room is lost, and so is nothing but answers to a shim that asks without listening.
type queue struct {
	first, count int
	size         [8]int
	data         [8][initproto.MaxText + 64]byte
}

var (
	outbox  queue
	scratch [initproto.MaxText + 64]byte
)

func (q *queue) pending() bool { return q.count > 0 }

// send sends m now, or as soon as the socket takes it.
func (p *pid1) send(m *initproto.Message) {
	b, err := initproto.Append(scratch[:0], m)
	if err != nil || p.socket < 0 {
		return
	}
	if !outbox.pending() && p.transmit(&b[0], len(b)) {
		return
	}
	if q := &outbox; p.socket >= 0 && q.count < len(q.size) {
		at := (q.first + q.count) % len(q.size)
		q.size[at] = copy(q.data[at][:], b)
		q.count++
	}
}

// flush sends what waits, as far as it goes.
func (p *pid1) flush() {
	for q := &outbox; q.pending() && p.transmit(&q.data[q.first][0], q.size[q.first]); {
		q.first, q.count = (q.first+1)%len(q.size), q.count-1
	}
}

// transmit reports whether the message is done with: it was sent, or never can be.
func (p *pid1) transmit(b *byte, n int) bool {
	for {
		_, e := sys6(sysSendto, uintptr(p.socket), uintptr(unsafe.Pointer(b)), uintptr(n), msgDontwait|msgNosignal, 0, 0)
		if e != eINTR {
			return e != eAGAIN
		}
	}
}
