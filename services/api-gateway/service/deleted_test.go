package gateway

import (
	"net/http"
	"os"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

// What an endpoint sent stays readable when it is deleted, also for a gateway
// that has learned of the endpoint and its end from the bucket alone.
func TestDeletedEndpointStaysReadable(t *testing.T) {
	r := newRig(t, nil)
	e := r.endpoint()
	h, _ := pages([]string{`{"n":1}`})
	r.handle(subject.Logs(subject.PartitionOf(e.UUID), message.LogsQuery), h)
	data[message.Endpoint](r, http.MethodDelete, "/endpoints/"+e.UUID, "")
	check := func() {
		t.Helper()
		r.expect("GET", "/endpoints/"+e.UUID+"/logs", "", ok(`[{"n":1}]`))
		r.expect("GET", "/endpoints/"+e.UUID+"/alerts", "", ok(`[{"n":1}]`))
		r.expect("GET", "/endpoints/"+e.UUID, "", nok("Unknown endpoint: "+e.UUID))
		r.expect("GET", "/endpoints/"+someUUID+"/logs", "", nok("Unknown endpoint: "+someUUID))
		if a := r.agent(e, "GET", "/key", nil); a.code != http.StatusForbidden {
			t.Errorf("a deleted endpoint is answered with %d", a.code)
		}
	}
	check()
	r.restart()
	check()
	r.stop()
	if err := os.RemoveAll(r.cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	r.start()
	check()
}
