package main

import (
	"unsafe"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
)

// descriptors are those that came with the message at hand. What the message does not take is closed: nothing
// that came by mistake may reach the application.
type descriptors struct {
	fd    [initproto.MaxDescriptors]int32
	count int
	cut   bool // more came than there is room for, here or in the table of open files
}

// iovec and msghdr are the kernel's structures of recvmsg(2).
type iovec struct {
	base unsafe.Pointer
	size uint64
}

type msghdr struct {
	name    unsafe.Pointer
	nameLen uint32
	iov     *iovec
	iovLen  uint64
	control unsafe.Pointer
	ctlLen  uint64
	flags   int32
}

// ancillary is a control message (cmsg(3)) with room for as many descriptors as a message may have.
type ancillary struct {
	size        uint64
	level, kind int32
	fd          [initproto.MaxDescriptors]int32
}

var (
	received descriptors
	vec      iovec
	header   msghdr
	control  ancillary
)

// receive takes the next message off the socket: its bytes to packet, its descriptors to received. The answer
// is larger than packet if the message was.
func (p *pid1) receive() (int, errno) {
	vec = iovec{unsafe.Pointer(&packet), uint64(len(packet))}
	control = ancillary{}
	header = msghdr{iov: &vec, iovLen: 1, control: unsafe.Pointer(&control), ctlLen: uint64(unsafe.Sizeof(control))}
	received = descriptors{}
	n, e := sys3(sysRecvmsg, uintptr(p.socket), uintptr(unsafe.Pointer(&header)), msgDontwait|msgTrunc|msgCmsgCloexec)
	if e != 0 {
		return n, e
	}
	received.cut = header.flags&msgCtrunc != 0
	head := uint64(unsafe.Offsetof(control.fd))
	if header.ctlLen >= head && control.level == solSocket && control.kind == scmRights && control.size >= head {
		received.count = min(int(control.size-head)/4, len(received.fd))
		received.fd = control.fd
	}
	return n, 0
}

// close closes those that are left.
func (d *descriptors) close() {
	for _, fd := range d.fd[:d.count] {
		closeFd(int(fd))
	}
	d.count = 0
}
