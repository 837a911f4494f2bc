package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// imageName is the annotation by which containerd finds the full reference in
// an imported index.
const imageName = "io.containerd.image.name"

// writeLayout writes an image of one layer, the files below root, as a tar
// archive in OCI image layout.
func writeLayout(path, root, ref string, config ocispec.ImageConfig) (err error) {
	layer, err := writeLayer(path+".layer", root)
	if err != nil {
		return fmt.Errorf("pack the layer: %w", err)
	}
	defer os.Remove(path + ".layer")

	created := time.Unix(0, 0).UTC()
	configData, err := json.Marshal(ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config:   config,
		// The layer is not compressed, so its digest is that of its content.
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
	})
	if err != nil {
		return err
	}
	manifestData, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    descriptor(ocispec.MediaTypeImageConfig, configData),
		Layers:    []ocispec.Descriptor{layer},
	})
	if err != nil {
		return err
	}
	manifest := descriptor(ocispec.MediaTypeImageManifest, manifestData)
	manifest.Annotations = map[string]string{imageName: ref}
	indexData, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifest},
	})
	if err != nil {
		return err
	}
	layoutData, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}

	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	for _, entry := range []struct {
		name string
		data []byte
	}{
		{ocispec.ImageLayoutFile, layoutData},
		{ocispec.ImageIndexFile, indexData},
		{blobName(digest.FromBytes(manifestData)), manifestData},
		{blobName(digest.FromBytes(configData)), configData},
	} {
		if err := addBlob(w, entry.name, int64(len(entry.data)), bytes.NewReader(entry.data)); err != nil {
			return err
		}
	}
	blob, err := os.Open(path + ".layer")
	if err != nil {
		return err
	}
	defer blob.Close()
	if err := addBlob(w, blobName(layer.Digest), layer.Size, blob); err != nil {
		return err
	}
	return w.Close()
}

func descriptor(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func blobName(d digest.Digest) string {
	return filepath.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func addBlob(w *tar.Writer, name string, size int64, r io.Reader) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := io.Copy(w, r)
	return err
}

// writeLayer packs everything below root, with owners, modes and hard links.
func writeLayer(path, root string) (_ ocispec.Descriptor, err error) {
	f, err := os.Create(path)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	hash := sha256.New()
	w := tar.NewWriter(io.MultiWriter(f, hash))
	links := map[uint64]string{} // first name of each inode
	err = filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || file == root {
			return err
		}
		return addFile(w, root, file, d, links)
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := w.Close(); err != nil {
		return ocispec.Descriptor{}, err
	}
	info, err := f.Stat()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayer,
		Digest:    digest.NewDigest(digest.SHA256, hash),
		Size:      info.Size(),
	}, nil
}

func addFile(w *tar.Writer, root, file string, d fs.DirEntry, links map[uint64]string) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(file); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	if header.Name, err = filepath.Rel(root, file); err != nil {
		return err
	}
	if info.IsDir() {
		header.Name += "/"
	}
	// Names of the host's users mean nothing in the image.
	header.Uname, header.Gname = "", ""
	stat := info.Sys().(*syscall.Stat_t)
	if info.Mode().IsRegular() && stat.Nlink > 1 {
		if first, ok := links[stat.Ino]; ok {
			header.Typeflag, header.Linkname, header.Size = tar.TypeLink, first, 0
			return w.WriteHeader(header)
		}
		links[stat.Ino] = header.Name
	}
	if err := w.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
		return err
	}
	content, err := os.Open(file)
	if err != nil {
		return err
	}
	defer content.Close()
	_, err = io.Copy(w, content)
	return err
}
