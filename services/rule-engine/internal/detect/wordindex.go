package detect

import (
	"bytes"
	"math/bits"
	"slices"
	"strings"
)

// gram is the number of bytes by which a wordIndex finds its words. Shorter
// words cannot be indexed.
const gram = 3

// wordIndex searches many words in one pass over a text. The cost of a text that
// holds none of them hardly depends on their number.
type wordIndex struct {
	filter      []uint64
	filterShift uint
	heads       []int32
	headShift   uint
	entries     []indexEntry
}

// indexEntry is one word and the place of the gram by which it is found.
type indexEntry struct {
	word    string
	at      int32
	next    int32
	payload int32
}

// newWordIndex indexes words by their position in the given list, which is the
// payload of their entries. All words have at least gram bytes.
func newWordIndex(words []string) *wordIndex {
	size := uint(bits.Len(uint(len(words)*16 - 1)))
	size = min(max(size, 6), 20)
	x := &wordIndex{
		filter:      make([]uint64, 1<<(size-6)),
		filterShift: 32 - size,
		headShift:   32 - (size - 3),
		heads:       make([]int32, 1<<(size-3)),
		entries:     make([]indexEntry, len(words)),
	}
	for i := range x.heads {
		x.heads[i] = -1
	}
	shared := make(map[uint32]int)
	for _, w := range words {
		for i := 0; i+gram <= len(w); i++ {
			shared[gramAt(w, i)]++
		}
	}
	for i, w := range words {
		at, best := 0, -1
		for k := 0; k+gram <= len(w); k++ {
			g := gramAt(w, k)
			if cost := shared[g] + commonGrams[g]; best < 0 || cost < best {
				at, best = k, cost
			}
		}
		h := hashGram(gramAt(w, at))
		bit := h >> x.filterShift
		x.filter[bit>>6] |= 1 << (bit & 63)
		head := &x.heads[h>>x.headShift]
		x.entries[i] = indexEntry{word: w, at: int32(at), next: *head, payload: int32(i)}
		*head = int32(i)
	}
	return x
}

func gramAt(s string, i int) uint32 {
	return uint32(s[i]) | uint32(s[i+1])<<8 | uint32(s[i+2])<<16
}

// manyHits is the number of hits from which search looks for repetitions.
const manyHits = 1024

func hashGram(g uint32) uint32 {
	return g * 0x9E3779B1
}

// search appends to hits the payload of every word found in the text. A payload
// may appear more than once, though a text that repeats words does not make hits
// grow beyond a few times the number of words.
func (x *wordIndex) search(text []byte, hits []int32) []int32 {
	if len(text) < gram {
		return hits
	}
	limit := max(manyHits, 4*len(x.entries))
	g := uint32(text[0])<<8 | uint32(text[1])<<16
	for i := gram - 1; i < len(text); i++ {
		g = g>>8 | uint32(text[i])<<16
		h := hashGram(g)
		bit := h >> x.filterShift
		if x.filter[bit>>6]&(1<<(bit&63)) == 0 {
			continue
		}
		for k := x.heads[h>>x.headShift]; k >= 0; k = x.entries[k].next {
			e := &x.entries[k]
			start := i - (gram - 1) - int(e.at)
			if start < 0 || start+len(e.word) > len(text) || string(text[start:start+len(e.word)]) != e.word {
				continue
			}
			if len(hits) >= limit {
				slices.Sort(hits)
				hits = slices.Compact(hits)
			}
			hits = append(hits, e.payload)
		}
	}
	return hits
}

// contains reports whether one of the words is in the text.
func (x *wordIndex) contains(text []byte) bool {
	if len(text) < gram {
		return false
	}
	g := uint32(text[0])<<8 | uint32(text[1])<<16
	for i := gram - 1; i < len(text); i++ {
		g = g>>8 | uint32(text[i])<<16
		h := hashGram(g)
		bit := h >> x.filterShift
		if x.filter[bit>>6]&(1<<(bit&63)) == 0 {
			continue
		}
		for k := x.heads[h>>x.headShift]; k >= 0; k = x.entries[k].next {
			e := &x.entries[k]
			start := i - (gram - 1) - int(e.at)
			if start >= 0 && start+len(e.word) <= len(text) && string(text[start:start+len(e.word)]) == e.word {
				return true
			}
		}
	}
	return false
}

