package view

import "github.com/dgraph-io/badger/v4"

// positionKey returns the key of the position of the view with a name.
func positionKey(name string) []byte { return []byte("\x00view/" + name) }

// Forget removes the position of the view with a name in a transaction: the
// next view of that name begins at the first message. It must not run
// meanwhile. What it has folded is not touched.
func Forget(txn *badger.Txn, name string) error { return txn.Delete(positionKey(name)) }

// Forget ends the metrics of the view with a name.
func (m *Metrics) Forget(name string) {
	for _, g := range []interface{ DeleteLabelValues(...string) bool }{m.position, m.lag, m.gap, m.folded, m.missing} {
		g.DeleteLabelValues(name)
	}
	m.ages.set(name, nil)
}
