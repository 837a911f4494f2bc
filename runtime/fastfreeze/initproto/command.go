package initproto

// MaxCommand bounds an encoded command, in bytes: the kernel takes no more from most processes (execve(2)).
const MaxCommand = 2 << 20

// ErrCommand: not an encoded command, or one over its bound.
const ErrCommand = Error("malformed command line: it must have a program, no string with a NUL byte, and 2 MiB at most")

// EncodeCommand encodes a command line and its whole environment for Command: the number of each in four bytes,
// little-endian, then the strings, each with a NUL byte behind it. What PID 1 would not take (no program, a string
// with a NUL byte, more than MaxCommand bytes) is refused by DecodeCommand.
func EncodeCommand(args, env []string) []byte {
	size := 8
	for _, list := range [...][]string{args, env} {
		for _, s := range list {
			size += len(s) + 1
		}
	}
	b := append32(append32(make([]byte, 0, size), uint32(len(args))), uint32(len(env)))
	for _, list := range [...][]string{args, env} {
		for _, s := range list {
			b = append(append(b, s...), 0)
		}
	}
	return b
}

// CommandLine is a command whose encoding is sound.
type CommandLine struct {
	Args, Env int    // how many strings each has, Args at least 1
	strings   []byte // those that Next has not given yet
}

// DecodeCommand checks an encoded command. It does not allocate, and what it returns lies in b.
func DecodeCommand(b []byte) (CommandLine, error) {
	if len(b) > MaxCommand {
		return CommandLine{}, ErrCommand
	}
	r := reader{b: b}
	args, env := uint64(r.u32()), uint64(r.u32())
	found := uint64(0)
	for _, c := range r.b {
		if c == 0 {
			found++
		}
	}
	// Every string ends with NUL and has no other one: so many there are, and nothing behind the last.
	if r.bad || args < 1 || found != args+env || r.b[len(r.b)-1] != 0 {
		return CommandLine{}, ErrCommand
	}
	return CommandLine{Args: int(args), Env: int(env), strings: r.b}, nil
}

// Next gives the next string with the NUL byte behind it, first the arguments, then the environment; nil at the end.
func (c *CommandLine) Next() []byte {
	for i, ch := range c.strings {
		if ch == 0 {
			s := c.strings[: i+1 : i+1]
			c.strings = c.strings[i+1:]
			return s
		}
	}
	return nil
}
