//go:build linux

package httpd

import (
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fastmig/fastmig/shim/api"
)

// The document's schemas and the types of package api are the same, in both directions.
func TestDocumentHasTheTypes(t *testing.T) {
	doc := readDocument(t)
	all := doc.Components.Schemas
	requests := []reflect.Type{
		reflect.TypeFor[api.Run](), reflect.TypeFor[api.CheckpointRun](), reflect.TypeFor[api.CheckpointRequest](),
		reflect.TypeFor[api.RestoreRequest](), reflect.TypeFor[api.StartRequest](), reflect.TypeFor[api.StopRequest](),
	}
	answers := []reflect.Type{
		reflect.TypeFor[api.Status](), reflect.TypeFor[api.Result](), reflect.TypeFor[api.Event](), reflect.TypeFor[api.Error](),
	}
	checked := map[string]bool{"State": true}
	for _, r := range requests {
		checkType(t, all, r, true, checked)
	}
	for _, a := range answers {
		checkType(t, all, a, false, checked)
	}
	for name := range all {
		if !checked[name] {
			t.Errorf("schema %s is no type", name)
		}
	}
	types, states := declared(t)
	for _, name := range types {
		if !checked[name] {
			t.Errorf("type %s has no schema", name)
		}
	}
	slices.Sort(states)
	if enum := slices.Sorted(slices.Values(all["State"].Enum)); !slices.Equal(enum, states) {
		t.Errorf("states %q, documented %q", states, enum)
	}
}

func checkType(t *testing.T, all schemas, typ reflect.Type, request bool, checked map[string]bool) {
	t.Helper()
	name := typ.Name()
	if checked[name] {
		return
	}
	checked[name] = true
	s := all[name]
	if s == nil || s.Type != "object" || s.Additional == nil || *s.Additional {
		t.Errorf("%s: no schema of a closed object", name)
		return
	}
	fields := map[string]bool{}
	for i := range typ.NumField() {
		f := typ.Field(i)
		tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		where := name + "." + tag
		fields[tag] = true
		p := s.Properties[tag]
		if p == nil {
			t.Errorf("%s is not documented", where)
			continue
		}
		if required := slices.Contains(s.Required, tag); required != (!request && options != "omitempty") {
			t.Errorf("%s: required: %v", where, required)
		}
		checkField(t, all, f.Type, p, where, request, checked)
	}
	for p := range s.Properties {
		if !fields[p] {
			t.Errorf("%s.%s is documented, and not there", name, p)
		}
	}
}

func checkField(t *testing.T, all schemas, typ reflect.Type, p *schema, where string, request bool, checked map[string]bool) {
	t.Helper()
	resolved, name := all.resolve(p)
	absent := typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice
	if resolved.Nullable && !(absent && request) {
		t.Errorf("%s cannot be null", where)
	}
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	want := map[reflect.Kind]string{reflect.String: "string", reflect.Bool: "boolean", reflect.Int: "integer", reflect.Int64: "integer",
		reflect.Uint64: "integer", reflect.Float64: "number", reflect.Slice: "array", reflect.Struct: "object"}[typ.Kind()]
	switch {
	case typ == reflect.TypeFor[time.Time]():
		if resolved.Type != "string" || resolved.Format != "date-time" {
			t.Errorf("%s is no time: %+v", where, resolved)
		}
		return
	case resolved.Type != want:
		t.Errorf("%s: documented %q, it is %s", where, resolved.Type, want)
	case typ == reflect.TypeFor[api.State](), typ.Kind() == reflect.Struct:
		if name != typ.Name() {
			t.Errorf("%s: documented as %q, it is %s", where, name, typ.Name())
		}
	}
	switch typ.Kind() {
	case reflect.Struct:
		checkType(t, all, typ, request, checked)
	case reflect.Slice:
		checkField(t, all, typ.Elem(), resolved.Items, where+"[]", request, checked)
	}
}

// declared gives the structs and the states that the source of package api has.
func declared(t *testing.T) (structs, states []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../api/api.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.TypeSpec:
			if _, ok := n.Type.(*ast.StructType); ok && n.Name.IsExported() {
				structs = append(structs, n.Name.Name)
			}
		case *ast.ValueSpec:
			if typ, ok := n.Type.(*ast.Ident); ok && typ.Name == "State" {
				s, err := strconv.Unquote(n.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				states = append(states, s)
			}
		}
		return true
	})
	if len(structs) < 10 || len(states) < 5 {
		t.Fatalf("package api has %q, %q: is it elsewhere now?", structs, states)
	}
	return structs, states
}
