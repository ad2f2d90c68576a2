// Command siem-example prints each alert once it has come and acknowledges it.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func main() {
	url, data, name := os.Args[1], os.Args[2], os.Args[3] // such as tls://127.0.0.1:4222 data siem
	seed := must(nats.NkeyOptionFromSeed(data + "/" + name + ".nk"))
	ca, inbox := nats.RootCAs(data+"/tls/ca.pem"), nats.CustomInboxPrefix("_INBOX_"+name)
	nc := must(nats.Connect(url, seed, ca, inbox, nats.MaxReconnects(-1)))
	consumer := must(must(jetstream.New(nc)).Consumer(context.Background(), "ALERTS", name))
	alerts := must(consumer.Messages(jetstream.WithMessagesErrOnMissingHeartbeat(false)))
	for {
		m := must(alerts.Next())
		fmt.Println(m.Headers().Get("Nats-Msg-Id"), m.Subject(), string(m.Data())) // hand it over, and only then
		must(0, m.Ack())
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}
