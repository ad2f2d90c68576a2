package manager

import (
	"fmt"

	gateway "github.com/nightjar-edr/nightjar/services/api-gateway/service"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/services/standalone/internal/whids"
)

// readWHIDS reads the configuration of the WHIDS manager to take over.
func (m *Manager) readWHIDS() error {
	if m.cfg.ImportWHIDS == "" {
		return nil
	}
	c, err := whids.Read(m.cfg.ImportWHIDS)
	if err != nil {
		return fmt.Errorf("%w: import-whids %w", lifecycle.ErrUsage, err)
	}
	m.whids = *c
	return nil
}

func (m *Manager) importedEndpoints() []message.EndpointRecord {
	list := make([]message.EndpointRecord, 0, len(m.whids.Endpoints))
	for _, e := range m.whids.Endpoints {
		list = append(list, message.EndpointRecord{UUID: e.UUID, Key: e.Key})
	}
	return list
}

func (m *Manager) importedOperators() []gateway.Operator {
	list := make([]gateway.Operator, 0, len(m.whids.Operators))
	for _, o := range m.whids.Operators {
		list = append(list, gateway.Operator(o))
	}
	return list
}
