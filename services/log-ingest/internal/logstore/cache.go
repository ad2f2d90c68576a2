package logstore

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
)

// cacheKey names what a cache holds: the state of an hour, or the hashes of
// one of its chunks.
type cacheKey struct {
	id     chunkID
	hashes bool
}

// cached is a value of the cache.
type cached interface{ bytes() int }

// cache keeps what was used last within a bound of bytes. It holds only what
// can be read from the store again. It is not safe for concurrent use.
type cache struct {
	lru       *simplelru.LRU[cacheKey, cached]
	sizes     map[cacheKey]int
	used, max int
}

func newCache(maxBytes int) *cache {
	c := &cache{sizes: map[cacheKey]int{}, max: maxBytes}
	lru, err := simplelru.NewLRU(math.MaxInt, func(k cacheKey, _ cached) {
		c.used -= c.sizes[k]
		delete(c.sizes, k)
	})
	if err != nil {
		panic(err) // only for a size that is not positive
	}
	c.lru = lru
	return c
}

func (c *cache) get(k cacheKey) (cached, bool) { return c.lru.Get(k) }

// peek is get for who does not use the value.
func (c *cache) peek(k cacheKey) (cached, bool) { return c.lru.Peek(k) }

// remove removes a value, if it is there.
func (c *cache) remove(k cacheKey) { c.lru.Remove(k) }

// put adds or replaces a value and drops what was not used for longest. The
// value itself stays even when it alone is beyond the bound.
func (c *cache) put(k cacheKey, v cached) {
	size := v.bytes() + 2*len(k.id.endpoint) + 256 // entries of list and maps
	c.lru.Add(k, v)
	c.used += size - c.sizes[k]
	c.sizes[k] = size
	for c.used > c.max && c.lru.Len() > 1 {
		c.lru.RemoveOldest()
	}
}

// drop removes all values of an endpoint.
func (c *cache) drop(endpoint string) {
	for _, k := range c.lru.Keys() {
		if k.id.endpoint == endpoint {
			c.lru.Remove(k)
		}
	}
}

// hashSet is the set of the hashes of a chunk's lines, or of timed tags.
type hashSet struct {
	set map[event.Hash]struct{}
	// tagged tells that the chunk is a merged one.
	tagged bool
	// first and last are the earliest and latest arrival of the chunk's lines.
	first, last uint64
}

// timedTag joins a tag with a time within an hour.
func timedTag(tag event.Hash, off int64) event.Hash {
	binary.BigEndian.PutUint64(tag[tagSize:], uint64(off))
	return tag
}

func (h *hashSet) bytes() int { return 32 + len(h.set)*hashSize*7/4 }

// hourState is what a writer knows of the chunks of an endpoint's hour.
type hourState struct {
	// max is the greatest time that is stored, -1 when there is none.
	max int64
	// floor is the time above which chunks is complete: every chunk that
	// reaches beyond floor and whose hashes are no keys is in it.
	floor int64
	// chunks are sorted by min; reach[i] is the greatest max of chunks[:i+1].
	chunks []span
	reach  []int64
	// keyedMin and keyedMax bound the times of the chunks whose hashes are
	// keys; keyedMax is -1 when there are none.
	keyedMin, keyedMax int64
	// fresh is how many chunks were not merged, marked tells that the store says
	// so, and written when the last one came, zero when that is not known.
	fresh   int
	marked  bool
	written time.Time
}

func newHourState() *hourState { return &hourState{max: -1, floor: -1, keyedMax: -1} }

func (h *hourState) bytes() int { return 128 + cap(h.chunks)*72 + cap(h.reach)*8 }
