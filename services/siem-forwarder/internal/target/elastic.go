package target

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
)

// elastic speaks Elasticsearch's bulk API. Documents are created under the
// alert's id, so one that comes again is a conflict, and as good as taken.
type elastic struct{ index string }

func (e elastic) body(records []Record) ([]byte, error) {
	type create struct {
		Index string `json:"_index"`
		ID    string `json:"_id"`
	}
	var b bytes.Buffer
	for i := range records {
		action, err := event.Marshal(map[string]create{"create": {e.index, records[i].ID}})
		if err != nil {
			return nil, err
		}
		b.Write(action)
		b.WriteByte('\n')
		b.Write(records[i].Body)
		b.WriteByte('\n')
	}
	return b.Bytes(), nil
}

func (e elastic) request(r *http.Request) { r.Header.Set("Content-Type", "application/x-ndjson") }

// answer reads the result of each document. A document that cannot be mapped
// (400) is refused; one that the cluster has no room for now is sent again.
func (e elastic) answer(_ context.Context, status int, body []byte, n int) []error {
	if status != http.StatusOK {
		return nil
	}
	var answer struct {
		Items []map[string]struct {
			Status int
			Error  json.RawMessage
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return all(n, fmt.Errorf("answer of the bulk API: %w", err))
	}
	if len(answer.Items) != n {
		return all(n, fmt.Errorf("answer of the bulk API has %d items for %d documents", len(answer.Items), n))
	}
	results := make([]error, n)
	for i, item := range answer.Items {
		result, ok := item["create"]
		reason := fmt.Sprintf("%d: %s", result.Status, excerpt(result.Error))
		switch {
		case !ok:
			results[i] = errors.New("answer of the bulk API has an item that is no create")
		case result.Status/100 == 2, result.Status == http.StatusConflict:
		case result.Status == http.StatusBadRequest:
			results[i] = &Refused{Reason: reason}
		default:
			results[i] = &Later{Err: errors.New(reason)}
		}
	}
	return results
}
