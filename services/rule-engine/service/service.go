package ruleengine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/objects"
	"github.com/nightjar-edr/nightjar/pkg/removal"
	"github.com/nightjar-edr/nightjar/pkg/retention"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/streamwatch"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// Bounds of requests.
const (
	parallelRequests = 16
	requestTimeout   = 30 * time.Second
	// rulesHistory is how many past rule sets the bucket keeps.
	rulesHistory = 16
	// garbageEvery is how often the store gives back the space of replaced
	// rule sets.
	garbageEvery = 10 * time.Minute
	// raisedPace is the least time between two writes of raised alerts to the
	// store: each is a sync, and until then those of this process are known.
	raisedPace = 250 * time.Millisecond
)

// Service is the rule-engine. Make it with New and run it once with Run.
type Service struct {
	cfg        Config
	db         *store.DB
	metrics    *metrics
	rules      *ruleSet
	rulesFold  *view.View
	raisedFold *view.View
	// raisedBelow is the sequence below which retention has removed alerts.
	// The Fold or Exclusive of raisedFold guards it.
	raisedBelow uint64
	removals    *removal.Removals
	published   published
	retention   *retention.Keeper
	clock       *retention.Clock
	alerts      *bus.Publisher

	// imported is what the folders of rules hold, nil without one.
	imported *ruleFolder
	// containerFiles are the containers of the folders, nil without one.
	containerFiles []containerFile

	kv         jetstream.KeyValue
	objects    *objects.Store // containers
	containers *containers
	// changing serialises the changes of rules that this replica makes,
	// containerTurn holds a value while it changes a container.
	changing      sync.Mutex
	containerTurn chan struct{}

	serving atomic.Bool
	ending  <-chan struct{} // closed when the service is to stop
	walk    *walk
	watch   *streamwatch.Watch
	siems   *siemWatch
}

// New opens the service's store and reads the folders of rules and containers.
// Settings or folders that cannot be used are an error that wraps
// lifecycle.ErrUsage. Run closes what New opened.
func New(cfg Config) (*Service, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, containers: newContainers(), containerTurn: make(chan struct{}, 1)}
	err := s.readFolders()
	if err != nil {
		return nil, err
	}
	if s.rules, err = newRuleSet(cfg.Log); err != nil {
		return nil, fmt.Errorf("rule-engine: %w", err)
	}
	if s.db, err = store.Open(store.Options{Dir: cfg.DataDir, Sync: cfg.Sync, Log: cfg.Log}); err != nil {
		return nil, fmt.Errorf("rule-engine: %w", err)
	}
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("rule-engine: %w", err), s.db.Close())
	}
	return s, nil
}

// open makes what stands on the store.
func (s *Service) open() (err error) {
	s.metrics = newMetrics(s.cfg.Metrics, s)
	if s.alerts, err = bus.NewPublisher(s.cfg.Bus, publishTimeout, gatherAlerts); err != nil {
		return err
	}
	if err := s.loadRules(); err != nil {
		return fmt.Errorf("load rules: %w", err)
	}
	if s.rulesFold, err = s.rulesView(s.metrics.views); err != nil {
		return err
	}
	if s.raisedFold, err = s.raisedView(s.metrics.views); err != nil {
		return err
	}
	if s.removals, err = s.newRemovals(s.metrics.views); err != nil {
		return err
	}
	s.published.seq = s.raisedFold.Position()
	if s.retention, err = s.keeper(); err != nil {
		return err
	}
	s.walk = newWalk(s)
	bucket, _ := stream.KVStream(stream.Rules)
	objects, _ := stream.ObjectStream(stream.Containers)
	s.watch = streamwatch.New(s.cfg.Metrics, subsystem, s.cfg.Bus.JS, s.cfg.Log, stream.Alerts, bucket, objects)
	s.siems = newSIEMWatch(s.cfg.Metrics, s.cfg.Bus.JS, s.cfg.Log, s.cfg.SIEMs)
	return nil
}

// Ready returns nil when all rules are in force, all alerts raised before are
// known, and the events that were waiting at the start are worked on.
func (s *Service) Ready() error {
	if err := s.cfg.Bus.Ready(); err != nil {
		return err
	}
	for name, v := range map[string]*view.View{"rules": s.rulesFold, "raised alerts": s.raisedFold, "removals": s.removals.View()} {
		if err := v.Err(); err != nil {
			return err
		}
		if !v.Ready() {
			return fmt.Errorf("the view of %s is catching up", name)
		}
	}
	if err := s.rules.Err(); err != nil {
		return err
	}
	if !s.containers.Ready() {
		return errors.New("containers are not known yet")
	}
	if !s.serving.Load() {
		return errors.New("requests are not answered yet")
	}
	return s.walk.Ready()
}

