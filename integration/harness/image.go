package harness

import (
	"context"
	"fmt"
	"os"

	containerd "github.com/containerd/containerd/v2/client"

	"github.com/fastmig/fastmig/integration/images"
)

// Import brings images into the node, building those that the cache lacks, and
// unpacks them.
func (n *Node) Import(ctx context.Context, all ...images.Image) error {
	for _, image := range all {
		archive, err := image.Archive(ctx, n.progress)
		if err != nil {
			return err
		}
		if err := n.ImportArchive(ctx, archive); err != nil {
			return fmt.Errorf("import the image %s: %w", image.Name, err)
		}
	}
	return nil
}

// ImportArchive imports and unpacks the images of a tar archive.
func (n *Node) ImportArchive(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	imported, err := n.client.Import(ctx, f)
	if err != nil {
		return err
	}
	for _, i := range imported {
		if err := containerd.NewImage(n.client, i).Unpack(ctx, ""); err != nil {
			return fmt.Errorf("unpack %s: %w", i.Name, err)
		}
	}
	return nil
}
