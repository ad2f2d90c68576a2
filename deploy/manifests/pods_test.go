package manifests

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// natsPod is the name of the StatefulSet of NATS.
const natsPod = "nats"

// eachPod calls f for each StatefulSet of each rendering.
func eachPod(t *testing.T, f func(t *testing.T, s *appsv1.StatefulSet, c corev1.Container)) {
	t.Helper()
	for name, list := range render(t) {
		sets := find[*appsv1.StatefulSet](list)
		if len(sets) != len(services(name))+1 {
			t.Errorf("%s: %d stateful sets", name, len(sets))
		}
		for _, s := range sets {
			if s.Name != natsPod && !slices.Contains(services(name), s.Name) {
				t.Errorf("%s: %s is no service", name, s.Name)
			}
			if n := len(s.Spec.Template.Spec.Containers); n != 1 {
				t.Fatalf("%s: %s has %d containers", name, s.Name, n)
			}
			t.Run(name+"/"+s.Name, func(t *testing.T) { f(t, s, s.Spec.Template.Spec.Containers[0]) })
		}
	}
}

// Every pod stands the restricted level of Pod Security, which the namespace
// enforces.
func TestPodSecurity(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	eachPod(t, func(t *testing.T, s *appsv1.StatefulSet, c corev1.Container) {
		r := policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &s.Spec.Template.ObjectMeta, &s.Spec.Template.Spec))
		if !r.Allowed {
			t.Errorf("%s: %s", r.ForbiddenReason(), r.ForbiddenDetail())
		}
		if sc := c.SecurityContext; sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem {
			t.Error("the root is writable")
		}
		if a := s.Spec.Template.Spec.AutomountServiceAccountToken; a == nil || *a {
			t.Error("a token for the API server is mounted")
		}
	})
	for _, name := range []string{"dev", "production", "forwarder"} {
		ns := find[*corev1.Namespace](render(t)[name])
		if len(ns) != 1 || ns[0].Labels["pod-security.kubernetes.io/enforce"] != string(api.LevelRestricted) {
			t.Errorf("%s: namespace %+v", name, ns)
		}
	}
}

func env(c corev1.Container) map[string]string {
	m := map[string]string{}
	for _, e := range c.Env {
		m[e.Name] = e.Value
	}
	return m
}

// A pod asks for what it needs, and the collector of garbage knows the limit.
func TestResources(t *testing.T) {
	eachPod(t, func(t *testing.T, _ *appsv1.StatefulSet, c corev1.Container) {
		for _, r := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := c.Resources.Requests[r], c.Resources.Limits[r]
			if request.IsZero() || request.Cmp(limit) > 0 {
				t.Errorf("%s: %s requested, at most %s", r, &request, &limit)
			}
		}
		var goal config.Bytes
		if err := goal.Set(env(c)["GOMEMLIMIT"]); err != nil {
			t.Fatalf("GOMEMLIMIT: %v", err)
		}
		limit := float64(c.Resources.Limits.Memory().Value())
		if share := float64(goal) / limit; share < 0.75 || share > 0.9 {
			t.Errorf("GOMEMLIMIT is %.0f %% of the limit", 100*share)
		}
	})
}

// The probes ask what the programs answer, on a port that they listen on, and a
// pod is given the time that a clean stop takes.
func TestProbes(t *testing.T) {
	eachPod(t, func(t *testing.T, s *appsv1.StatefulSet, c corev1.Container) {
		want := []string{"/healthz", "/healthz", "/readyz"}
		if s.Name == natsPod {
			want = []string{"/healthz", "/healthz?js-enabled-only=true", "/healthz?js-server-only=true"}
		}
		for i, p := range []*corev1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
			if p == nil || p.HTTPGet == nil || p.HTTPGet.Path != want[i] {
				t.Errorf("probe %+v, want %s", p, want[i])
				continue
			}
			if !slices.ContainsFunc(c.Ports, func(port corev1.ContainerPort) bool { return port.Name == p.HTTPGet.Port.StrVal }) {
				t.Errorf("%s: no port %s", want[i], p.HTTPGet.Port.StrVal)
			}
		}
		need := lifecycle.StopTimeout
		if c.Lifecycle != nil {
			need += time.Duration(c.Lifecycle.PreStop.Sleep.Seconds) * time.Second
		}
		if grace := time.Duration(*s.Spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second; grace < need+5*time.Second {
			t.Errorf("%s to stop, a clean stop takes up to %s", grace, need)
		}
	})
}

