//go:build linux

package httpd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

// maxBody bounds a request's body.
const maxBody = 1 << 20

// maxDrain bounds what is read of a larger one for its client's sake.
const maxDrain = 8 << 20

// decode reads a body into v, a pointer to a struct of package api. It takes less than
// encoding/json does: names in their exact spelling, each once, and null only for what
// may be absent. An empty body is {}. Its errors are ErrInvalidArgument and name the
// field, but never show a value, which may be a secret.
func decode(body []byte, v any) error {
	if body = bytes.Trim(body, " \t\r\n"); len(body) == 0 {
		return nil
	}
	if !utf8.Valid(body) {
		return invalid("the body is not UTF-8")
	}
	// What it is of, if it is JSON, comes later; nothing is stored here.
	var syntax *json.SyntaxError
	if err := json.Unmarshal(body, &struct{}{}); errors.As(err, &syntax) {
		return invalid("the body is not one JSON object: %v, at byte %d", err, syntax.Offset)
	}
	if err := checkEscapes(body); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if t, _ := d.Token(); t != json.Delim('{') {
		return invalid("the body is to be a JSON object, not %s", describe(t))
	}
	if err := checkObject(d, reflect.TypeOf(v).Elem(), ""); err != nil {
		return err
	}
	d = json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return invalid("the body: %v", err)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// checkEscapes refuses, in valid JSON, what encoding/json would silently replace: half a
// surrogate pair. It refuses NUL, too, which no path and no argument can have.
func checkEscapes(body []byte) error {
	for i := 0; i < len(body); i++ {
		if body[i] != '\\' {
			continue
		}
		if i++; body[i] != 'u' { // valid JSON: there is one more, and four digits behind u
			continue
		}
		r := escaped(body[i+1:])
		i += 4
		if r == 0 {
			return invalid("the body has a NUL character (\\u0000)")
		}
		if !utf16.IsSurrogate(r) {
			continue
		}
		rest := body[i+1:]
		if !bytes.HasPrefix(rest, []byte(`\u`)) || utf16.DecodeRune(r, escaped(rest[2:])) == utf8.RuneError {
			return invalid("the body has half a surrogate pair (\\u%04x)", r)
		}
		i += 6
	}
	return nil
}

func escaped(digits []byte) rune {
	n, _ := strconv.ParseUint(string(digits[:4]), 16, 16)
	return rune(n)
}

// checkObject checks an object, behind its opening brace, against a struct.
func checkObject(d *json.Decoder, t reflect.Type, path string) error {
	seen := make(map[string]bool, t.NumField())
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return invalid("the body: %v", err)
		}
		name, _ := token.(string)
		field, ok := fieldOf(t, name)
		if !ok {
			return invalid("field %q is not known", clip(path+name))
		}
		if seen[name] {
			return invalid("field %q is there twice", path+name)
		}
		seen[name] = true
		if err := checkValue(d, field.Type, path+name); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

// clip keeps a client's text short in an error.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

func checkValue(d *json.Decoder, t reflect.Type, path string) error {
	token, err := d.Token()
	if err != nil {
		return invalid("the body: %v", err)
	}
	if token == nil && (t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice) {
		return nil // Go's clients send what is absent so
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	wrong := func() error { return invalid("field %q: %s is wanted, not %s", path, want(t), describe(token)) }
	switch t.Kind() {
	case reflect.String:
		if _, ok := token.(string); !ok {
			return wrong()
		}
	case reflect.Bool:
		if _, ok := token.(bool); !ok {
			return wrong()
		}
	case reflect.Int:
		n, ok := token.(json.Number)
		if !ok {
			return wrong()
		}
		if _, err := strconv.ParseInt(n.String(), 10, t.Bits()); err != nil {
			return invalid("field %q: %s is wanted, within its bounds and without a fraction", path, want(t))
		}
	case reflect.Slice:
		if token != json.Delim('[') {
			return wrong()
		}
		for i := 0; d.More(); i++ {
			if err := checkValue(d, t.Elem(), fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
		_, err := d.Token()
		return err
	case reflect.Struct:
		if token != json.Delim('{') {
			return wrong()
		}
		return checkObject(d, t, path+".")
	default:
		return fmt.Errorf("field %q: the interface has no bodies with a %s: %w", path, t, errdefs.ErrInternal)
	}
	return nil
}

// want names the type of a field as JSON does.
func want(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Slice:
		return "an array"
	default:
		return "an object"
	}
}

// describe says what stands in the place of what is wanted.
func describe(token json.Token) string {
	switch t := token.(type) {
	case nil:
		return "null"
	case string:
		return "a string"
	case bool:
		return strconv.FormatBool(t)
	case json.Delim:
		if t == '[' {
			return "an array"
		}
		return "an object"
	default:
		return "a number"
	}
}

// fieldOf finds the field of a struct with this JSON name.
func fieldOf(t reflect.Type, name string) (reflect.StructField, bool) {
	for i := range t.NumField() {
		f := t.Field(i)
		if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag == name && name != "" {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

// readBody reads a body of at most maxBody bytes; one that is longer is errTooLarge.
func readBody(r io.Reader) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("read the body: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(body) > maxBody {
		return nil, errTooLarge
	}
	return body, nil
}

var errTooLarge = fmt.Errorf("the body is larger than %d bytes: %w", maxBody, errdefs.ErrInvalidArgument)
