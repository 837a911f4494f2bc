package image

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/checkpoint-restore/go-criu/v8/magic"
)

// A task's state in CRIU's images (criu/include/pid.h). The package of go-criu
// that has them links the messages of all images, which costs each start of the
// shim half a millisecond.
const (
	taskDead    = 2
	taskStopped = 3
	taskZombie  = 6
)

var magics = sync.OnceValue(magic.LoadMagic)

// skipMagic reads the one or two numbers that an image of CRIU's begins with
// (criu/include/magic.h).
func skipMagic(r io.Reader) error {
	known := magics()
	number, err := readNumber(r)
	if err == nil && (number == known.ByName["IMG_COMMON"] || number == known.ByName["IMG_SERVICE"]) {
		number, err = readNumber(r)
	}
	if err != nil {
		return err
	}
	if _, ok := known.ByValue[number]; !ok {
		return fmt.Errorf("unknown magic number %#x", number)
	}
	return nil
}

func readNumber(r io.Reader) (uint64, error) {
	var b [4]byte
	_, err := io.ReadFull(r, b[:])
	return uint64(binary.LittleEndian.Uint32(b[:])), err
}
