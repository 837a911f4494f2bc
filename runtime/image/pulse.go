package image

import "context"

type pulseKey struct{}

// WithPulse has pulse called, from any goroutine, whenever work that is given
// the context gets on: some bytes were read or written, a file was moved. A
// caller tells by it whether a file system is slow or has stopped answering.
func WithPulse(ctx context.Context, pulse func()) context.Context {
	return context.WithValue(ctx, pulseKey{}, pulse)
}

// pulse calls the context's pulse, if it has one.
func pulse(ctx context.Context) {
	if f, ok := ctx.Value(pulseKey{}).(func()); ok {
		f()
	}
}
