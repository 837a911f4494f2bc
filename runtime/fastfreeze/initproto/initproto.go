// Package initproto is the wire protocol between the shim and FastFreeze's PID 1.
//
// The two talk over one unnamed SOCK_SEQPACKET socket pair: one datagram is one
// message, little-endian, "version, type, fields", at most MaxSize bytes, with
// Message.Descriptors descriptors. PID 1 runs with the container's user, so the shim treats all that comes from it as
// hostile: the decoder takes exactly what the encoder makes and nothing else.
//
// PID 1 links this package: it imports nothing but unicode/utf8, so that PID 1
// stays small. The shim's end of the socket is in the package initconn.
package initproto

import "unicode/utf8"

const (
	// Version is the first byte of every message.
	Version = 2
	// MaxSize bounds a message, in bytes.
	MaxSize = 4096
	// MaxText bounds the text in a message, in bytes; longer ones are cut by Append.
	MaxText = 1024
	// MaxDescriptors bounds the descriptors that come with a message.
	MaxDescriptors = 4
	// MaxSignal is the highest signal number of Linux (SIGRTMAX).
	MaxSignal = 64
)

// Type says what a message is. Types of PID 1's messages have the high bit set.
type Type uint8

// What the shim tells PID 1.
const (
	// Start makes PID 1 start the application (Flags): the container's own command, or with Command another one.
	// It may come again whenever there is no application. Answer: Started or StartFailed.
	Start Type = 0x01
	// Adopt announces that a restore will put the application's root process, Pid, below PID 1 (Flags).
	// No answer; Restored or Abandon must follow. NewStdio changes nothing here: a restore brings its own stdio.
	Adopt Type = 0x02
	// Restored says that the restore announced by Adopt is complete. Answer: Started or StartFailed.
	Restored Type = 0x03
	// Abandon takes Adopt back: the restore failed.
	Abandon Type = 0x04
	// Signal makes PID 1 send Signo to the application's root process. No answer.
	Signal Type = 0x05
	// Ping asks for a Pong with the same Seq.
	Ping Type = 0x06
	// Tie gives the application that there is, or is about to be, a new Tied flag (Flags: Tied or none). Without an
	// application it does nothing. No answer: a Ping behind it says when it holds.
	Tie Type = 0x07
)

// What PID 1 tells the shim.
const (
	// Ready is the first message. Text is empty if the application's executable was found, else it says why not.
	Ready Type = 0x81
	// Started says that the application runs as Pid (in PID 1's namespace).
	Started Type = 0x82
	// StartFailed says why there is no application: Errno and Text, which names the step.
	StartFailed Type = 0x83
	// Exited says that the application's root process Pid ended with Status, a raw wait status (wait(2)). If it was
	// not tied, PID 1 takes the next Start or Adopt.
	Exited Type = 0x84
	// Pong answers Ping.
	Pong Type = 0x85
)

// Flags say how PID 1 treats the application.
type Flags uint8

const (
	// Terminal: the container's stdio is a terminal. PID 1 gives up its controlling terminal; an application
	// that it starts gets it (one that is restored takes it by itself).
	Terminal Flags = 1 << iota
	// Tied: PID 1 ends with the application, with its exit code or 128 + the signal that ended it.
	Tied
	// DropStdio: PID 1 lets go of the container's stdio once the application runs, so that a reader of the
	// container's pipes sees the end of file when the application's processes have closed them. The next Start
	// needs NewStdio then. A Terminal is never let go of: the next application needs it.
	DropStdio
	// NewStdio: three descriptors come along, which PID 1 makes its own 0, 1 and 2 before it starts the application.
	NewStdio
	// Command: another command than the container's own. One more descriptor comes along, the last: a sealed
	// memfd with what EncodeCommand made.
	Command

	startFlags = Terminal | Tied | DropStdio | NewStdio | Command
	adoptFlags = Terminal | Tied | DropStdio | NewStdio
	tieFlags   = Tied
)

// Message is any message; which fields count is told by Type.
type Message struct {
	Type   Type
	Flags  Flags  // Start, Adopt, Tie
	Pid    int32  // Adopt, Started, Exited; always positive
	Status uint32 // Exited
	Errno  uint32 // StartFailed
	Signo  uint32 // Signal, 1 to MaxSignal
	Seq    uint64 // Ping, Pong
	Text   string // Ready, StartFailed
}

// Error is a reason why a message is refused.
type Error string

func (e Error) Error() string { return string(e) }

const (
	// ErrMalformed: not a message of this protocol, or a field out of its range.
	ErrMalformed = Error("malformed message")
	// ErrVersion: a message of another version of the protocol.
	ErrVersion = Error("message of another protocol version: shim and fastfreeze come from different installations")
	// ErrType: a type that this side does not know or may not receive.
	ErrType = Error("unexpected message type")
)

// String names the type as the documentation does.
func (t Type) String() string {
	switch t {
	case Start:
		return "START"
	case Adopt:
		return "ADOPT"
	case Restored:
		return "RESTORED"
	case Abandon:
		return "ABANDON"
	case Signal:
		return "SIGNAL"
	case Ping:
		return "PING"
	case Tie:
		return "TIE"
	case Ready:
		return "READY"
	case Started:
		return "STARTED"
	case StartFailed:
		return "STARTFAILED"
	case Exited:
		return "EXITED"
	case Pong:
		return "PONG"
	}
	return "UNKNOWN"
}

// FromInit reports whether PID 1 sends messages of this type (the shim sends the others).
func (t Type) FromInit() bool { return t&0x80 != 0 }

