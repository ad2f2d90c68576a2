package manifests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
)

func compose(t *testing.T) *types.Project {
	t.Helper()
	o, err := cli.NewProjectOptions([]string{filepath.Join(root, "docker", "compose.yaml")}, cli.WithWorkingDirectory(filepath.Join(root, "docker")), cli.WithProfiles([]string{"*"}))
	if err != nil {
		t.Fatal(err)
	}
	p, err := o.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The compose project runs every service with the files of deploy/config and
// settings that the program has, read-only and without rights.
func TestCompose(t *testing.T) {
	p := compose(t)
	for _, name := range services("forwarder") {
		s, ok := p.Services[name]
		if !ok {
			t.Errorf("no service %s", name)
			continue
		}
		mounts := map[string]string{}
		for _, v := range s.Volumes {
			mounts[v.Target] = v.Source
			if v.Volume != nil && v.Volume.Subpath != "" {
				mounts[v.Target] += "/" + v.Volume.Subpath
			}
		}
		file := mounts["/etc/nightjar/config.yaml"]
		if filepath.Base(file) != name+".yaml" || mounts["/etc/nightjar/nats/seed.nk"] != "keys/"+strings.TrimSuffix(name, "-forwarder")+".nk" || mounts["/data"] != name {
			t.Errorf("%s: mounts %v", name, mounts)
		}
		if s.Build == nil || s.Build.Args["PROGRAM"] == nil || *s.Build.Args["PROGRAM"] != "services/"+name {
			t.Errorf("%s: build %+v", name, s.Build)
		}
		vars := map[string]string{}
		for key, value := range s.Environment {
			if value != nil {
				vars[key] = *value
			}
		}
		understood(t, name, read(t, "deploy", "config", name+".yaml"), vars)
	}
	for _, user := range []string{access.Backup, access.Restore} {
		s := p.Services[user]
		keys := 0
		for _, v := range s.Volumes {
			if v.Source == "keys" && v.Target == "/etc/nightjar/nats/seed.nk" && v.Volume.Subpath == user+".nk" {
				keys++
			}
		}
		if len(s.Command) == 0 || s.Command[0] != user || keys != 1 || s.Build == nil || *s.Build.Args["PROGRAM"] != "services/"+standalone || s.Restart != "no" {
			t.Errorf("%s: %+v", user, s)
		}
		// The flags are known: without keys the command fails, and not for its usage.
		cmd := exec.Command(program(t, standalone), s.Command...)
		if out, _ := cmd.CombinedOutput(); strings.Contains(string(out), "not defined") {
			t.Errorf("%s %v: %s", user, s.Command, out)
		}
	}
	for name, s := range p.Services {
		if !s.ReadOnly || !slices.Contains(s.CapDrop, "ALL") || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s has more rights than it needs", name)
		}
		if limit := s.Environment["GOMEMLIMIT"]; limit != nil {
			var b config.Bytes
			if err := b.Set(*limit); err != nil || float64(b) > 0.9*float64(s.MemLimit) || float64(b) < 0.75*float64(s.MemLimit) {
				t.Errorf("%s: GOMEMLIMIT %s of %d", name, *limit, s.MemLimit)
			}
		}
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s: port %s is open to everybody unless asked for", name, port.Published)
			}
		}
	}
}

