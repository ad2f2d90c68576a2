package main

import (
	"bytes"
	"fmt"
	"path/filepath"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/durable"
)

// Files of the server's configuration.
const (
	serverFile  = "nats-server.conf"
	clusterFile = "nats-cluster.conf"
)

// keyVariable is the name under which keysFile holds a user's public key.
func keyVariable(user string) string { return "key-" + user }

// writeConfig writes the server's configuration for these users.
func writeConfig(dir string, users []string) error {
	if err := durable.WriteFile(filepath.Join(dir, serverFile), serverConfig(users), 0o644); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, clusterFile), []byte(clusterConfig), 0o644)
}

const serverSettings = `# Configuration of nats-server for Nightjar, one server. Written by
#   go run ./deploy/nats config
# Change what that command reads, not this file. What differs from place to
# place comes from the environment:
#   NATS_NAME       name of this server, unique in its cluster
#   NATS_LISTEN     address for the services and SIEMs, such as 0.0.0.0:4222
#   NATS_STORE      folder of JetStream
#   NATS_MAX_STORE  size that the folder may reach, such as 80GB: less than the
#                   volume has. A full store refuses, and gateways answer 503.
#   NATS_CERT, NATS_KEY, NATS_CA
#                   PEM files: certificate, its key, and the authority that
#                   the other servers of a cluster have theirs from
# keys.conf stands beside this file. The command keys writes it.
include "%s"

server_name: $NATS_NAME
listen: $NATS_LISTEN

# The longest line with its detection and headers fits into a message.
max_payload: %d
max_pending: 128MB
write_deadline: "30s"

jetstream {
  store_dir: $NATS_STORE
  max_file_store: $NATS_MAX_STORE
  max_memory_store: 64MB
  # An acknowledgement means stable storage.
  sync_interval: always
}

tls {
  cert_file: $NATS_CERT
  key_file: $NATS_KEY
  timeout: 5
}

# Each user may do what it needs and nothing else; there is no user without a
# key. The rights are those of package pkg/contract/access.
authorization {
  users: [
`

const clusterConfig = `# Configuration of nats-server for Nightjar, one server of a cluster. Written by
#   go run ./deploy/nats config
# Beside what nats-server.conf needs, the environment holds
#   NATS_CLUSTER    address for the other servers, such as 0.0.0.0:6222
#   NATS_ROUTES     where all servers are found, such as
#                   [nats-route://nats-0.nats:6222, nats-route://nats-1.nats:6222, nats-route://nats-2.nats:6222]
include "nats-server.conf"

cluster {
  name: nightjar
  listen: $NATS_CLUSTER
  routes: $NATS_ROUTES
  # A server proves by its certificate that it belongs here.
  tls {
    cert_file: $NATS_CERT
    key_file: $NATS_KEY
    ca_file: $NATS_CA
    verify: true
    timeout: 5
  }
}
`

// serverConfig returns the content of serverFile.
func serverConfig(users []string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, serverSettings, keysFile, stream.MaxMessage)
	for _, user := range users {
		p := access.For(user)
		fmt.Fprintf(&b, "    {\n      nkey: $%s\n      permissions {\n", keyVariable(user))
		writeSubjects(&b, "publish", p.Publish)
		writeSubjects(&b, "subscribe", p.Subscribe)
		if p.Respond {
			fmt.Fprintf(&b, "        allow_responses {max: 1, expires: %q}\n", access.RespondWithin)
		}
		b.WriteString("      }\n    }\n")
	}
	b.WriteString("  ]\n}\n")
	return b.Bytes()
}

func writeSubjects(b *bytes.Buffer, verb string, subjects []string) {
	fmt.Fprintf(b, "        %s {\n          allow: [\n", verb)
	for _, s := range subjects {
		fmt.Fprintf(b, "            %q\n", s)
	}
	b.WriteString("          ]\n        }\n")
}