// ports are the container's ports by name.
func ports(c corev1.Container) map[string]int32 {
	m := map[string]int32{}
	for _, p := range c.Ports {
		m[p.Name] = p.ContainerPort
	}
	return m
}

// What selects pods selects those that are there: Services with their ports,
// disruption budgets, spreading, autoscalers, monitors.
func TestSelectors(t *testing.T) {
	for name, list := range render(t) {
		sets := map[string]*appsv1.StatefulSet{}
		for _, s := range find[*appsv1.StatefulSet](list) {
			sets[s.Name] = s
			if !selects(t, s.Spec.Selector, s.Spec.Template.Labels) {
				t.Errorf("%s: %s does not select its own pods", name, s.Name)
			}
			spread := s.Spec.Template.Spec.TopologySpreadConstraints
			if alone := s.Spec.Replicas != nil && *s.Spec.Replicas == 1; len(spread) == 0 && !alone {
				t.Errorf("%s: %s is not spread", name, s.Name)
			}
			for _, c := range spread {
				if !selects(t, c.LabelSelector, s.Spec.Template.Labels) {
					t.Errorf("%s: %s spreads other pods", name, s.Name)
				}
			}
			if !slices.ContainsFunc(find[*corev1.Service](list), func(svc *corev1.Service) bool {
				return svc.Name == s.Spec.ServiceName && svc.Spec.ClusterIP == corev1.ClusterIPNone
			}) {
				t.Errorf("%s: %s has no headless Service %s", name, s.Name, s.Spec.ServiceName)
			}
		}
		budgets := map[string]int{}
		for _, b := range find[*policyv1.PodDisruptionBudget](list) {
			for set, s := range sets {
				if selects(t, b.Spec.Selector, s.Spec.Template.Labels) {
					budgets[set]++
				}
			}
		}
		for set := range sets {
			if budgets[set] != 1 {
				t.Errorf("%s: %d disruption budgets for %s", name, budgets[set], set)
			}
		}
		doors := map[string]*corev1.Service{}
		for _, svc := range find[*corev1.Service](list) {
			doors[svc.Name] = svc
			found := 0
			for _, s := range sets {
				if !labels.SelectorFromSet(svc.Spec.Selector).Matches(labels.Set(s.Spec.Template.Labels)) {
					continue
				}
				found++
				have := ports(s.Spec.Template.Spec.Containers[0])
				for _, p := range svc.Spec.Ports {
					if have[p.TargetPort.StrVal] == 0 || have[p.TargetPort.StrVal] != p.Port {
						t.Errorf("%s: Service %s has port %d to %s, the pod %v", name, svc.Name, p.Port, p.TargetPort.StrVal, have)
					}
				}
			}
			if found != 1 {
				t.Errorf("%s: Service %s selects the pods of %d stateful sets", name, svc.Name, found)
			}
		}
		for _, door := range []string{"nightjar-admin", "nightjar-agent"} {
			if doors[door] == nil || doors[door].Spec.ClusterIP == corev1.ClusterIPNone {
				t.Errorf("%s: no Service %s", name, door)
			}
		}
		var scaled []string
		for _, h := range find[*autoscalingv2.HorizontalPodAutoscaler](list) {
			s := sets[h.Spec.ScaleTargetRef.Name]
			if s == nil || h.Spec.ScaleTargetRef.Kind != "StatefulSet" || s.Spec.Replicas != nil || *h.Spec.MinReplicas > h.Spec.MaxReplicas {
				t.Errorf("%s: autoscaler %+v", name, h.Spec)
			}
			scaled = append(scaled, h.Spec.ScaleTargetRef.Name)
		}
		if slices.Sort(scaled); !slices.Equal(scaled, []string{access.Gateway, access.Rules}) {
			t.Errorf("%s: autoscalers for %v", name, scaled)
		}
		for _, m := range find[*monitoringv1.ServiceMonitor](list) {
			monitored := map[string]bool{}
			for _, svc := range doors {
				if selects(t, &m.Spec.Selector, svc.Labels) && svc.Spec.Ports[0].Name == m.Spec.Endpoints[0].Port && m.Spec.Endpoints[0].Path == "/metrics" {
					monitored[svc.Name] = true
				}
			}
			if got := slices.Sorted(maps.Keys(monitored)); !slices.Equal(got, slices.Sorted(slices.Values(services(name)))) {
				t.Errorf("%s: monitored %v", name, got)
			}
		}
		if got := len(find[*monitoringv1.ServiceMonitor](list)); (got == 1) != strings.HasSuffix(name, "production") {
			t.Errorf("%s: %d monitors", name, got)
		}
	}
}

