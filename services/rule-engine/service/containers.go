package ruleengine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// maxContainer bounds a container file in bytes.
const maxContainer = 256 << 20

// readContainerFolder reads the container files below a folder. A container's
// name is that of its file up to the first dot.
func readContainerFolder(dir string) (map[string][]string, error) {
	fail := func(err error) (map[string][]string, error) {
		return nil, fmt.Errorf("%w: containers-dir %s: %w", lifecycle.ErrUsage, dir, err)
	}
	files, err := listFiles(dir)
	if err != nil {
		return fail(err)
	}
	containers := make(map[string][]string, len(files))
	fileOf := make(map[string]string, len(files))
	for _, path := range files {
		name, _, _ := strings.Cut(filepath.Base(path), ".")
		if other, dup := fileOf[name]; dup {
			return fail(fmt.Errorf("files %s and %s are both of container %s", other, relative(dir, path), name))
		}
		data, err := readLimited(path, maxContainer)
		if err != nil {
			return fail(err)
		}
		fileOf[name], containers[name] = relative(dir, path), message.DecodeContainer(data)
	}
	return containers, nil
}

// importContainers stores the containers of the folders that differ from those
// stored.
func (s *Service) importContainers(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(s.containerFiles)) {
		content := message.EncodeContainer(s.containerFiles[name])
		info, err := s.objects.GetInfo(ctx, name)
		if err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
			return fmt.Errorf("container %s: %w", name, err)
		}
		sum := sha256.Sum256(content)
		if err == nil && info.Digest == "SHA-256="+base64.URLEncoding.EncodeToString(sum[:]) {
			continue
		}
		if _, err := s.objects.Put(ctx, jetstream.ObjectMeta{Name: name}, bytes.NewReader(content)); err != nil {
			return fmt.Errorf("container %s: %w", name, err)
		}
		s.cfg.Log.Info("container imported", "container", name, "lines", len(s.containerFiles[name]))
	}
	return nil
}

// awaitContainers waits until all containers that are stored are known.
func (s *Service) awaitContainers(ctx context.Context) error {
	for !s.containers.Load() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("read containers: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// followContainers keeps the containers that rules use as those stored, until
// ctx ends. A container that cannot be read is tried again.
func (s *Service) followContainers(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := s.watchContainers(ctx); err != nil && ctx.Err() == nil {
			s.metrics.errors.WithLabelValues("containers").Inc()
			s.cfg.Log.Warn("containers cannot be read, trying again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

func (s *Service) watchContainers(ctx context.Context) error {
	watcher, err := s.objects.Watch(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = watcher.Stop() }() // fails only when it has ended already
	containers := map[string][]string{}
	complete := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case info, ok := <-watcher.Updates():
			switch {
			case !ok:
				return errors.New("the watch has ended")
			case info == nil:
				complete = true
			case info.Deleted:
				delete(containers, info.Name)
			default:
				content, err := s.objects.GetBytes(ctx, info.Name)
				if errors.Is(err, jetstream.ErrObjectNotFound) {
					delete(containers, info.Name)
				} else if err != nil {
					return fmt.Errorf("container %s: %w", info.Name, err)
				} else {
					containers[info.Name] = message.DecodeContainer(content)
				}
			}
		}
		if complete {
			_ = s.rules.setContainers(maps.Clone(containers)) // logged, and told by Ready
			s.containers.Store(true)
		}
	}
}
