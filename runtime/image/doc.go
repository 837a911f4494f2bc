// Package image keeps a checkpoint as a folder that exists wholly or not at all.
//
// A checkpoint is one flat folder: CRIU's image files, and fastmig.json, the
// manifest. The manifest says what was checkpointed, where it can be restored,
// and the size and digest of every other file; it ends with a digest of its own
// text. It is written last, so its existence is the checkpoint's existence.
//
//	s, err := image.Stage(dir)       // a private folder inside dir
//	defer s.Abort()                  // leaves no trace unless committed
//	... CRIU dumps into s.File() ...
//	err = s.Commit(ctx, manifest)    // digests, sync, publish
//
//	c, err := image.Open(dir)        // manifest read and validated
//	defer c.Close()
//	err = c.Verify(ctx)              // every byte is what was committed
//	err = c.CheckHost(host)          // from ProbeHost
//	err = image.CheckFiles(root, c.Manifest.MappedFiles)
//	filters, err := c.Confine(rights) // and the seccomp.img to restore with
//
// StageAt, OpenAt and RemoveAt do the same by the descriptor of the folder above,
// for places in which others rename at will; Isolate copies what others could
// change while it is used.
//
// A checkpoint comes from anywhere, so nothing in its folder is followed,
// executed or trusted for a length before it has been checked.
//
// Errors carry an errdefs kind: NotFound (no checkpoint there), AlreadyExists
// (the target is in use), Unavailable (another writer is at work), DataLoss
// (damaged), FailedPrecondition (whole, but not for this version, host or
// container), InvalidArgument (not a checkpoint at all), ResourceExhausted (the
// disk is full).
package image
