package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

const usage = `nats prepares nats-server for Nightjar's services.

Usage: nats COMMAND [flags]

  all       keys, certs and config in one folder
  keys      make the keys of all users that have none yet, and the list of
            public keys, keys.conf, that the server's configuration includes;
            and the keys of operator admin and of the server, for the gateway
  certs     make a certificate for the NATS servers and one for the gateways,
            each with an authority of its own, where no other authority is
  config    write the server's configuration, nats-server.conf for one server
            and nats-cluster.conf for a cluster
  secrets   print the keys, and the certificates of certs, as Kubernetes manifests

nats COMMAND --help explains the flags of a command.
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run returns the exit code of the program.
func run(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return lifecycle.ExitUsage
	}
	name, args := args[0], args[1:]
	fs := flag.NewFlagSet("nats "+name, flag.ContinueOnError)
	fs.SetOutput(stderr)
	siems := fs.String("siem", "siem", "names of SIEMs, comma-separated, as for the rule-engine")
	var work func(users []string) error
	switch name {
	case "all", "certs":
		dir := fs.String("dir", "keys", "`folder` of the keys; what is there and still good is kept")
		namespace := fs.String("namespace", "nightjar", "Kubernetes `namespace` that the certificates are good for")
		hosts := fs.String("host", "", "`names` and addresses of the gateways, comma-separated, beside those in Kubernetes and compose")
		work = func(users []string) error {
			if name == "all" {
				if err := errors.Join(makeKeys(*dir, users), writeConfig(*dir, users)); err != nil {
					return err
				}
			}
			return makeCerts(*dir, *namespace, splitHosts(*hosts))
		}
	case "keys":
		dir := fs.String("dir", "keys", "`folder` of the keys; a key that is there is kept")
		work = func(users []string) error { return makeKeys(*dir, users) }
	case "config":
		dir := fs.String("dir", ".", "`folder` to write to")
		work = func(users []string) error { return writeConfig(*dir, users) }
	case "secrets":
		dir := fs.String("dir", "keys", "`folder` of the keys")
		namespace := fs.String("namespace", "nightjar", "Kubernetes `namespace` of the secrets")
		work = func(users []string) error { return printSecrets(stdout, *dir, *namespace, users) }
	case "help", "-h", "-help", "--help":
		fmt.Fprint(stdout, usage)
		return lifecycle.ExitOK
	default:
		fmt.Fprintf(stderr, "nats: no command %q\n\n%s", name, usage)
		return lifecycle.ExitUsage
	}
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return lifecycle.ExitOK
	} else if err != nil {
		return lifecycle.ExitUsage // what is wrong is printed
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "nats %s: unexpected argument %q\n", name, fs.Arg(0))
		return lifecycle.ExitUsage
	}
	users, err := allUsers(*siems)
	if err != nil {
		fmt.Fprintf(stderr, "nats %s: %v\n", name, err)
		return lifecycle.ExitUsage
	}
	if err := work(users); err != nil {
		fmt.Fprintf(stderr, "nats %s: %v\n", name, err)
		return lifecycle.ExitFailed
	}
	return lifecycle.ExitOK
}

// allUsers returns the names of all users.
func allUsers(siems string) ([]string, error) {
	names, err := access.ParseSIEMs(siems)
	return access.Users(names), err
}
