package bus

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/certs"
)

var expiryDesc = prometheus.NewDesc("nightjar_nats_certificate_expiry_timestamp_seconds",
	"When the first certificate of the chain that NATS shows expires, in Unix time. No value without a connection with TLS.", nil, nil)

// CertificateExpiry tells until when the certificate is good that the server
// showed to this connection.
func CertificateExpiry(b *Bus) prometheus.Collector { return expiry{b} }

type expiry struct{ b *Bus }

// Describe implements prometheus.Collector.
func (e expiry) Describe(ch chan<- *prometheus.Desc) { ch <- expiryDesc }

// Collect implements prometheus.Collector.
func (e expiry) Collect(ch chan<- prometheus.Metric) {
	state, err := e.b.NC.TLSConnectionState()
	if err != nil {
		return // not connected, or not over TLS
	}
	if until := certs.Expiry(state.PeerCertificates); !until.IsZero() {
		ch <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, float64(until.Unix()))
	}
}
