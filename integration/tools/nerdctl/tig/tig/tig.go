// Package tig stands in for nerdctl's test-helper module, which no module
// proxy serves. nerdctl's command imports only this interface of it.
package tig

// T is the part of testing.T that nerdctl's helpers use.
type T interface {
	Helper()
	FailNow()
	Fail()
	Log(args ...any)
	Name() string
	TempDir() string
}
