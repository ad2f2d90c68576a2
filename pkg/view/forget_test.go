package view_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// A view whose position is forgotten begins at the first message, another one
// does not, and the metrics of the one end.
func TestForget(t *testing.T) {
	db, err := store.Open(store.Options{Dir: filepath.Join(t.TempDir(), "store")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	reg := prometheus.NewRegistry()
	m := view.NewMetrics(reg, "test")
	open := func(name string) *view.View {
		t.Helper()
		v, err := view.New(view.Config{Name: name, Stream: "S", DB: db, Metrics: m})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	err = db.Update(func(txn *badger.Txn) error {
		for _, name := range []string{"one", "one-1"} {
			if err := txn.Set([]byte("\x00view/"+name), []byte(`{"stream":"S","created":"`+time.Now().Format(time.RFC3339)+`","seq":7}`)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if a, b := open("one").Position(), open("one-1").Position(); a != 7 || b != 7 {
		t.Fatalf("positions %d and %d", a, b)
	}
	if err := db.Update(func(txn *badger.Txn) error { return view.Forget(txn, "one") }); err != nil {
		t.Fatal(err)
	}
	if a, b := open("one").Position(), open("one-1").Position(); a != 0 || b != 7 {
		t.Errorf("positions %d and %d, want 0 and 7", a, b)
	}
	m.Forget("one")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, sample := range f.GetMetric() {
			if name := sample.GetLabel()[0].GetValue(); name != "one-1" {
				t.Errorf("%s of %s is left", f.GetName(), name)
			}
		}
	}
	if len(families) == 0 {
		t.Error("the other view has no metrics either")
	}
}
