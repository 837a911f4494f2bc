//go:build linux

package criu

import (
	"regexp"
	"sync"
)

// pattern is a regular expression that is compiled when it is first used: the
// shim's program is started four times for a container, and nearly never has an
// error of CRIU's to explain.
type pattern struct {
	compile func() *regexp.Regexp
}

func lazily(text string) *pattern {
	return &pattern{sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })}
}

func (p *pattern) MatchString(s string) bool            { return p.compile().MatchString(s) }
func (p *pattern) FindStringSubmatch(s string) []string { return p.compile().FindStringSubmatch(s) }
func (p *pattern) FindStringSubmatchIndex(s string) []int {
	return p.compile().FindStringSubmatchIndex(s)
}
func (p *pattern) ExpandString(dst []byte, template, src string, match []int) []byte {
	return p.compile().ExpandString(dst, template, src, match)
}