// ordinary is text such as most events hold. What it contains is a poor sign of
// anything. It only guides choices; results do not depend on it.
const ordinary = `c:\windows\system32\svchost.exe -k netsvcs -p -s schedule
c:\windows\system32\cmd.exe /c "powershell.exe -noprofile -executionpolicy bypass -command"
c:\windows\syswow64\rundll32.exe c:\program files (x86)\microsoft office\root\ c:\program files\common files\
c:\windows\explorer.exe c:\users\administrator\appdata\local\temp\ c:\users\public\downloads\desktop\documents\
c:\windows\system32\windowspowershell\v1.0\powershell.exe c:\programdata\microsoft\windows defender\platform\msmpeng.exe
hklm\system\currentcontrolset\services\tcpip\parameters hklm\software\microsoft\windows\currentversion\run
hku\s-1-5-21-1000\software\classes\ hkcr\clsid\{00000000-0000-0000-0000-000000000000}
nt authority\system nt authority\network service font driver host\umfd-0 window manager\dwm-1
microsoft corporation microsoft windows operating system 10.0.19041.1 (winbuild.160101.0800)
md5= sha1= sha256= imphash= http://www. https:// .com .net .dll .exe .tmp .log .txt .sys .ps1
0x0000000000001000 dword (0x00000001) setvalue createkey true false system medium high valid signed
c:\windows\system32\ntdll.dll+9c534|c:\windows\system32\kernelbase.dll+2732e|c:\windows\system32\kernel32.dll lsass.exe services.exe`

var commonGrams = func() map[uint32]int {
	m := make(map[uint32]int)
	for i := 0; i+gram <= len(ordinary); i++ {
		m[gramAt(ordinary, i)] += 8
	}
	return m
}()

// rarity estimates the cost of having rules depend on a folded word: low for
// words that few texts contain.
func rarity(w string) int {
	cost := 1
	switch n := len(w); {
	case n < gram:
		cost = 256
	case n < 4:
		cost = 24
	case n < 5:
		cost = 12
	case n < 6:
		cost = 6
	case n < 8:
		cost = 2
	}
	if strings.Contains(ordinary, w) {
		cost += 64
	}
	return cost
}

// wordMatcher decides whether a value holds one of a list of words.
type wordMatcher struct {
	// folded and exact compare with the folded and the unchanged value.
	folded, exact []needle
	// index holds the folded words without anchors when there are many.
	index *wordIndex
}

// needle is a word to look for, with or without anchors.
type needle struct {
	text       []byte
	begin, end bool
}

// manyWords is the number of words from which an index beats comparing each.
const manyWords = 8

func newWordMatcher(words []word) *wordMatcher {
	m := &wordMatcher{}
	var free []string
	for _, w := range words {
		n := needle{text: []byte(w.text), begin: w.begin, end: w.end}
		switch {
		case w.cases == caseExact:
			m.exact = append(m.exact, n)
		case !w.begin && !w.end && len(w.text) >= gram:
			free = append(free, w.text)
		default:
			m.folded = append(m.folded, n)
		}
	}
	if len(free) >= manyWords {
		m.index = newWordIndex(free)
		return m
	}
	for _, text := range free {
		m.folded = append(m.folded, needle{text: []byte(text)})
	}
	return m
}

// match compares the words with a value and its folded form.
func (m *wordMatcher) match(text, folded []byte) bool {
	for i := range m.folded {
		if m.folded[i].in(folded) {
			return true
		}
	}
	for i := range m.exact {
		if m.exact[i].in(text) {
			return true
		}
	}
	return m.index != nil && m.index.contains(folded)
}

func (n *needle) in(text []byte) bool {
	size := len(n.text)
	switch {
	case size > len(text):
		return false
	case n.begin && n.end:
		return bytes.Equal(text, n.text)
	case n.begin:
		return bytes.Equal(text[:size], n.text)
	case n.end:
		return bytes.Equal(text[len(text)-size:], n.text)
	}
	return bytes.Contains(text, n.text)
}
