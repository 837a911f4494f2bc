//go:build linux

package httpd

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// schema is one of an OpenAPI 3.0 document: the part of JSON Schema that ours uses. What
// it does not know is refused, so that nothing goes unchecked.
type schema struct {
	Ref         string             `json:"$ref"`
	AllOf       []schema           `json:"allOf"`
	Type        string             `json:"type"`
	Description string             `json:"description"`
	Format      string             `json:"format"`
	Enum        []string           `json:"enum"`
	Default     any                `json:"default"`
	Nullable    bool               `json:"nullable"`
	Pattern     string             `json:"pattern"`
	Minimum     *float64           `json:"minimum"`
	Maximum     *float64           `json:"maximum"`
	Items       *schema            `json:"items"`
	Properties  map[string]*schema `json:"properties"`
	Required    []string           `json:"required"`
	Additional  *bool              `json:"additionalProperties"`
}

// schemas are those of the document's components.
type schemas map[string]*schema

const schemaPrefix = "#/components/schemas/"

// resolve follows references; a description beside one needs an allOf of one.
func (all schemas) resolve(s *schema) (*schema, string) {
	name := ""
	for {
		if len(s.AllOf) == 1 {
			s = &s.AllOf[0]
		}
		if s.Ref == "" {
			return s, name
		}
		name = strings.TrimPrefix(s.Ref, schemaPrefix)
		next := all[name]
		if next == nil {
			panic("no schema " + s.Ref)
		}
		s = next
	}
}

// validate holds a value, as encoding/json gives it, against a schema.
func (all schemas) validate(s *schema, v any, path string) error {
	s, _ = all.resolve(s)
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("%s: "+format, append([]any{path}, args...)...)
	}
	if v == nil {
		if s.Nullable {
			return nil
		}
		return wrong("null")
	}
	switch s.Type {
	case "object":
		o, ok := v.(map[string]any)
		if !ok {
			return wrong("%T, not an object", v)
		}
		for _, name := range s.Required {
			if _, ok := o[name]; !ok {
				return wrong("%s is missing", name)
			}
		}
		for name, v := range o {
			p := s.Properties[name]
			if p == nil {
				if s.Additional != nil && !*s.Additional {
					return wrong("%s is not documented", name)
				}
				continue
			}
			if err := all.validate(p, v, path+"."+name); err != nil {
				return err
			}
		}
	case "array":
		list, ok := v.([]any)
		if !ok {
			return wrong("%T, not an array", v)
		}
		for i, v := range list {
			if err := all.validate(s.Items, v, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	case "string":
		text, ok := v.(string)
		if !ok {
			return wrong("%T, not a string", v)
		}
		if s.Enum != nil && !slices.Contains(s.Enum, text) {
			return wrong("%q is none of %q", text, s.Enum)
		}
		if s.Pattern != "" && !regexp.MustCompile(s.Pattern).MatchString(text) {
			return wrong("%q does not match %s", text, s.Pattern)
		}
		if _, err := time.Parse(time.RFC3339Nano, text); s.Format == "date-time" && err != nil {
			return wrong("%v", err)
		}
	case "boolean":
		if _, ok := v.(bool); !ok {
			return wrong("%T, not a boolean", v)
		}
	case "integer", "number":
		n, ok := v.(float64)
		switch {
		case !ok:
			return wrong("%T, not a number", v)
		case s.Type == "integer" && n != float64(int64(n)):
			return wrong("%v is not whole", n)
		case s.Minimum != nil && n < *s.Minimum, s.Maximum != nil && n > *s.Maximum:
			return wrong("%v is out of bounds", n)
		}
	default:
		return wrong("schema of type %q", s.Type)
	}
	return nil
}

// validateText is validate for JSON.
func (all schemas) validateText(s *schema, text string) error {
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return err
	}
	return all.validate(s, v, "body")
}
