package e2e

import (
	"errors"
	"strings"
	"testing"
)

// Lines of strace: the log of a store is mapped, a change is written to its
// stream and synced, and is answered.
const (
	mapsStore   = `11 mmap(NULL, 8388608, PROT_READ|PROT_WRITE, MAP_SHARED, 15</d/endpoint-registry/00001.mem>, 0) = 0x7f10` + "\n"
	writesFile  = `12 pwrite64(54</d/nats/streams/KV_endpoints/msgs/1.blk>, "+\1", 2, 0) = 2` + "\n"
	syncsFile   = `12 fsync(54</d/nats/streams/KV_endpoints/msgs/1.blk>) = 0` + "\n"
	syncsStore  = `11 msync(0x7f10, 8388608, MS_SYNC) = 0` + "\n"
	answers200  = `11 write(60<socket:[37]>, "HTTP/1.1 200 OK\r\nContent-Type: a"..., 342) = 342` + "\n"
	someoneElse = `13 write(7<anon_inode:[eventfd]>, "\1\0\0\0\0\0\0\0", 8) = 8` + "\n"
)

// TestSyncsAreSeen holds how the log of strace is judged: in whatever order and
// pieces it tells of the calls, a sync that returned before the answer is found,
// and nothing else is taken for one.
func TestSyncsAreSeen(t *testing.T) {
	const (
		cutWrite  = `12 pwrite64(54</d/nats/streams/KV_endpoints/msgs/1.blk>, "+\1", 2, 0 <unfinished ...>` + "\n"
		cutSync   = `12 fsync(54</d/nats/streams/KV_endpoints/msgs/1.blk> <unfinished ...>` + "\n"
		cutMsync  = `11 msync(0x7f10, 8388608, MS_SYNC <unfinished ...>` + "\n"
		cutAnswer = `14 write(60<socket:[37]>, "HTTP/1.1 200 OK\r\nContent-Type: a"..., 342 <unfinished ...>` + "\n"
		wrote     = `12 <... pwrite64 resumed>) = 2` + "\n"
		synced    = `12 <... fsync resumed>) = 0` + "\n"
		msynced   = `11 <... msync resumed>) = 0` + "\n"
		answered  = `14 <... write resumed>) = 342` + "\n"
	)
	cutMap := strings.Replace(mapsStore, ") = 0x7f10", " <unfinished ...>", 1)
	mapped := "11 <... mmap resumed>) = 0x7f10\n"
	othersCutMap := "13 mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0 <unfinished ...>\n"
	othersMapped := "13 <... mmap resumed>) = 0x7f20\n"
	other := func(line string) string { return strings.Replace(line, "endpoint-registry", "rule-engine", 1) }
	for name, c := range map[string]struct {
		log           []string
		stream, store bool
	}{
		"all in a row":                             {[]string{mapsStore, writesFile, syncsFile, syncsStore, answers200}, true, true},
		"mapped in pieces":                         {[]string{cutMap, othersCutMap, mapped, othersMapped, writesFile, syncsFile, syncsStore, answers200}, true, true},
		"mapped in pieces, of others in between":   {[]string{cutMap, othersCutMap, othersMapped, mapped, writesFile, syncsFile, syncsStore, answers200}, true, true},
		"all in pieces":                            {[]string{mapsStore, cutWrite, someoneElse, wrote, cutSync, someoneElse, synced, cutMsync, someoneElse, msynced, cutAnswer, someoneElse, answered}, true, true},
		"nothing synced":                           {[]string{mapsStore, writesFile, answers200}, false, false},
		"synced before the write":                  {[]string{mapsStore, syncsFile, syncsStore, writesFile, answers200}, false, false},
		"synced within the write":                  {[]string{mapsStore, cutWrite, strings.ReplaceAll(syncsFile, "12 ", "13 "), syncsStore, wrote, answers200}, false, false},
		"a write that has not returned":            {[]string{mapsStore, cutWrite, strings.ReplaceAll(syncsFile, "12 ", "13 "), syncsStore, answers200}, false, false},
		"synced after the answer":                  {[]string{mapsStore, writesFile, answers200, syncsFile, syncsStore}, false, false},
		"syncs end after the answer has begun":     {[]string{mapsStore, writesFile, cutSync, cutMsync, cutAnswer, synced, msynced, answered}, false, false},
		"syncs fail":                               {[]string{mapsStore, writesFile, strings.Replace(syncsFile, "0\n", "-1 EIO (Input/output error)\n", 1), strings.Replace(syncsStore, "= 0\n", "= -1 EIO (Input/output error)\n", 1), answers200}, false, false},
		"another file synced":                      {[]string{mapsStore, writesFile, strings.Replace(syncsFile, "KV_endpoints", "KV_rules", 1), answers200}, false, false},
		"another store":                            {[]string{other(mapsStore), writesFile, syncsFile, syncsStore, answers200}, true, false},
		"another address":                          {[]string{mapsStore, writesFile, syncsFile, strings.Replace(syncsStore, "0x7f10", "0x7f20", 1), answers200}, true, false},
		"not waited for":                           {[]string{mapsStore, writesFile, syncsFile, strings.Replace(syncsStore, "MS_SYNC", "MS_ASYNC", 1), answers200}, true, false},
		"the address is another store's now":       {[]string{mapsStore, "11 munmap(0x7f10, 8388608) = 0\n", other(mapsStore), writesFile, syncsFile, syncsStore, answers200}, true, false},
		"the address was another store's":          {[]string{other(mapsStore), "11 munmap(0x7f10, 8388608) = 0\n", mapsStore, writesFile, syncsFile, syncsStore, answers200}, true, true},
		"given away before it is told as free":     {[]string{strings.Replace(other(mapsStore), "11 ", "13 ", 1), "13 munmap(0x7f10, 8388608 <unfinished ...>\n", mapsStore, "13 <... munmap resumed>) = 0\n", writesFile, syncsFile, syncsStore, answers200}, true, true},
		"unmapped":                                 {[]string{mapsStore, "11 munmap(0x7f10, 8388608) = 0\n", writesFile, syncsFile, syncsStore, answers200}, true, false},
		"moved":                                    {[]string{strings.Replace(mapsStore, "0x7f10", "0x7f00", 1), "11 mremap(0x7f00, 8388608, 16777216, MREMAP_MAYMOVE) = 0x7f10\n", writesFile, syncsFile, syncsStore, answers200}, true, true},
		"moved away":                               {[]string{mapsStore, "11 mremap(0x7f10, 8388608, 16777216, MREMAP_MAYMOVE) = 0x7f20\n", writesFile, syncsFile, syncsStore, answers200}, true, false},
		"grown in its place":                       {[]string{mapsStore, "11 mremap(0x7f10, 8388608, 16777216, MREMAP_MAYMOVE) = 0x7f10\n", writesFile, syncsFile, syncsStore, answers200}, true, true},
		"of an earlier request comes an answer":    {[]string{mapsStore, answers200, writesFile, syncsFile, syncsStore, answers200}, true, true},
		"an answer is stored":                      {[]string{mapsStore, writesFile, `12 pwrite64(55</d/x.blk>, "a \"HTTP/1.1 200 OK", 18, 0) = 18` + "\n", syncsFile, syncsStore, answers200}, true, true},
		"only the second of two answers is synced": {[]string{mapsStore, writesFile, answers200, syncsFile, syncsStore, answers200}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			list := calls(strings.Join(c.log, ""))
			if v, err := streamSynced(list, "KV_endpoints", 0); err != nil || v.synced != c.stream {
				t.Errorf("stream: %v, %v", v, err)
			}
			if v, err := storeSynced(list, "KV_endpoints", "endpoint-registry", 0); err != nil || v.synced != c.store {
				t.Errorf("store: %v, %v", v, err)
			}
		})
	}
}

