package message

import "time"

// Endpoint is an endpoint as the admin API shows it.
type Endpoint struct {
	UUID           string    `json:"uuid"`
	Hostname       string    `json:"hostname"`
	IP             string    `json:"ip"`
	Key            string    `json:"key"`
	LastConnection time.Time `json:"last-connection"`
}

// EndpointRecord is the value of key <uuid> in bucket endpoints: who may talk
// to the manager. A deleted endpoint's key is deleted.
type EndpointRecord struct {
	UUID     string    `json:"uuid"`
	Key      string    `json:"key"`
	Hostname string    `json:"hostname,omitempty"`
	Created  time.Time `json:"created"`
}

// Seen is when and from where an endpoint was last heard of.
type Seen struct {
	Time time.Time `json:"time"`
	IP   string    `json:"ip"`
}

// SeenKeyPrefix begins the keys seen.<partition> of bucket endpoints, whose
// values are JSON objects from UUID to Seen.
const SeenKeyPrefix = "seen."

// Requests to endpoint-registry. Every answer that tells of a change has the
// revision of the bucket endpoints at which it is true.
const (
	RegistryCreate  = "edr.registry.create"
	RegistryDelete  = "edr.registry.delete"
	RegistryGet     = "edr.registry.get"
	RegistryList    = "edr.registry.list"
	RegistryBind    = "edr.registry.bind"
	RegistryRelease = "edr.registry.release"
	RegistrySeen    = "edr.registry.seen"
	RegistryImport  = "edr.registry.import"
)

// EndpointRequest names an endpoint; Hostname is for RegistryBind.
type EndpointRequest struct {
	UUID     string `json:"uuid,omitempty"`
	Hostname string `json:"hostname,omitempty"`
}

// EndpointReply carries an endpoint.
type EndpointReply struct {
	Endpoint Endpoint `json:"endpoint"`
	Revision uint64   `json:"revision,omitempty"`
}

// ListRequest asks for a page of endpoints in the order of their creation.
// After is the Next of the page before.
type ListRequest struct {
	After string `json:"after,omitempty"`
	Limit int    `json:"limit,omitempty"`
}

// ListReply is a page of endpoints. Next is empty on the last one.
type ListReply struct {
	Endpoints []Endpoint `json:"endpoints"`
	Next      string     `json:"next,omitempty"`
	Total     int        `json:"total"`
}

// SeenRequest reports the endpoints that a gateway heard of.
type SeenRequest struct {
	Seen map[string]Seen `json:"seen"`
}

// ImportRequest adds endpoints with the uuid and key they have. Those that
// are there already with the same key are left alone.
type ImportRequest struct {
	Endpoints []EndpointRecord `json:"endpoints"`
}

// RevisionReply answers a change that has nothing else to tell.
type RevisionReply struct {
	Revision uint64 `json:"revision"`
}

// OperatorRecord is the value of key operator.<identifier> in bucket access.
type OperatorRecord struct {
	Identifier string `json:"identifier"`
	// Salt and Hash are hexadecimal; Hash is HMAC-SHA-256 of the key with
	// Salt as the HMAC's key.
	Salt    string    `json:"salt"`
	Hash    string    `json:"hash"`
	Role    string    `json:"role"`
	Created time.Time `json:"created"`
}

// ServerKeyRecord is the value of key server-key in bucket access.
type ServerKeyRecord struct {
	Key string `json:"key"`
}

// Keys of bucket access.
const (
	OperatorKeyPrefix = "operator."
	ServerKeyKey      = "server-key"
)

// ReportRecord is the value of key <uuid> in bucket reports: alerts of the
// endpoint up to and including sequence Cleared of stream ALERTS do not count
// in its report any more.
type ReportRecord struct {
	Cleared uint64    `json:"cleared"`
	Time    time.Time `json:"time"`
}
