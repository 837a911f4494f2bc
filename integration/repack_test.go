package integration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	ctdimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/fastmig/fastmig/integration/harness"
)

// repack makes a checkpoint image like ref with another checkpoint folder:
// change gets the unpacked one.
func repack(t *testing.T, lab *harness.Lab, ref string, change func(dir string)) string {
	t.Helper()
	// The lease keeps the collector off the new parts until the test ends.
	ctx, release, err := lab.Client().WithLease(lab.Context())
	must(t, err)
	t.Cleanup(func() { _ = release(context.WithoutCancel(ctx)) })
	image, err := lab.Client().GetImage(ctx, ref)
	must(t, err)
	store := lab.Client().ContentStore()
	text, err := content.ReadBlob(ctx, store, image.Target())
	must(t, err)
	var index ocispec.Index
	must(t, json.Unmarshal(text, &index))
	for i, m := range index.Manifests {
		if m.MediaType != ctdimages.MediaTypeContainerd1Checkpoint {
			continue
		}
		packed, err := content.ReadBlob(ctx, store, m)
		must(t, err)
		dir := t.TempDir()
		_, err = archive.Apply(ctx, dir, bytes.NewReader(packed))
		must(t, err)
		change(dir)
		tar := archive.Diff(ctx, "", dir)
		again, err := io.ReadAll(tar)
		must(t, err)
		must(t, tar.Close())
		index.Manifests[i] = addBlob(ctx, t, store, m, again)
	}
	text, err = json.Marshal(index)
	must(t, err)
	name := "fastmig.test/" + harness.NewID("repacked") + ":1"
	_, err = lab.Client().ImageService().Create(ctx, ctdimages.Image{Name: name, Target: addBlob(ctx, t, store, image.Target(), text)})
	must(t, err)
	return name
}

func addBlob(ctx context.Context, t *testing.T, store content.Store, like ocispec.Descriptor, data []byte) ocispec.Descriptor {
	t.Helper()
	like.Digest, like.Size = digest.FromBytes(data), int64(len(data))
	must(t, content.WriteBlob(ctx, store, like.Digest.String(), bytes.NewReader(data), like))
	return like
}
