//go:build !chaos

package e2e

import (
	"bytes"
	"os"
	"testing"
)

// TestNoFailpoints demands that a program as it is released knows nothing of
// failpoints, so that nobody can arm them.
func TestNoFailpoints(t *testing.T) {
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"NIGHTJAR_FAILPOINTS", "rule-engine/alerts-before-ack"} {
		if bytes.Contains(program, []byte(s)) {
			t.Errorf("the program contains %q", s)
		}
	}
	if !bytes.Contains(program, []byte("nightjar_dead_letters_total")) && !bytes.Contains(program, []byte("retention-events")) {
		t.Error("the program does not contain its own texts")
	}
}