// Descriptors is the number of descriptors that must come with the message.
func (m *Message) Descriptors() int {
	n := 0
	if m.Type == Start && m.Flags&NewStdio != 0 {
		n = 3
	}
	if m.Type == Start && m.Flags&Command != 0 {
		n++
	}
	return n
}

// Append encodes m behind dst. It allocates only if dst has no room. Text is cut and cleaned to what
// Decode takes; other fields out of range are refused.
func Append(dst []byte, m *Message) ([]byte, error) {
	b := append(dst, Version, byte(m.Type))
	switch m.Type {
	case Start:
		if m.Flags&^startFlags != 0 {
			return dst, ErrMalformed
		}
		b = append(b, byte(m.Flags))
	case Tie:
		if m.Flags&^tieFlags != 0 {
			return dst, ErrMalformed
		}
		b = append(b, byte(m.Flags))
	case Adopt:
		if m.Flags&^adoptFlags != 0 || m.Pid <= 0 {
			return dst, ErrMalformed
		}
		b = append(append32(b, uint32(m.Pid)), byte(m.Flags))
	case Restored, Abandon:
	case Signal:
		if m.Signo < 1 || m.Signo > MaxSignal {
			return dst, ErrMalformed
		}
		b = append(b, byte(m.Signo))
	case Ping, Pong:
		b = append32(append32(b, uint32(m.Seq)), uint32(m.Seq>>32))
	case Ready:
		b = appendText(b, m.Text)
	case Started:
		if m.Pid <= 0 {
			return dst, ErrMalformed
		}
		b = append32(b, uint32(m.Pid))
	case StartFailed:
		b = appendText(append32(b, m.Errno), m.Text)
	case Exited:
		if m.Pid <= 0 {
			return dst, ErrMalformed
		}
		b = append32(append32(b, uint32(m.Pid)), m.Status)
	default:
		return dst, ErrType
	}
	return b, nil
}

// DecodeFromShim decodes what PID 1 received. It does not allocate.
func DecodeFromShim(b []byte) (Message, error) { return decode(b, false) }

// DecodeFromInit decodes what the shim received.
func DecodeFromInit(b []byte) (Message, error) { return decode(b, true) }

func decode(b []byte, fromInit bool) (Message, error) {
	if len(b) < 2 || len(b) > MaxSize {
		return Message{}, ErrMalformed
	}
	if b[0] != Version {
		return Message{}, ErrVersion
	}
	m := Message{Type: Type(b[1])}
	if m.Type.FromInit() != fromInit {
		return Message{}, ErrType
	}
	r := reader{b: b[2:]}
	switch m.Type {
	case Start:
		m.Flags = r.flags(startFlags)
	case Tie:
		m.Flags = r.flags(tieFlags)
	case Adopt:
		m.Pid = r.pid()
		m.Flags = r.flags(adoptFlags)
	case Restored, Abandon:
	case Signal:
		m.Signo = uint32(r.u8())
		r.check(m.Signo >= 1 && m.Signo <= MaxSignal)
	case Ping, Pong:
		m.Seq = uint64(r.u32())
		m.Seq |= uint64(r.u32()) << 32
	case Ready:
		m.Text = r.text()
	case Started:
		m.Pid = r.pid()
	case StartFailed:
		m.Errno = r.u32()
		m.Text = r.text()
	case Exited:
		m.Pid = r.pid()
		m.Status = r.u32()
	default:
		return Message{}, ErrType
	}
	if r.bad || len(r.b) != 0 {
		return Message{}, ErrMalformed
	}
	return m, nil
}

// reader takes fields off the front; after the first bad one all are zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) check(ok bool) {
	if !ok {
		r.bad = true
	}
}

func (r *reader) take(n int) []byte {
	if r.bad || len(r.b) < n {
		r.bad = true
		return nil
	}
	f := r.b[:n]
	r.b = r.b[n:]
	return f
}

func (r *reader) u8() uint8 {
	if f := r.take(1); f != nil {
		return f[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if f := r.take(2); f != nil {
		return uint16(f[0]) | uint16(f[1])<<8
	}
	return 0
}

func (r *reader) u32() uint32 {
	if f := r.take(4); f != nil {
		return uint32(f[0]) | uint32(f[1])<<8 | uint32(f[2])<<16 | uint32(f[3])<<24
	}
	return 0
}

func (r *reader) pid() int32 {
	p := int32(r.u32())
	r.check(p > 0)
	return p
}

func (r *reader) flags(known Flags) Flags {
	f := Flags(r.u8())
	r.check(f&^known == 0)
	return f
}

func (r *reader) text() string {
	n := int(r.u16())
	f := r.take(n)
	if n > MaxText || r.bad || !cleanText(f) {
		r.bad = true
		return ""
	}
	return string(f)
}

// cleanText refuses what could deceive a reader of a log or a terminal.
func cleanText(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return utf8.Valid(b)
}

func append32(b []byte, v uint32) []byte {
	return append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
}

// appendText writes s with its length, control characters and what is not UTF-8 as "?".
func appendText(b []byte, s string) []byte {
	at := len(b)
	b = append(b, 0, 0)
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if len(b)-at-2+n > MaxText {
			break
		}
		if r < ' ' || r == 0x7f || (r == utf8.RuneError && n == 1) {
			b = append(b, '?')
		} else {
			b = append(b, s[i:i+n]...)
		}
		i += n
	}
	n := len(b) - at - 2
	b[at], b[at+1] = byte(n), byte(n>>8)
	return b
}
