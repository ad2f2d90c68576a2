package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"gopkg.in/yaml.v2"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// must runs a command and returns what it prints.
func must(t *testing.T, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if code := run(args, &out, &errs); code != lifecycle.ExitOK || errs.Len() > 0 {
		t.Fatalf("%q ends with %d: %s", args, code, errs.String())
	}
	return out.String()
}

// files returns what a folder holds, with the mode of each file.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, f := range list {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		found[f.Name()] = info.Mode().String() + " " + string(text)
	}
	return found
}

// The files that are shipped are those that the code writes.
func TestShippedConfiguration(t *testing.T) {
	dir := t.TempDir()
	must(t, "config", "--dir", dir)
	for name := range files(t, dir) {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what `go run ./deploy/nats config --dir deploy/nats` writes: %v", name, err)
		}
	}
}

// certificate writes a certificate and its key as the server reads them.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := writeCertificate(cert, key); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// environment sets what the configuration takes from the environment.
func environment(t *testing.T) {
	t.Helper()
	cert, key := certificate(t)
	for name, value := range map[string]string{
		"NATS_NAME": "nats-0", "NATS_LISTEN": "127.0.0.1:4222", "NATS_STORE": "/data", "NATS_MAX_STORE": "80GB",
		"NATS_CERT": cert, "NATS_KEY": key, "NATS_CA": cert, "NATS_CLUSTER": "127.0.0.1:6222",
		"NATS_ROUTES": "[nats-route://nats-0.nats:6222, nats-route://nats-1.nats:6222]",
	} {
		t.Setenv(name, value)
	}
}

// The server reads from the files exactly the rights that package access gives
// to each user, and nobody gets in without a key or in the clear.
func TestConfigurationGivesTheRights(t *testing.T) {
	environment(t)
	dir := t.TempDir()
	must(t, "keys", "--dir", dir, "--siem", "siem,other_siem")
	must(t, "config", "--dir", dir, "--siem", "siem,other_siem")
	for _, file := range []string{serverFile, clusterFile} {
		opts, err := server.ProcessConfigFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		users := append(slices.Clone(access.Services), access.Backup, access.Restore, access.Canary, "siem", "other_siem")
		if len(opts.Nkeys) != len(users) || len(opts.Users) != 0 || opts.NoAuthUser != "" || len(opts.Accounts) != 0 {
			t.Fatalf("%s: users %v %v", file, opts.Nkeys, opts.Users)
		}
		for i, user := range users {
			want := access.ForSIEM(user)
			switch {
			case user == access.Backup:
				want = access.ForBackup()
			case user == access.Restore:
				want = access.ForRestore()
			case user == access.Canary:
				want = access.ForCanary()
			case i < len(access.Services):
				if want, err = access.ForService(user); err != nil {
					t.Fatal(err)
				}
			}
			got := opts.Nkeys[i].Permissions
			if !strings.Contains(files(t, dir)[keysFile], "key-"+user+": "+opts.Nkeys[i].Nkey+"\n") {
				t.Errorf("%s: %s has the key %s", file, user, opts.Nkeys[i].Nkey)
			}
			if !slices.Equal(got.Publish.Allow, want.Publish) || !slices.Equal(got.Subscribe.Allow, want.Subscribe) ||
				got.Publish.Deny != nil || got.Subscribe.Deny != nil || (got.Response != nil) != want.Respond {
				t.Errorf("%s: %s may %+v %+v %+v, want %+v", file, user, got.Publish, got.Subscribe, got.Response, want)
			}
			if r := got.Response; r != nil && (r.MaxMsgs != 1 || r.Expires != access.RespondWithin) {
				t.Errorf("%s: %s may answer %+v", file, user, r)
			}
		}
		if opts.MaxPayload != stream.MaxMessage || !opts.SyncAlways || !opts.JetStream || opts.StoreDir != "/data" || opts.JetStreamMaxStore != 80<<30 ||
			opts.TLSConfig == nil || opts.ServerName != "nats-0" || opts.Host != "127.0.0.1" || opts.Port != 4222 || opts.WriteDeadline != 30*time.Second {
			t.Errorf("%s: payload %d, sync always %v, store %s of %d, TLS %v, %s on %s:%d", file, opts.MaxPayload, opts.SyncAlways, opts.StoreDir, opts.JetStreamMaxStore, opts.TLSConfig, opts.ServerName, opts.Host, opts.Port)
		}
		if clustered := file == clusterFile; clustered != (len(opts.Routes) == 2) || clustered != (opts.Cluster.TLSConfig != nil && opts.Cluster.Name == "nightjar" && opts.Cluster.Port == 6222) {
			t.Errorf("%s: cluster is %+v, routes %v", file, opts.Cluster, opts.Routes)
		}
	}
}

