package canary

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/durable"
)

// identityFile is the file in the data folder that holds the identity.
const identityFile = "endpoint.json"

// identity is the endpoint that the canary is.
type identity struct {
	UUID string `json:"uuid"`
	Key  string `json:"key"`
}

func (e *identity) valid() error {
	if !subject.IsUUID(e.UUID) || e.Key == "" {
		return errors.New("want an endpoint's uuid and key")
	}
	return nil
}

// loadIdentity returns the identity in a folder, the zero one when there is
// none.
func loadIdentity(dir string) (identity, error) {
	var e identity
	name := filepath.Join(dir, identityFile)
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return e, nil
	} else if err != nil {
		return e, fmt.Errorf("endpoint of the canary: %w", err)
	}
	if err = json.Unmarshal(text, &e); err == nil {
		err = e.valid()
	}
	if err != nil {
		return identity{}, fmt.Errorf("endpoint of the canary: %s: %w; without the file a new endpoint is made", name, err)
	}
	return e, nil
}

// save keeps the identity in a folder, readable by the owner alone.
func (e identity) save(dir string) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, identityFile), append(text, '\n'), 0o600)
}

// enrol makes sure that the manager knows the canary's endpoint. It makes one
// when the canary has none, or when the one it had has been deleted.
func (s *Service) enrol(ctx context.Context) error {
	if s.me.UUID != "" {
		err := s.api.ask(ctx, http.MethodGet, "/endpoints/"+s.me.UUID, "", nil)
		if err == nil || !strings.HasSuffix(err.Error(), unknownEndpoint+s.me.UUID) {
			return err
		}
		s.cfg.Log.Warn("the canary's endpoint has been deleted; a new one is made", "endpoint", s.me.UUID)
	}
	// Once begun it is brought to its end, lest a stop leaves an endpoint behind
	// that nobody knows of.
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
	defer done()
	var made identity
	if err := s.api.ask(ctx, http.MethodPut, "/endpoints", "", &made); err != nil {
		return err
	}
	if err := made.valid(); err != nil {
		return failed(reasonWrong, "PUT /endpoints: %w", err)
	}
	if err := made.save(s.cfg.DataDir); err != nil {
		// Nobody would ever use it, and the next round makes another one.
		return errors.Join(failed(reasonLocal, "keep the endpoint's key: %w", err),
			s.api.ask(ctx, http.MethodDelete, "/endpoints/"+made.UUID, "", nil))
	}
	s.me = made
	s.cfg.Log.Info("endpoint made", "endpoint", made.UUID)
	return nil
}

// unknownEndpoint is how the admin API says that there is no endpoint.
const unknownEndpoint = "Unknown endpoint: "
