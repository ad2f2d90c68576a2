//go:build recorded

package detect

import (
	"path/filepath"
	"testing"
)

// BenchmarkDetectRecorded measures one worker on recorded events, and how much
// faster than gene it is on a sample of the same events in the same run, the
// decoding of the JSON text included in both.
func BenchmarkDetectRecorded(b *testing.B) {
	for _, rs := range recordedSets[:2] {
		list := recordedRules(b, rs.rules...)
		set := mustCompile(b, list, nil)
		reference := newPlain(b, list, nil)
		for _, file := range []string{"evtx-attack-samples", "gene-engine-bench", "sysmonente-trace"} {
			lines := recordedEvents(b, filepath.Join(recordedData(b), "events", file+".jsonl.gz"))
			b.Run(rs.name+"/"+file, func(b *testing.B) {
				benchmark(b, set, reference, lines)
			})
		}
	}
}

func BenchmarkCompileRecorded(b *testing.B) {
	list := recordedRules(b, recordedSets[0].rules...)
	for b.Loop() {
		mustCompile(b, list, nil)
	}
	b.ReportMetric(float64(len(list)), "rules")
}
