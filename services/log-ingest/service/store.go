package ingest

import (
	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/store"
)

// openStore opens the service's store.
func openStore(cfg *Config) (*badger.DB, error) {
	return store.Open(store.Options{Dir: cfg.DataDir, Sync: cfg.Sync, Large: true, Log: cfg.Log})
}
