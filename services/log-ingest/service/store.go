package ingest

import "github.com/nightjar-edr/nightjar/pkg/store"

// openStore opens the service's store.
func openStore(cfg *Config) (*store.DB, error) {
	return store.Open(store.Options{Dir: cfg.DataDir, Sync: cfg.Sync, Large: true, Log: cfg.Log})
}