// TestSyncsAreAwaited holds what is no answer yet: one that strace is still
// writing down, and those before the line from which on is looked.
func TestSyncsAreAwaited(t *testing.T) {
	before := mapsStore + writesFile + syncsFile + syncsStore
	for name, c := range map[string]struct {
		log  string
		from int
	}{
		"nothing":            {"", 0},
		"no answer":          {before, 0},
		"half an answer":     {before + strings.TrimSuffix(answers200, "\n"), 0},
		"answer to another":  {mapsStore + answers200 + writesFile, 0},
		"all of it is older": {before + answers200, 2},
	} {
		t.Run(name, func(t *testing.T) {
			list := calls(c.log)
			if v, err := streamSynced(list, "KV_endpoints", c.from); !errors.Is(err, errNoAnswer) {
				t.Errorf("stream: %v, %v", v, err)
			}
			if v, err := storeSynced(list, "KV_endpoints", "endpoint-registry", c.from); !errors.Is(err, errNoAnswer) {
				t.Errorf("store: %v, %v", v, err)
			}
		})
	}
}

// TestSyncsAreShown holds that a judgment shows the calls it was judged by: the
// map of the store, and what was between the write and the answer.
func TestSyncsAreShown(t *testing.T) {
	v, err := storeSynced(calls(mapsStore+someoneElse+writesFile+syncsStore+answers200), "KV_endpoints", "endpoint-registry", 0)
	if err != nil {
		t.Fatal(err)
	}
	want := `synced before the answer: true, by these calls:
	line 1 to 1: 11 mmap(NULL, 8388608, PROT_READ|PROT_WRITE, MAP_SHARED, 15</d/endpoint-registry/00001.mem>, 0) = 0x7f10
	line 3 to 3: 12 pwrite64(54</d/nats/streams/KV_endpoints/msgs/1.blk>, "+\1", 2, 0) = 2
	line 4 to 4: 11 msync(0x7f10, 8388608, MS_SYNC) = 0
	line 5 to 5: 11 write(60<socket:[37]>, "HTTP/1.1 200 OK\r\nContent-Type: a"..., 342) = 342`
	if got := v.String(); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}
