package initramfs

import (
	"bytes"
	"strings"
	"testing"
	"testing/fstest"
)

// TestWriteIsAligned holds an archive byte for byte against the format: each
// name and each content begins and ends at a multiple of four.
func TestWriteIsAligned(t *testing.T) {
	var b bytes.Buffer
	if err := Write(&b, []File{{"init", []byte("#!init")}, {"drop/tool", []byte("tool")}, {"drop/b", nil}}); err != nil {
		t.Fatal(err)
	}
	header := func(ino, mode, size, name string) string {
		return "070701" + "0000000" + ino + mode + "00000000" + "00000000" + "00000001" + "00000000" + "0000000" + size +
			strings.Repeat("00000000", 4) + "0000000" + name + "00000000"
	}
	dir, file := "000041ED", "000081ED"
	want := header("1", dir, "0", "4") + "dev\x00\x00\x00" +
		header("2", file, "6", "5") + "init\x00\x00" + "#!init\x00\x00" +
		header("3", dir, "0", "5") + "drop\x00\x00" +
		header("4", file, "4", "A") + "drop/tool\x00" + "tool" +
		header("5", file, "0", "7") + "drop/b\x00\x00\x00\x00" +
		header("0", "00000000", "0", "B") + "TRAILER!!!\x00\x00\x00\x00"
	if got := b.String(); got != want {
		t.Errorf("the archive is\n%q\nwant\n%q", got, want)
	}
}

func TestModulesRefuses(t *testing.T) {
	for name, files := range map[string]fstest.MapFS{
		"no module":       {"kernel/a.txt": {}},
		"compressed ones": {"kernel/virtio.ko.xz": {}},
		"no module file":  {"kernel/virtio.ko": {Data: []byte("text")}},
	} {
		if list, err := Modules(files, "virtio"); err == nil {
			t.Errorf("%s: no error, modules are %v", name, list)
		}
	}
}