func selects(t *testing.T, s *metav1.LabelSelector, l map[string]string) bool {
	t.Helper()
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return selector.Matches(labels.Set(l))
}

// Every service keeps a store on a volume of its own, and the limits of NATS
// stay below what its volume has, those of streams below that of NATS.
func TestStores(t *testing.T) {
	for name, list := range render(t) {
		limits := map[string]config.Bytes{}
		for _, s := range find[*appsv1.StatefulSet](list) {
			c := s.Spec.Template.Spec.Containers[0]
			if len(s.Spec.VolumeClaimTemplates) != 1 || !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
				return m.MountPath == "/data" && m.Name == s.Spec.VolumeClaimTemplates[0].Name
			}) {
				t.Errorf("%s: %s keeps its store nowhere", name, s.Name)
			}
			for key, value := range env(c) {
				if key == "NATS_MAX_STORE" || strings.HasPrefix(key, "NIGHTJAR_MAX_") {
					var b config.Bytes
					if err := b.Set(value); err != nil {
						t.Fatal(err)
					}
					limits[key] = b
				}
			}
			if s.Name == natsPod {
				size := s.Spec.VolumeClaimTemplates[0].Spec.Resources.Requests[corev1.ResourceStorage]
				if limit := limits["NATS_MAX_STORE"]; float64(limit) > 0.9*float64(size.Value()) {
					t.Errorf("%s: NATS may store %d on a volume of %s", name, limit, &size)
				}
			}
		}
		streams, all := limits["NIGHTJAR_MAX_EVENTS"]+limits["NIGHTJAR_MAX_ALERT_BYTES"], limits["NATS_MAX_STORE"]
		if limits["NIGHTJAR_MAX_EVENTS"] == 0 || limits["NIGHTJAR_MAX_ALERT_BYTES"] == 0 || float64(streams) > 0.9*float64(all) {
			t.Errorf("%s: limits %v", name, limits)
		}
	}
}

// As many copies as servers in production, and shards that divide replicas.
func TestCopies(t *testing.T) {
	eachPod(t, func(t *testing.T, s *appsv1.StatefulSet, c corev1.Container) {
		production := strings.Contains(t.Name(), "production")
		switch e := env(c); s.Name {
		case natsPod:
			if production != (*s.Spec.Replicas == 3) {
				t.Errorf("%d servers", *s.Spec.Replicas)
			}
			routes := 0
			for i := range *s.Spec.Replicas {
				routes += strings.Count(e["NATS_ROUTES"], fmt.Sprintf("nats-route://%s-%d.%s:%d", s.Name, i, s.Spec.ServiceName, ports(c)["cluster"]))
			}
			if cluster := slices.Contains(c.Args, "/etc/nats/nats-cluster.conf"); cluster != production || production && routes != 3 {
				t.Errorf("cluster %v with %d routes in %s", cluster, routes, e["NATS_ROUTES"])
			}
		default:
			if want := map[bool]string{true: "3"}[production]; e["NIGHTJAR_REPLICAS"] != want {
				t.Errorf("%q copies", e["NIGHTJAR_REPLICAS"])
			}
			if s.Name != access.Ingest {
				return
			}
			shards, err := strconv.Atoi(e["NIGHTJAR_SHARDS"])
			if err != nil || *s.Spec.Replicas%int32(shards) != 0 || production && *s.Spec.Replicas/int32(shards) < 2 {
				t.Errorf("%s shards, %d replicas, %v", e["NIGHTJAR_SHARDS"], *s.Spec.Replicas, err)
			}
		}
	})
}
