package gateway

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// credential is what the gateway keeps of an endpoint.
type credential struct {
	// KeyHash is the SHA-256 of the key. Keys are long and random, so a
	// plain hash tells nothing of them.
	KeyHash [sha256.Size]byte `json:"key-hash"`
	// Hostname is the one that the endpoint is bound to, empty before.
	Hostname string `json:"hostname,omitempty"`
}

// credentials are the endpoints that may talk to the manager, folded from the
// bucket endpoints.
type credentials struct {
	log     *slog.Logger
	db      *store.DB
	view    *view.View
	deleted func(uuid string)

	mu sync.RWMutex
	by map[string]credential
}

// newCredentials reads what the store holds. deleted is told of each endpoint
// that is deleted.
func newCredentials(db *store.DB, cfg view.Config, deleted func(uuid string)) (*credentials, error) {
	c := &credentials{log: cfg.Log, db: db, deleted: deleted, by: map[string]credential{}}
	err := load(db, prefixEndpoint, func(uuid string, value []byte) error {
		var cred credential
		if err := json.Unmarshal(value, &cred); err != nil {
			return err
		}
		c.by[uuid] = cred
		return nil
	})
	if err != nil {
		return nil, err
	}
	name, _ := stream.KVStream(stream.Endpoints)
	// Keys of one token are endpoints; when they were last seen is kept
	// under keys of two.
	cfg.Name, cfg.Stream, cfg.Filters = "endpoints", name, []string{keySubject(stream.Endpoints, "*")}
	cfg.Compacted, cfg.DB, cfg.Fold = true, db, c.fold
	c.view, err = view.New(cfg)
	return c, err
}

// keySubject returns the subject of a key of a bucket.
func keySubject(bucket, key string) string { return "$KV." + bucket + "." + key }

func (c *credentials) fold(txn *badger.Txn, msgs []view.Msg) (func(), error) {
	changes := make(map[string]*credential, len(msgs))
	for i := range msgs {
		m := &msgs[i]
		uuid := strings.TrimPrefix(m.Subject, keySubject(stream.Endpoints, ""))
		if !subject.IsUUID(uuid) {
			continue
		}
		if m.Deleted() {
			changes[uuid] = nil
			if err := errors.Join(put(txn, prefixEndpoint+uuid, nil), put(txn, prefixDeleted+uuid, []byte{})); err != nil {
				return nil, err
			}
			continue
		}
		var r message.EndpointRecord
		if err := json.Unmarshal(m.Data, &r); err != nil || r.Key == "" {
			c.log.Error("endpoint's record cannot be read, passing over it", "endpoint", uuid, "sequence", m.Seq, "error", err)
			continue
		}
		cred := &credential{KeyHash: sha256.Sum256([]byte(r.Key)), Hostname: r.Hostname}
		value, err := json.Marshal(cred)
		if err != nil {
			return nil, fmt.Errorf("endpoint %s: %w", uuid, err)
		}
		if err := errors.Join(put(txn, prefixEndpoint+uuid, value), put(txn, prefixDeleted+uuid, nil)); err != nil {
			return nil, err
		}
		changes[uuid] = cred
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for uuid, cred := range changes {
			if cred == nil {
				delete(c.by, uuid)
				c.deleted(uuid)
			} else {
				c.by[uuid] = *cred
			}
		}
	}, nil
}

// get returns an endpoint's credential.
func (c *credentials) get(uuid string) (credential, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	cred, ok := c.by[uuid]
	return cred, ok
}

// wasDeleted tells whether an endpoint existed and was deleted. The bucket keeps
// the mark of a deletion for ever, so a view that is built again knows it, too.
func (c *credentials) wasDeleted(uuid string) (bool, error) { return has(c.db, prefixDeleted+uuid) }

func (c *credentials) count() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.by)
}

// check tells whether key is the endpoint's. It takes the same time for an
// endpoint that does not exist.
func (c *credentials) check(uuid, key string) (credential, bool) {
	cred, known := c.get(uuid)
	sum := sha256.Sum256([]byte(key))
	same := subtle.ConstantTimeCompare(sum[:], cred.KeyHash[:]) == 1
	return cred, known && same && key != ""
}
