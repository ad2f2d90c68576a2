package gateway

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// Bounds of an operator that is taken over, in bytes.
const (
	maxIdentifier  = 256
	maxOperatorKey = 1024
)

// plainIdentifier is an identifier that can stand in a key of the bucket as
// it is.
var plainIdentifier = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// operatorKey returns the key of the bucket access for an operator. Different
// identifiers have different keys, whatever characters they are of.
func operatorKey(identifier string) string {
	if plainIdentifier.MatchString(identifier) {
		return message.OperatorKeyPrefix + identifier
	}
	return message.OperatorKeyPrefix + "=" + base64.RawURLEncoding.EncodeToString([]byte(identifier))
}

// checkOperators tells whether operators can be taken over together.
func checkOperators(list []Operator) error {
	keys := make(map[string]string, len(list))
	for i, op := range list {
		switch known, again := keys[op.Identifier]; {
		case op.Identifier == "" || len(op.Identifier) > maxIdentifier:
			return fmt.Errorf("operator %d of %d: the identifier must have 1 to %d bytes", i+1, len(list), maxIdentifier)
		case op.Key == "" || len(op.Key) > maxOperatorKey:
			return fmt.Errorf("operator %q: the key must have 1 to %d bytes", op.Identifier, maxOperatorKey)
		case again && known != op.Key:
			return fmt.Errorf("operator %q has two different keys", op.Identifier)
		}
		keys[op.Identifier] = op.Key
	}
	return nil
}

// takeOver adds the operators that the bucket has never known. One that was
// deleted stays so: its key still holds the mark of the deletion. One that
// exists keeps the key it has here. The view must have caught up.
func (o *operators) takeOver(ctx context.Context, kv jetstream.KeyValue, list []Operator) error {
	for _, op := range list {
		key := operatorKey(op.Identifier)
		if known, ok := o.get(key); ok {
			if !known.accepts(op.Key) {
				o.log.Warn("operator to import exists with another key, which stays", "operator", op.Identifier)
			}
			continue
		}
		value, err := json.Marshal(newOperator(op.Identifier, op.Key))
		if err != nil {
			return fmt.Errorf("operator %s: %w", op.Identifier, err)
		}
		// Create would also write over the mark of a deletion.
		revision, err := kv.Update(ctx, key, value, 0)
		if hasPast(err) {
			continue // deleted, or another replica was faster
		}
		if err != nil {
			return fmt.Errorf("operator %s: %w", op.Identifier, err)
		}
		if err := o.view.Wait(ctx, revision); err != nil {
			return fmt.Errorf("operator %s: %w", op.Identifier, err)
		}
		o.log.Info("operator imported", "operator", op.Identifier)
	}
	return nil
}

// hasPast tells whether a write of a key that must be new was refused because
// the key has been written before.
func hasPast(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) &&
		(api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}