// A setting that is missing stops the server instead of leaving a door open.
func TestConfigurationDemandsItsEnvironment(t *testing.T) {
	dir := t.TempDir()
	must(t, "keys", "--dir", dir)
	must(t, "config", "--dir", dir)
	for _, name := range []string{"NATS_NAME", "NATS_LISTEN", "NATS_STORE", "NATS_MAX_STORE", "NATS_CERT", "NATS_KEY"} {
		environment(t)
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
		if _, err := server.ProcessConfigFile(filepath.Join(dir, serverFile)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

// Keys are made once, readable by their owner alone, and stay what they are
// when the command runs again or for one more SIEM.
func TestKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	must(t, "keys", "--dir", dir)
	first := files(t, dir)
	if len(first) != len(access.Services)+5+len(apiKeys) {
		t.Errorf("files %v", first)
	}
	seeds := map[string]bool{}
	for name, text := range first {
		if slices.Contains(apiKeys, name) {
			if key, ok := strings.CutPrefix(text, fs.FileMode(0o600).String()+" "); !ok || len(key) < 32 || strings.TrimSpace(key) != key || seeds[key] {
				t.Errorf("%s: %.12s", name, text)
			}
			seeds[text] = true
			continue
		}
		if name == keysFile {
			if strings.Contains(text, " SU") {
				t.Errorf("%s holds a seed", name)
			}
			continue
		}
		if !strings.HasPrefix(text, fs.FileMode(0o600).String()+" SU") || seeds[text] {
			t.Errorf("%s: %.12s", name, text)
		}
		seeds[text] = true
	}
	must(t, "keys", "--dir", dir, "--siem", "siem,second")
	again := files(t, dir)
	for name, text := range first {
		if name != keysFile && again[name] != text {
			t.Errorf("%s was written again", name)
		}
	}
	if !strings.Contains(again[keysFile], "key-second: U") || again["second.nk"] == "" || !strings.HasPrefix(again[keysFile], first[keysFile]) {
		t.Errorf("one more SIEM: %s", again[keysFile])
	}
	if err := os.WriteFile(filepath.Join(dir, "siem.nk"), []byte("half a se"), 0o600); err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	if code := run([]string{"keys", "--dir", dir}, &bytes.Buffer{}, &errs); code != lifecycle.ExitFailed || !strings.Contains(errs.String(), "siem.nk") || strings.Contains(errs.String(), "half") {
		t.Errorf("a broken seed: %d, %s", code, errs.String())
	}
	if got := files(t, dir); !strings.HasSuffix(got["siem.nk"], " half a se") || got[keysFile] != again[keysFile] {
		t.Error("a broken seed was written over")
	}
}

// Each secret holds the seed of one user.
func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	must(t, "keys", "--dir", dir, "--siem", "SIEM_1")
	have := files(t, dir)
	docs := strings.Split(must(t, "secrets", "--dir", dir, "--siem", "SIEM_1", "--namespace", "0x1"), "---\n")
	if len(docs) != len(access.Services)+7 || docs[0] != "" {
		t.Fatalf("%d documents", len(docs))
	}
	for _, doc := range docs[1:] {
		var m manifest
		if err := yaml.UnmarshalStrict([]byte(doc), &m); err != nil {
			t.Fatalf("%v: %s", err, doc)
		}
		if m.APIVersion != "v1" || m.Metadata.Namespace != "0x1" || m.Metadata.Labels["app.kubernetes.io/part-of"] != "nightjar" {
			t.Errorf("%s", doc)
		}
		file := strings.TrimPrefix(m.Metadata.Name, "nightjar-nats-") + ".nk"
		switch m.Metadata.Name {
		case "nightjar-nats-keys":
			if m.Kind != "ConfigMap" || len(m.Data) != 1 || !strings.HasSuffix(have[keysFile], " "+m.Data[keysFile]) || m.StringData != nil {
				t.Errorf("%s", doc)
			}
			continue
		case "nightjar-admin":
			if m.Kind != "Secret" || len(m.StringData) != len(apiKeys) || !strings.HasSuffix(have["admin-key"], " "+m.StringData["admin-key"]) || !strings.HasSuffix(have["server-key"], " "+m.StringData["server-key"]) {
				t.Errorf("%s", doc)
			}
			continue
		case "nightjar-nats-siem-1":
			file = "SIEM_1.nk"
		}
		if m.Kind != "Secret" || m.Type != "Opaque" || len(m.StringData) != 1 || m.Data != nil || m.StringData[seedKey] == "" || !strings.HasSuffix(have[file], " "+m.StringData[seedKey]) {
			t.Errorf("%s is not %s", doc, have[file])
		}
	}
	for _, siems := range []string{"a_b,a-b", "keys", "tls", "a-", "A,a"} {
		must(t, "keys", "--dir", dir, "--siem", siems)
		var out, errs bytes.Buffer
		if code := run([]string{"secrets", "--dir", dir, "--siem", siems}, &out, &errs); code != lifecycle.ExitFailed || out.Len() > 0 || !strings.Contains(errs.String(), "nightjar-nats-") {
			t.Errorf("%s: %d, %s", siems, code, errs.String())
		}
	}
	if code := run([]string{"secrets", "--dir", t.TempDir()}, &bytes.Buffer{}, &bytes.Buffer{}); code != lifecycle.ExitFailed {
		t.Errorf("without keys: %d", code)
	}
}

func TestExitCodes(t *testing.T) {
	for args, want := range map[string]int{
		"": lifecycle.ExitUsage, "nope": lifecycle.ExitUsage, "keys --nope": lifecycle.ExitUsage, "keys more": lifecycle.ExitUsage,
		"keys --siem a.b": lifecycle.ExitUsage, "config --siem api-gateway": lifecycle.ExitUsage, "config --dir /does/not/exist": lifecycle.ExitFailed,
		"help": lifecycle.ExitOK, "keys --help": lifecycle.ExitOK,
	} {
		var out, errs bytes.Buffer
		if got := run(strings.Fields(args), &out, &errs); got != want || out.Len()+errs.Len() == 0 {
			t.Errorf("%q ends with %d, want %d: %s", args, got, want, errs.String())
		}
	}
}
