package store

import (
	"context"
	"testing"
)

// What opening a small checkpoint costs a restore.
func BenchmarkOpen(b *testing.B) {
	for _, url := range both {
		b.Run(url, func(b *testing.B) {
			s := storeIn(b.TempDir())
			u := mustParse(b, url)
			mustTake(b, s, u, "text")
			for b.Loop() {
				o, err := s.Open(context.Background(), u)
				if err != nil {
					b.Fatal(err)
				}
				if err := o.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
