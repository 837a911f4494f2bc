//go:build linux

package main

import (
	"errors"
	"strings"
)

// words takes a command apart as a shell does, which knows single and double quotes
// and backslashes here, and nothing else.
func words(command string) ([]string, error) {
	var (
		list   []string
		word   strings.Builder
		begun  bool // a word is, be it empty
		quote  rune // the one that is open, or 0
		escape bool // a backslash came before
	)
	for _, r := range command {
		switch {
		case escape:
			// In double quotes a backslash is one, unless it has something to take
			// the meaning of.
			if quote == '"' && !strings.ContainsRune("\"\\$`", r) {
				word.WriteRune('\\')
			}
			word.WriteRune(r)
			escape = false
		case r == '\\' && quote != '\'':
			escape, begun = true, true
		case r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, begun = r, true
		case strings.ContainsRune(" \t\n", r):
			if begun {
				list = append(list, word.String())
				word.Reset()
				begun = false
			}
		default:
			word.WriteRune(r)
			begun = true
		}
	}
	switch {
	case escape:
		return nil, errors.New("a backslash at the end has nothing to stand before")
	case quote != 0:
		return nil, errors.New("a quote is open at the end: close it")
	case begun:
		list = append(list, word.String())
	}
	if len(list) == 0 || list[0] == "" {
		return nil, errors.New("it names no program")
	}
	return list, nil
}
