package message

// GatewayAlive is the subject on which each gateway says that it is there and
// how far it has got: once a second, and whenever it has got further.
const GatewayAlive = "edr.gateway.alive"

// Alive is what a gateway says on GatewayAlive.
type Alive struct {
	// Gateway names the one process, for as long as it runs.
	Gateway string `json:"gateway"`
	// Endpoints is the revision of the bucket endpoints by which the
	// gateway acts.
	Endpoints uint64 `json:"endpoints"`
	// Removed is the revision of the bucket removed by which it acts.
	Removed uint64 `json:"removed"`
	// Leaving says that the gateway answers no agent any more.
	Leaving bool `json:"leaving,omitempty"`
}