// Run works until ctx ends, then finishes the batches in hand, closes the store
// and returns nil.
func (s *Service) Run(ctx context.Context) (err error) {
	defer func() {
		if cerr := s.db.Close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("rule-engine: close store: %w", cerr))
		}
	}()
	// Work in hand goes on after ctx has ended, until it is finished.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.ending = ctx.Done()
	var background sync.WaitGroup
	defer background.Wait()
	defer stop()

	failed := make(chan error, 4)
	start := func(f func(context.Context) error) {
		background.Go(func() {
			if err := f(work); err != nil {
				failed <- err
			}
		})
	}
	if err := s.ensure(ctx); err != nil {
		return unlessStopped(ctx, err)
	}
	start(s.rulesFold.Run)
	start(s.raisedFold.Run)
	start(s.removals.Run)
	start(s.followContainers)
	background.Go(func() { store.CollectGarbage(work, s.db, garbageEvery) })
	background.Go(func() { s.tidyContainers(work) })
	background.Go(func() { s.watch.Run(work) })
	background.Go(func() { s.siems.run(work) })
	background.Go(func() { s.retention.Run(work) })
	background.Go(func() { retention.Follow(work, s.cfg.Bus.JS, stream.Alerts, s.cfg.Log, s.dropRaised) })
	if err := s.prepare(ctx, failed); errors.Is(err, view.ErrGap) {
		<-ctx.Done() // stays up to say why it is not ready
		return nil
	} else if err != nil {
		return unlessStopped(ctx, err)
	}
	svc, err := s.serve(work)
	if err != nil {
		return unlessStopped(ctx, err)
	}
	s.serving.Store(true)
	walked := make(chan struct{})
	go func() { defer close(walked); s.walk.run(ctx, work) }()
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("rule-engine: %w", err)
		s.walk.abort()
	}
	s.serving.Store(false)
	svc.Stop()
	<-walked
	return err
}

// unlessStopped hides an error that is only the end of ctx.
func unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("rule-engine: %w", err)
}

// ensure creates what the service owns in JetStream.
func (s *Service) ensure(ctx context.Context) (err error) {
	js := s.cfg.Bus.JS
	if s.kv, err = stream.EnsureKV(ctx, js, stream.Rules, rulesHistory, s.cfg.Replicas); err != nil {
		return err
	}
	if _, err = stream.EnsureObjects(ctx, js, stream.Containers, stream.Limits{Replicas: s.cfg.Replicas}); err != nil {
		return err
	}
	if s.objects, err = objects.Open(ctx, js, stream.Containers); err != nil {
		return err
	}
	if err := stream.Ensure(ctx, js, stream.Alerts, s.alertLimits()); err != nil {
		return err
	}
	for _, name := range s.cfg.SIEMs {
		if err := s.ensureSIEM(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// siemPending is how many alerts a SIEM may hold without acknowledging them.
const siemPending = 1000

// ensureSIEM creates the durable consumer of a SIEM. One that exists is left as
// it is, wherever it stands in the stream.
func (s *Service) ensureSIEM(ctx context.Context, name string) error {
	js := s.cfg.Bus.JS
	_, err := js.Consumer(ctx, stream.Alerts, name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		_, err = js.CreateConsumer(ctx, stream.Alerts, jetstream.ConsumerConfig{
			Durable: name, Description: "Alerts for the SIEM " + name, FilterSubject: subject.AllAlerts,
			AckPolicy: jetstream.AckExplicitPolicy, DeliverPolicy: jetstream.DeliverAllPolicy, MaxAckPending: siemPending,
		})
	}
	if err != nil && !errors.Is(err, jetstream.ErrConsumerExists) {
		return fmt.Errorf("consumer of SIEM %s: %w", name, err)
	}
	return nil
}

// prepare waits until the views have caught up and imports the folders.
func (s *Service) prepare(ctx context.Context, failed chan error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case err := <-failed:
			failed <- err
			cancel(err)
		case <-done:
		}
	}()
	err := s.catchUp(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

func (s *Service) catchUp(ctx context.Context) error {
	if err := s.importContainers(ctx); err != nil {
		return err
	}
	if err := s.containers.await(ctx, "", 0); err != nil {
		return err
	}
	if err := s.rulesFold.WaitReady(ctx); err != nil {
		return err
	}
	for _, v := range []*view.View{s.raisedFold, s.removals.View()} {
		if err := v.WaitReady(ctx); err != nil {
			return err
		}
	}
	return s.importRules(ctx)
}

// serve announces the service and answers requests.
func (s *Service) serve(ctx context.Context) (*bus.Service, error) {
	svc, err := bus.Serve(ctx, s.cfg.Bus, access.Rules, "1.0.0", parallelRequests, requestTimeout, s.metrics.observe)
	if err != nil {
		return nil, err
	}
	for subj, h := range s.handlers() {
		if err := svc.Handle(subj, h); err != nil {
			svc.Stop()
			return nil, err
		}
	}
	for subj, h := range s.containerHandlers() {
		if err := svc.HandleWithin(subj, containerTimeout, h); err != nil {
			svc.Stop()
			return nil, err
		}
	}
	return svc, nil
}
