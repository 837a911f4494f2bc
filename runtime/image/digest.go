package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

const (
	// chunkSize divides large files, in bytes, so that one file's digest is
	// computed on all CPUs: nearly all of a checkpoint is one file of memory.
	// It is part of format version 1.
	chunkSize = 16 << 20

	// readSize is how much is read and hashed at a time: it stays in the CPU's
	// second-level cache.
	readSize = 256 << 10

	// syncWorkers is how many fsync(2) run at once. They wait for the disk and
	// not for a CPU, and a journal commits those that come together as one.
	syncWorkers = 16
)

var readBuffers = sync.Pool{New: func() any { return new([readSize]byte) }}

// digestFile returns the digest, in hex, of the first size bytes of f. Up to
// chunkSize it is their sha256; above it is the sha256 of the sha256s of the
// chunks of chunkSize bytes.
func digestFile(ctx context.Context, f io.ReaderAt, size int64) (string, error) {
	if size <= chunkSize {
		sum, err := digestRange(ctx, f, 0, size)
		return hex.EncodeToString(sum[:]), err
	}
	chunks := int((size + chunkSize - 1) / chunkSize)
	sums := make([]byte, chunks*sha256.Size)
	err := parallel(ctx, runtime.GOMAXPROCS(0), chunks, func(i int) error {
		off := int64(i) * chunkSize
		sum, err := digestRange(ctx, f, off, min(chunkSize, size-off))
		copy(sums[i*sha256.Size:], sum[:])
		return err
	})
	if err != nil {
		return "", err
	}
	return digest(sums), nil
}

func digestRange(ctx context.Context, f io.ReaderAt, off, size int64) (sum [sha256.Size]byte, err error) {
	buf := readBuffers.Get().(*[readSize]byte)
	defer readBuffers.Put(buf)
	h := sha256.New()
	r := io.NewSectionReader(f, off, size)
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		n, err := r.Read(buf[:min(left, readSize)])
		h.Write(buf[:n])
		left -= int64(n)
		pulse(ctx)
		switch {
		case errors.Is(err, io.EOF) && left > 0:
			return sum, fmt.Errorf("it ended %d bytes early: %w", left, io.ErrUnexpectedEOF)
		case err != nil && !errors.Is(err, io.EOF):
			return sum, err
		}
	}
	h.Sum(sum[:0])
	return sum, nil
}

// parallel calls fn for 0 to n-1 from so many goroutines, and returns the first
// error or the context's. After one no further call starts.
func parallel(ctx context.Context, workers, n int, fn func(i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		next atomic.Int64
		wg   sync.WaitGroup
	)
	for range min(workers, n) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || ctx.Err() != nil {
					return
				}
				if err := fn(i); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// eachFile calls fn for every file of the checkpoint: the small ones side by
// side, then the large ones one after the other, whose digests take all CPUs.
func eachFile(ctx context.Context, files []File, workers int, fn func(i int) error) error {
	var small, large []int
	for i, f := range files {
		if f.Size <= chunkSize {
			small = append(small, i)
		} else {
			large = append(large, i)
		}
	}
	if err := parallel(ctx, workers, len(small), func(i int) error { return fn(small[i]) }); err != nil {
		return err
	}
	return parallel(ctx, 1, len(large), func(i int) error { return fn(large[i]) })
}
