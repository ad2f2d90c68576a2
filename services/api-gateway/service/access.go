package gateway

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// adminOperator is the operator that Config.AdminKey is for.
const adminOperator = "admin"

// roleAdmin may do everything.
const roleAdmin = "admin"

// operators are who may use the admin API, and the server key, folded from
// the bucket access.
type operators struct {
	log  *slog.Logger
	view *view.View

	mu        sync.RWMutex
	by        map[string]operator
	serverKey string
}

// operator is an OperatorRecord made ready for comparison.
type operator struct {
	identifier string
	salt, hash []byte
}

func parseOperator(value []byte) (operator, error) {
	var r message.OperatorRecord
	if err := json.Unmarshal(value, &r); err != nil {
		return operator{}, err
	}
	salt, err := hex.DecodeString(r.Salt)
	if err != nil {
		return operator{}, fmt.Errorf("salt: %w", err)
	}
	hash, err := hex.DecodeString(r.Hash)
	if err != nil || len(hash) != sha256.Size {
		return operator{}, errors.New("bad hash")
	}
	return operator{identifier: r.Identifier, salt: salt, hash: hash}, nil
}

func (o *operator) accepts(key string) bool {
	return hmac.Equal(hashKey(o.salt, key), o.hash)
}

func hashKey(salt []byte, key string) []byte {
	h := hmac.New(sha256.New, salt)
	h.Write([]byte(key))
	return h.Sum(nil)
}

func newOperators(db *store.DB, cfg view.Config) (*operators, error) {
	o := &operators{log: cfg.Log, by: map[string]operator{}}
	if err := load(db, prefixAccess, o.set); err != nil {
		return nil, err
	}
	name, filter := stream.KVStream(stream.Access)
	cfg.Name, cfg.Stream, cfg.Filters = "access", name, []string{filter}
	cfg.Compacted, cfg.DB, cfg.Fold = true, db, o.fold
	var err error
	o.view, err = view.New(cfg)
	return o, err
}

// set takes one key of the bucket into memory; a nil value deletes it.
func (o *operators) set(key string, value []byte) error {
	switch {
	case key == message.ServerKeyKey:
		var r message.ServerKeyRecord
		if value != nil {
			if err := json.Unmarshal(value, &r); err != nil {
				return err
			}
		}
		o.serverKey = r.Key
	case !strings.HasPrefix(key, message.OperatorKeyPrefix):
	case value == nil:
		delete(o.by, key)
	default:
		op, err := parseOperator(value)
		if err != nil {
			return err
		}
		o.by[key] = op
	}
	return nil
}

func (o *operators) fold(txn *badger.Txn, msgs []view.Msg) (func(), error) {
	for i := range msgs {
		m := &msgs[i]
		key := strings.TrimPrefix(m.Subject, keySubject(stream.Access, ""))
		value := m.Data
		if m.Deleted() {
			value = nil
		} else if err := (&operators{by: map[string]operator{}}).set(key, value); err != nil {
			o.log.Error("record of access cannot be read, passing over it", "key", key, "sequence", m.Seq, "error", err)
			continue
		}
		if err := put(txn, prefixAccess+key, value); err != nil {
			return nil, err
		}
	}
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		for i := range msgs {
			m := &msgs[i]
			value := m.Data
			if m.Deleted() {
				value = nil
			}
			// What cannot be read was reported before the commit.
			_ = o.set(strings.TrimPrefix(m.Subject, keySubject(stream.Access, "")), value)
		}
	}, nil
}

// identify returns the identifier of the operator whose key it is. It looks
// at every operator whatever it finds, so its time tells nothing.
func (o *operators) identify(key string) (string, bool) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	found, ok := "", false
	for _, op := range o.by {
		if op.accepts(key) {
			found, ok = op.identifier, true
		}
	}
	return found, ok && key != ""
}

func (o *operators) empty() bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return len(o.by) == 0
}

func (o *operators) get(key string) (operator, bool) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	op, ok := o.by[key]
	return op, ok
}

func (o *operators) key() string {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.serverKey
}

// bootstrap brings the operator admin and the server key to what the
// configuration asks for. The view must have caught up. onKey is told of a
// generated key, after it is stored.
func (o *operators) bootstrap(ctx context.Context, kv jetstream.KeyValue, adminKey, serverKey string, onKey func(string)) error {
	name := message.OperatorKeyPrefix + adminOperator
	switch op, known := o.get(name); {
	case adminKey != "" && (!known || !op.accepts(adminKey)):
		if err := o.store(ctx, kv, name, newOperator(adminOperator, adminKey), false); err != nil {
			return fmt.Errorf("operator %s: %w", adminOperator, err)
		}
	case adminKey == "" && o.empty():
		key := newKey()
		err := o.store(ctx, kv, name, newOperator(adminOperator, key), true)
		if errors.Is(err, jetstream.ErrKeyExists) {
			break // another replica was faster, and reported its key
		} else if err != nil {
			return fmt.Errorf("operator %s: %w", adminOperator, err)
		}
		if onKey != nil {
			onKey(key)
		}
	}
	if serverKey != "" && serverKey != o.key() {
		if err := o.store(ctx, kv, message.ServerKeyKey, message.ServerKeyRecord{Key: serverKey}, false); err != nil {
			return fmt.Errorf("server key: %w", err)
		}
	} else if serverKey == "" && o.key() == "" {
		err := o.store(ctx, kv, message.ServerKeyKey, message.ServerKeyRecord{Key: newKey()}, true)
		if err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
			return fmt.Errorf("server key: %w", err)
		}
	}
	return nil
}

// store writes a record and waits until the view has it. With create, a
// record that exists is left alone and jetstream.ErrKeyExists returned.
func (o *operators) store(ctx context.Context, kv jetstream.KeyValue, key string, record any, create bool) error {
	value, err := json.Marshal(record)
	if err != nil {
		return err
	}
	write := kv.Put
	if create {
		write = func(ctx context.Context, key string, value []byte) (uint64, error) { return kv.Create(ctx, key, value) }
	}
	revision, err := write(ctx, key, value)
	if err != nil {
		return err
	}
	return o.view.Wait(ctx, revision)
}

func newOperator(identifier, key string) message.OperatorRecord {
	salt := make([]byte, 16)
	rand.Read(salt)
	return message.OperatorRecord{
		Identifier: identifier, Salt: hex.EncodeToString(salt), Hash: hex.EncodeToString(hashKey(salt, key)),
		Role: roleAdmin, Created: time.Now().UTC(),
	}
}

// newKey returns 64 random letters and digits.
func newKey() string {
	const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	key := make([]byte, 0, 64)
	random := make([]byte, 128)
	for {
		rand.Read(random)
		for _, b := range random {
			// Bytes from the last, incomplete run of the alphabet are left
			// out, so that every character is as likely as any other.
			if int(b) < 256-256%len(alphabet) {
				if key = append(key, alphabet[int(b)%len(alphabet)]); len(key) == cap(key) {
					return string(key)
				}
			}
		}
	}
}