// What is mounted is there: files of the repository, and files of the volume
// keys that the service setup makes.
func TestComposeMounts(t *testing.T) {
	p := compose(t)
	keys := filepath.Join(t.TempDir(), "keys")
	args := slices.Clone([]string(p.Services["setup"].Command))
	for i, a := range args {
		args[i] = strings.Replace(a, "/keys", keys, 1)
	}
	if out, err := exec.Command(program(t, "nats"), args...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	for name, s := range p.Services {
		for _, v := range s.Volumes {
			file := v.Source
			if v.Type == types.VolumeTypeVolume {
				if file = filepath.Join(keys, ""); v.Volume != nil {
					file = filepath.Join(keys, v.Volume.Subpath)
				}
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s mounts %s: %v", name, v.Target, err)
			}
		}
	}
}

// Images have the versions that the code is built and tested with.
func TestVersions(t *testing.T) {
	server := regexp.MustCompile(`github.com/nats-io/nats-server/v2 v(\S+)`).FindStringSubmatch(read(t, "services", "standalone", "go.mod"))[1]
	if got := compose(t).Services["nats"].Image; got != "nats:"+server+"-alpine" {
		t.Errorf("compose runs %s, the code is tested with %s", got, server)
	}
	for name, list := range render(t) {
		for _, s := range find[*appsv1.StatefulSet](list) {
			want := "nats:" + server
			if s.Name != natsPod {
				want = "nightjar/" + s.Name + ":dev"
			}
			if got := s.Spec.Template.Spec.Containers[0].Image; got != want {
				t.Errorf("%s: %s runs %s, want %s", name, s.Name, got, want)
			}
		}
	}
	dockerfile := read(t, "docker", "Dockerfile")
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "go.work"))[1]
	for _, want := range []string{"ARG GO_VERSION=" + version + "\n", "\nFROM scratch\n", "\nUSER 65532:65532\n", `CMD ["/nightjar", "health"]`, "CGO_ENABLED=0", "GOTOOLCHAIN=local"} {
		if !strings.Contains(dockerfile, want) {
			t.Errorf("docker/Dockerfile has no %q", want)
		}
	}
}

// The ports in the configuration files are those of pods and containers.
func TestPorts(t *testing.T) {
	flags := map[string]string{"ops": "ops-addr", "admin": "admin-addr", "agent": "agent-addr"}
	for name, list := range render(t) {
		for _, s := range find[*appsv1.StatefulSet](list) {
			for port, number := range ports(s.Spec.Template.Spec.Containers[0]) {
				if flag := flags[port]; flag != "" {
					text := configOf(t, list, s.Name)
					if !regexp.MustCompile(`(?m)^` + flag + `: ":` + strconv.Itoa(int(number)) + `"$`).MatchString(text) {
						t.Errorf("%s: %s has port %s %d, and %s", name, s.Name, port, number, text)
					}
				}
			}
		}
	}
	for _, port := range compose(t).Services[access.Gateway].Ports {
		if !strings.Contains(read(t, "deploy", "config", access.Gateway+".yaml"), `-addr: ":`+strconv.Itoa(int(port.Target))+`"`) {
			t.Errorf("compose publishes %d", port.Target)
		}
	}
}

// Artifacts are kept as long as the alerts that name them.
func TestRetentionsAgree(t *testing.T) {
	flag := func(service, name string) string {
		m := regexp.MustCompile(`(?m)^` + name + `: (\S+)$`).FindStringSubmatch(read(t, "deploy", "config", service+".yaml"))
		if m == nil {
			t.Fatalf("%s has no %s", service, name)
		}
		return m[1]
	}
	if a, b := flag(access.Rules, "retention-alerts"), flag(access.Ingest, "retention-alerts"); a != b {
		t.Errorf("alerts: %s and %s", a, b)
	}
}

// Prometheus asks every service of the compose project where it answers.
func TestScrapeTargets(t *testing.T) {
	var c struct {
		ScrapeConfigs []struct {
			JobName       string `json:"job_name"`
			StaticConfigs []struct {
				Targets []string          `json:"targets"`
				Labels  map[string]string `json:"labels"`
			} `json:"static_configs"`
			DNSConfigs []struct {
				Names []string `json:"names"`
				Port  int      `json:"port"`
			} `json:"dns_sd_configs"`
		} `json:"scrape_configs"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "deploy", "monitoring", "prometheus", "prometheus.yml")), &c); err != nil {
		t.Fatal(err)
	}
	asked := map[string]string{}
	for _, job := range c.ScrapeConfigs {
		for _, s := range job.StaticConfigs {
			for _, target := range s.Targets {
				asked[target] = s.Labels["job"]
			}
		}
		// Of services that are not always there.
		for _, s := range job.DNSConfigs {
			for _, name := range s.Names {
				asked[fmt.Sprintf("%s:%d", name, s.Port)] = job.JobName
			}
		}
	}
	for _, name := range services("forwarder") {
		if !strings.Contains(read(t, "deploy", "config", name+".yaml"), "\nops-addr: \":8080\"\n") || asked[name+":8080"] != name {
			t.Errorf("%s is asked as %q", name, asked[name+":8080"])
		}
	}
}
