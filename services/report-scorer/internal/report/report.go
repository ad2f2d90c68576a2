package report

import (
	"maps"
	"math"
	"math/big"
	"slices"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// Report makes the report of an endpoint from its statistics, from how often
// each name occurred and from the number of different names over all
// endpoints. It returns nil when there were no alerts. The report shares
// nothing with its sources but counts, which it takes over.
func (s *Stats) Report(identifier string, counts map[string]int64, census int64) *message.Report {
	if s.Alerts == 0 {
		return nil
	}
	if counts == nil {
		counts = map[string]int64{}
	}
	names := slices.AppendSeq(make([]string, 0, len(counts)), maps.Keys(counts))
	slices.Sort(names)
	unique := int64(len(names))
	r := &message.Report{
		Identifier:       identifier,
		AlertCount:       s.Alerts,
		CountBySignature: counts,
		Signatures:       names,
		Techniques:       slices.Clone(s.Techniques),
		Tactics:          slices.Clone(s.Tactics),
		SignatureCount:   s.Signatures,
		SumAlert:         s.AlertCriticality.sum(),
		StdDevAlert:      s.AlertCriticality.stdDev(),
		SumRule:          s.RuleCriticality.sum(),
		StdDevSignature:  s.RuleCriticality.stdDev(),
		UniqSignatures:   unique,
		Start:            s.Start,
		Median:           middle(s.Start, s.Stop),
		Stop:             s.Stop,
	}
	r.AvgAlert = ratio(float64(r.SumAlert), float64(s.Alerts))
	r.AvgSignature = ratio(float64(r.SumRule), float64(s.Signatures))
	r.Diversity = ratio(float64(unique)*100, float64(census))
	r.SignatureMetric = unique * int64(math.Round(r.AvgSignature))
	r.AlertMetric = int64(math.Round(r.AvgAlert * r.Diversity))
	r.Score = r.AlertMetric + r.SignatureMetric
	return r
}

// ratio returns a/b cut to two decimals in float64, as gene does, and 0 when
// there is nothing to divide by.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return float64(int64(a/b*100)) / 100
}

// moments returns how many values there are, their sum and the sum of their
// squares.
func (h *Histogram) moments() (n, sum, squares int64) {
	for value, count := range h {
		v := int64(value)
		n += count
		sum += v * count
		squares += v * v * count
	}
	return n, sum, squares
}

func (h *Histogram) sum() int64 {
	_, sum, _ := h.moments()
	return sum
}

// stdDev returns the population standard deviation cut to two decimals, 0 of
// nothing. With D = n*squares - sum*sum the deviation is sqrt(D)/n, so its
// hundredfold, rounded down, is isqrt(10000*D)/n in integers: a deviation
// that has two decimals comes out as it is, where floating point might fall
// short of it.
func (h *Histogram) stdDev() float64 {
	n, sum, squares := h.moments()
	if n == 0 {
		return 0
	}
	count, total := big.NewInt(n), big.NewInt(sum)
	d := new(big.Int).Mul(count, big.NewInt(squares))
	d.Sub(d, new(big.Int).Mul(total, total))
	d.Mul(d, big.NewInt(10000))
	d.Div(d.Sqrt(d), count)
	return float64(d.Int64()) / 100
}

// middle returns the moment halfway between two, in the first one's zone. It
// is right for spans beyond the 292 years of a time.Duration.
func middle(start, stop time.Time) time.Time {
	seconds := stop.Unix() - start.Unix()
	nanos := int64(stop.Nanosecond() - start.Nanosecond())
	if nanos < 0 {
		seconds, nanos = seconds-1, nanos+int64(time.Second)
	}
	nanos += seconds % 2 * int64(time.Second)
	return time.Unix(start.Unix()+seconds/2, int64(start.Nanosecond())+nanos/2).In(start.Location())
}
