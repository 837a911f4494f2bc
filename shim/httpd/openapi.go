//go:build linux

package httpd

import (
	_ "embed" // the document
	"net/http"
)

// document describes the interface; the tests hold it against the routes and package api.
//
//go:embed openapi.json
var document []byte

func openAPI(c *call) { c.answer(http.StatusOK, "application/json", document) }
