package manifests

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// standalone is the program of the jobs that back up and restore.
const standalone = "standalone"

// backupPods are the pods of the jobs, by the user that each is to NATS.
func backupPods(t *testing.T) map[string]corev1.PodTemplateSpec {
	t.Helper()
	cron := find[*batchv1.CronJob](decode(t, overlay(t, "k8s/backup")))
	job := find[*batchv1.Job](decode(t, read(t, "k8s", "backup", "restore.yaml")))
	if len(cron) != 1 || len(job) != 1 {
		t.Fatalf("%d cron jobs, %d jobs", len(cron), len(job))
	}
	return map[string]corev1.PodTemplateSpec{access.Backup: cron[0].Spec.JobTemplate.Spec.Template, access.Restore: job[0].Spec.Template}
}

// The jobs have the key for what they do and no other, stand the restricted
// level of Pod Security, keep to one volume, and reach NATS and nobody else.
func TestBackupJobs(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	made := prepared(t)
	claims := find[*corev1.PersistentVolumeClaim](decode(t, overlay(t, "k8s/backup")))
	if len(claims) != 1 {
		t.Fatalf("%d claims", len(claims))
	}
	for user, p := range backupPods(t) {
		r := policy.AggregateCheckResults(evaluator.EvaluatePod(api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}, &p.ObjectMeta, &p.Spec))
		if !r.Allowed {
			t.Errorf("%s: %s %s", user, r.ForbiddenReason(), r.ForbiddenDetail())
		}
		c := p.Spec.Containers[0]
		if len(p.Spec.Containers) != 1 || c.Image != "nightjar/"+standalone+":dev" || p.Spec.RestartPolicy != corev1.RestartPolicyNever || c.Args[0] != user {
			t.Errorf("%s: %+v", user, p.Spec)
		}
		var seeds []string
		references(p.Spec, func(object, member string) {
			members, ok := made[object]
			if _, has := members[member]; !ok || member != "" && !has {
				t.Errorf("%s refers to %s in %s, which nothing makes", user, member, object)
			}
			if _, ok := members["seed.nk"]; ok {
				seeds = append(seeds, object)
			}
		})
		if !slices.Equal(seeds, []string{"Secret/nightjar-nats-" + user}) {
			t.Errorf("%s has the seeds %v", user, seeds)
		}
		if !slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
			return v.Name == "backups" && v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claims[0].Name
		}) {
			t.Errorf("%s has no volume of %s", user, claims[0].Name)
		}
		for name, list := range render(t) {
			n := network{t: t, policies: find[*networkingv1.NetworkPolicy](list)}
			here := peer{name: user, namespace: namespace("nightjar", nil), labels: p.Labels, ours: true}
			for _, to := range peers(list) {
				for _, port := range append([]int32{22}, to.ports...) {
					want := to.name == natsPod && port == 4222 || to.name == "dns" && port == 53
					if got := n.allowed(here, to, port); got != want {
						t.Errorf("%s: %s to %s on %d: %v", name, user, to.name, port, got)
					}
				}
			}
		}
	}
}

// backUpAndRestore runs the jobs as their manifests describe it: a backup of the
// house that runs, and its restore into another one's NATS.
func backUpAndRestore(t *testing.T, h *house, list []runtime.Object) {
	pods := backupPods(t)
	done := func(p *pod, what string) {
		select {
		case <-p.done:
		case <-time.After(deadline):
			t.Fatalf("%s has not ended", what)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, name := range stream.Record() {
			if p.cmd.ProcessState.ExitCode() != 0 || !strings.Contains(p.out.String(), name+" ") {
				t.Fatalf("%s of %s: %s\n%s", what, name, p.cmd.ProcessState, p.out.String())
			}
		}
	}
	cron := h.run(h.pod("backup"), standalone, pods[access.Backup].Spec)
	done(cron, "backup")
	files, err := os.ReadDir(filepath.Join(cron.dir, "backups"))
	if err != nil || len(files) != 1 || filepath.Ext(files[0].Name()) != ".tar" {
		t.Fatalf("backups: %v, %v", files, err)
	}

	fresh := newHouse(t, list)
	for _, s := range find[*appsv1.StatefulSet](list) {
		if s.Name == natsPod {
			fresh.start(s)
		}
	}
	eventually(t, "NATS is healthy", func() error { return get(http.DefaultClient, "http://"+fresh.addr["nats/monitor"]+"/healthz", "") })
	job, spec := fresh.pod("restore"), pods[access.Restore].Spec
	if err := os.MkdirAll(job.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(cron.dir, "backups"), filepath.Join(job.dir, "backups")); err != nil {
		t.Fatal(err)
	}
	for i, a := range spec.Containers[0].Args {
		spec.Containers[0].Args[i] = strings.Replace(a, "/FILE", "/"+files[0].Name(), 1)
	}
	done(fresh.run(job, standalone, spec), "restore")
}
