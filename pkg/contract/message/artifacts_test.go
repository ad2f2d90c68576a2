package message

import (
	"errors"
	"strings"
	"testing"
)

const (
	artifactEndpoint = "03e31275-2277-d8e0-bb5f-480fac7ee4ef"
	artifactProcess  = "515cd0d1-ab35-60e4-827c-000000004e00"
	artifactEvent    = "2252cc3dee2623a44f5d1644338129b9"
)

func TestArtifactNames(t *testing.T) {
	for name, want := range map[string]bool{
		"event.json.gz": true, "a b_c-1": true, "..x": true, "...": true, " ": true, "-": true, strings.Repeat("x", MaxArtifactName): true,
		"": false, ".": false, "..": false, "../x": false, "a/b": false, `a\b`: false, "???": false, "x\x00": false, "é": false,
		"/x": false, "x\n/y": false, "C:x": false, strings.Repeat("x", MaxArtifactName+1): false,
	} {
		if got := IsArtifactName(name); got != want {
			t.Errorf("IsArtifactName(%.20q) is %t", name, got)
		}
	}
	for hash, want := range map[string]bool{
		artifactEvent: true, strings.ToUpper(artifactEvent): true, strings.Repeat("a", 40): true, strings.Repeat("a", 128): true,
		"": false, "abcd": false, strings.Repeat("a", 31): false, strings.Repeat("a", 129): false, artifactEvent + "\n": false,
		strings.Repeat("g", 32): false, "../" + artifactEvent: false,
	} {
		if got := IsEventHash(hash); got != want {
			t.Errorf("IsEventHash(%.20q) is %t", hash, got)
		}
	}
}

func TestArtifactObject(t *testing.T) {
	id := ArtifactID{Endpoint: artifactEndpoint, Process: artifactProcess, Event: artifactEvent, File: "event.json.gz"}
	got, err := ParseArtifactObject(id.Object())
	if err != nil || got != id {
		t.Errorf("%+v, %v", got, err)
	}
	for _, name := range []string{
		"", "x", id.Part(1, 2), artifactEndpoint, id.Object() + "/", "/" + id.Object(),
		artifactEndpoint + "/" + artifactProcess + "/" + artifactEvent + "/..",
		artifactEndpoint + "/{" + artifactProcess + "}/" + artifactEvent + "/x",
		artifactEndpoint + "/" + artifactProcess + "/abcd/x",
	} {
		if _, err := ParseArtifactObject(name); !errors.Is(err, ErrArtifactObject) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
