package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestDemo runs the whole demonstration once.
func TestDemo(t *testing.T) {
	var out bytes.Buffer
	if err := demo(t.Context(), &out, true, true); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"edr.alerts.critical.", "edr.alerts.low.", "by agent", "by both", "Endpoints by score:", "Try next", "Stopped."} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the demonstration does not print %q", want)
		}
	}
	if t.Failed() {
		t.Log(out.String())
	}
}
