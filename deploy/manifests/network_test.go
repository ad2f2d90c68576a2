package manifests

import (
	"maps"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
)

// peer is who talks or is talked to. Peers without a name in the namespace of
// Nightjar are governed by no policy here.
type peer struct {
	name              string
	namespace, labels map[string]string // both nil outside of the cluster
	ours              bool
	ports             []int32
}

func namespace(name string, labels map[string]string) map[string]string {
	m := map[string]string{"kubernetes.io/metadata.name": name}
	maps.Copy(m, labels)
	return m
}

// peers are the pods of a rendering and everybody else who may try.
func peers(list []runtime.Object) []peer {
	all := []peer{
		{name: "internet", ports: []int32{443, 6514}},
		{name: "dns", namespace: namespace("kube-system", nil), labels: map[string]string{"k8s-app": "kube-dns"}, ports: []int32{53}},
		{name: "other", namespace: namespace("other", nil), labels: map[string]string{"app.kubernetes.io/name": "nats", "nightjar/nats": "client"}, ports: []int32{443, 4222}},
		{name: "prometheus", namespace: namespace("monitoring", map[string]string{"nightjar/metrics": "allowed"})},
		{name: "siem", namespace: namespace("siem", map[string]string{"nightjar/siem": "allowed"})},
		{name: "collector", namespace: namespace("observability", map[string]string{"nightjar/traces": "allowed"}), ports: []int32{4317, 4318}},
		{name: "operator", namespace: namespace("tools", map[string]string{"nightjar/admin": "allowed"})},
	}
	for _, s := range find[*appsv1.StatefulSet](list) {
		p := peer{name: s.Name, namespace: namespace("nightjar", nil), labels: s.Spec.Template.Labels, ours: true}
		for _, port := range s.Spec.Template.Spec.Containers[0].Ports {
			p.ports = append(p.ports, port.ContainerPort)
		}
		all = append(all, p)
	}
	return all
}

// network decides as the policies of a rendering do.
type network struct {
	t        *testing.T
	policies []*networkingv1.NetworkPolicy
}

func (n network) allowed(from, to peer, port int32) bool {
	return n.side(from, to, port, networkingv1.PolicyTypeEgress) && n.side(to, from, port, networkingv1.PolicyTypeIngress)
}

// side tells whether the policies for a pod let it talk to, or be talked to by,
// another on a port.
func (n network) side(pod, other peer, port int32, direction networkingv1.PolicyType) bool {
	if !pod.ours {
		return true
	}
	isolated := false
	for _, p := range n.policies {
		if !selects(n.t, &p.Spec.PodSelector, pod.labels) || !slices.Contains(p.Spec.PolicyTypes, direction) {
			continue
		}
		isolated = true
		if direction == networkingv1.PolicyTypeEgress {
			for _, r := range p.Spec.Egress {
				if n.peers(r.To, other) && onPort(r.Ports, port) {
					return true
				}
			}
			continue
		}
		for _, r := range p.Spec.Ingress {
			if n.peers(r.From, other) && onPort(r.Ports, port) {
				return true
			}
		}
	}
	return !isolated
}

func (n network) peers(list []networkingv1.NetworkPolicyPeer, other peer) bool {
	if len(list) == 0 {
		return true
	}
	return slices.ContainsFunc(list, func(p networkingv1.NetworkPolicyPeer) bool {
		if p.IPBlock != nil {
			n.t.Fatal("an address block is not understood here")
		}
		if other.namespace == nil {
			return false
		}
		if p.NamespaceSelector == nil && !other.ours || p.NamespaceSelector != nil && !selects(n.t, p.NamespaceSelector, other.namespace) {
			return false
		}
		return p.PodSelector == nil || selects(n.t, p.PodSelector, other.labels)
	})
}

func onPort(list []networkingv1.NetworkPolicyPort, port int32) bool {
	return len(list) == 0 || slices.ContainsFunc(list, func(p networkingv1.NetworkPolicyPort) bool { return p.Port == nil || p.Port.IntVal == port })
}

// The network lets through the arrows of docs/architecture.md and nothing else.
func TestNetwork(t *testing.T) {
	type arrow struct {
		from, to string
		port     int32
	}
	for name, list := range render(t) {
		want := map[arrow]bool{
			{"internet", access.Gateway, 8000}: true,
			{"operator", access.Gateway, 8001}: true,
			{"siem", natsPod, 4222}:            true,
			{natsPod, "dns", 53}:               true,
		}
		everybody := peers(list)
		for _, p := range everybody {
			want[arrow{p.name, access.Gateway, 8000}] = !p.ours // agents come from anywhere
		}
		for _, s := range services(name) {
			want[arrow{s, natsPod, 4222}] = true
			want[arrow{s, "dns", 53}] = true
			want[arrow{s, "collector", 4318}] = true
			want[arrow{"prometheus", s, 8080}] = true
		}
		want[arrow{access.Canary, access.Gateway, 8000}] = true
		want[arrow{access.Canary, access.Gateway, 8001}] = true
		if slices.Contains(services(name), forwarder) {
			for _, port := range []int32{443, 6514} {
				want[arrow{forwarder, "internet", port}] = true
			}
			want[arrow{forwarder, "other", 443}] = true
		}
		n := network{t: t, policies: find[*networkingv1.NetworkPolicy](list)}
		for _, from := range everybody {
			for _, to := range everybody {
				if !from.ours && !to.ours {
					continue
				}
				if from.name == natsPod && to.name == natsPod {
					want[arrow{natsPod, natsPod, 6222}] = true
				}
				for _, port := range append([]int32{22}, to.ports...) {
					if got := n.allowed(from, to, port); got != want[arrow{from.name, to.name, port}] {
						t.Errorf("%s: %s to %s on %d: %v", name, from.name, to.name, port, got)
					}
				}
			}
		}
	}
}
