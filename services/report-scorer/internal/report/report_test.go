package report

import (
	"encoding/json"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// alert is an alert of a test: its names, and what of them is known.
type alert struct {
	at    time.Time
	names []string
	rules []message.RuleInfo
}

// alertOf makes an alert of names whose criticalities are looked up in known.
func alertOf(at time.Time, known map[string]int, names ...string) alert {
	a := alert{at: at, names: names}
	for _, n := range names {
		if c, ok := known[n]; ok {
			a.rules = append(a.rules, message.RuleInfo{Name: n, Criticality: c})
		}
	}
	return a
}

// reportOf adds alerts and makes the report, as if census names were known.
func reportOf(census int64, alerts ...alert) *message.Report {
	var s Stats
	counts := map[string]int64{}
	for _, a := range alerts {
		s.Add(a.at, a.names, a.rules)
		for _, n := range a.names {
			counts[n]++
		}
	}
	return s.Report("id", counts, census)
}

var t0 = time.Date(2024, 5, 6, 7, 8, 9, 123456700, time.UTC)

// numbers are the numbers of a report.
type numbers struct {
	alerts, signatures                   int64
	sumAlert                             int64
	avgAlert, sdAlert                    float64
	sumRule                              int64
	avgSignature, sdSignature, diversity float64
	unique, signatureMetric, alertMetric int64
	score                                int64
}

func numbersOf(r *message.Report) numbers {
	return numbers{r.AlertCount, r.SignatureCount, r.SumAlert, r.AvgAlert, r.StdDevAlert, r.SumRule,
		r.AvgSignature, r.StdDevSignature, r.Diversity, r.UniqSignatures, r.SignatureMetric, r.AlertMetric, r.Score}
}

// ninetyNine are 99 alerts of ten rules, one of them of two rules at once
// whose sum is above the bound.
func ninetyNine() []alert {
	known := map[string]int{"a": 8, "b": 5, "c": 5, "d": 7, "e": 7, "f": 7, "g": 7, "h": 9, "i": 8, "j": 8}
	times := map[string]int{"a": 70, "b": 7, "c": 6, "d": 4, "e": 3, "f": 3, "g": 2, "h": 1, "i": 1, "j": 1}
	alerts := []alert{alertOf(t0, known, "a", "b")}
	for name, n := range times {
		for range n {
			alerts = append(alerts, alertOf(t0.Add(time.Duration(len(alerts))*time.Second), known, name))
		}
	}
	return alerts
}

func TestReport(t *testing.T) {
	known := map[string]int{"ten": 10, "four": 4, "five": 5, "informative": 0, "eleven": 11, "negative": -1}
	for name, c := range map[string]struct {
		census int64
		alerts []alert
		want   numbers
	}{
		"99 alerts": {10, ninetyNine(), numbers{99, 100, 744, 7.51, 1.05, 747, 7.47, 1.05, 100, 10, 70, 751, 821}},
		"sums of rules": {5, []alert{
			alertOf(t0, known, "ten"), alertOf(t0, known, "four"), alertOf(t0, known, "four", "five"), alertOf(t0, known, "four", "ten"),
		}, numbers{4, 6, 33, 8.25, 2.48, 37, 6.16, 2.73, 60, 3, 18, 495, 513}},
		"an unknown name": {3, []alert{
			alertOf(t0, known, "ten"), alertOf(t0, map[string]int{"ten": 10, "other": 10}, "ten", "other"), alertOf(t0, known, "unknown"),
		}, numbers{3, 4, 20, 6.66, 4.71, 30, 7.5, 0, 100, 3, 24, 666, 690}},
		"only unknown names": {3, []alert{alertOf(t0, known, "unknown")},
			numbers{alerts: 1, signatures: 1, diversity: 33.33, unique: 1}},
		"one of five": {5, []alert{alertOf(t0, known, "ten")}, numbers{1, 1, 10, 10, 0, 10, 10, 0, 20, 1, 10, 200, 210}},
		"informative rules divide and do not deviate": {4, []alert{alertOf(t0, known, "ten", "informative"), alertOf(t0, known, "informative")},
			numbers{2, 3, 10, 5, 5, 10, 3.33, 0, 50, 2, 6, 250, 256}},
		"criticalities are bounded": {2, []alert{alertOf(t0, known, "eleven", "negative")},
			numbers{1, 2, 10, 10, 0, 10, 5, 0, 100, 2, 10, 1000, 1010}},
		"a name twice in an alert": {1, []alert{alertOf(t0, known, "four", "four")},
			numbers{1, 2, 8, 8, 0, 8, 4, 0, 100, 1, 4, 800, 804}},
		"no names": {0, []alert{alertOf(t0, known)}, numbers{alerts: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := numbersOf(reportOf(c.census, c.alerts...)); got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
	if r := new(Stats).Report("id", nil, 5); r != nil {
		t.Errorf("report of no alerts: %+v", r)
	}
}

func TestSets(t *testing.T) {
	rule := message.RuleInfo{Name: "r", Criticality: 3, ATTACK: []event.Attack{{ID: "T2", Tactic: "x"}, {ID: "T1", Tactic: "x"}, {ID: "T2", Tactic: "w"}}}
	r := reportOf(2, alert{t0, []string{"r", "b"}, []message.RuleInfo{rule}}, alert{t0, []string{"a"}, nil})
	for what, c := range map[string]struct{ got, want []string }{
		"signatures": {r.Signatures, []string{"a", "b", "r"}},
		"techniques": {r.Techniques, []string{"T1", "T2"}},
		"tactics":    {r.Tactics, []string{"w", "x"}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: got %q, want %q", what, c.got, c.want)
		}
	}
	out, err := json.Marshal(reportOf(0, alert{at: t0}))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"count-by-signature":{}`, `"signatures":[]`, `"techniques":null`, `"tactics":null`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%s is not in %s", want, out)
		}
	}
}

func TestSetsAreBounded(t *testing.T) {
	var s Stats
	for i := range 2 * maxReferences {
		s.Add(t0, []string{"r"}, []message.RuleInfo{{Name: "r", ATTACK: []event.Attack{
			{ID: strings.Repeat("T", i%(2*maxReference)), Tactic: time.Duration(i).String()},
		}}})
	}
	if len(s.Techniques) != maxReference+1 || len(s.Tactics) != maxReferences {
		t.Errorf("%d techniques, %d tactics", len(s.Techniques), len(s.Tactics))
	}
}

func TestTimes(t *testing.T) {
	east := time.FixedZone("", 2*3600)
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for name, c := range map[string]struct {
		times               []time.Time
		start, middle, stop string
	}{
		"one":          {[]time.Time{t0}, "2024-05-06T07:08:09.1234567Z", "2024-05-06T07:08:09.1234567Z", "2024-05-06T07:08:09.1234567Z"},
		"out of order": {[]time.Time{t0.Add(time.Second), t0.Add(3 * time.Second), t0}, "2024-05-06T07:08:09.1234567Z", "2024-05-06T07:08:10.6234567Z", "2024-05-06T07:08:12.1234567Z"},
		"zones are kept": {[]time.Time{t0.In(east), t0.Add(time.Nanosecond * 3)},
			"2024-05-06T09:08:09.1234567+02:00", "2024-05-06T09:08:09.123456701+02:00", "2024-05-06T07:08:09.123456703Z"},
		"beyond a duration": {[]time.Time{at("0001-01-01T00:00:00Z"), at("9999-12-31T23:59:59.999999999Z")},
			"0001-01-01T00:00:00Z", "5000-07-02T11:59:59.999999999Z", "9999-12-31T23:59:59.999999999Z"},
		"the zero time counts": {[]time.Time{t0, {}}, "0001-01-01T00:00:00Z", "1012-09-03T15:34:04.56172835Z", "2024-05-06T07:08:09.1234567Z"},
	} {
		t.Run(name, func(t *testing.T) {
			var alerts []alert
			for _, at := range c.times {
				alerts = append(alerts, alert{at: at})
			}
			r := reportOf(0, alerts...)
			got := [3]string{r.Start.Format(time.RFC3339Nano), r.Median.Format(time.RFC3339Nano), r.Stop.Format(time.RFC3339Nano)}
			if got != [3]string{c.start, c.middle, c.stop} {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestStorable(t *testing.T) {
	parse := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for in, want := range map[string]string{
		"2024-05-06T07:08:09+02:00": "2024-05-06T07:08:09+02:00",
		"2024-05-06T07:08:09+24:00": "2024-05-05T07:08:09Z",
		"0000-01-01T00:00:00+24:00": t0.Format(time.RFC3339Nano),
	} {
		if got := Storable(parse(in), t0).Format(time.RFC3339Nano); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
	far := time.Unix(math.MaxInt32*1000, 0)
	if got := Storable(far, far); !got.Equal(time.Unix(0, 0)) {
		t.Errorf("got %s", got)
	}
}

// A standard deviation of two decimals is shown as it is, although floating
// point would fall just short of some.
func TestStdDevIsExact(t *testing.T) {
	short := 0
	for n := int64(2); n <= 200; n++ {
		for k := int64(1); k < n; k++ {
			root := new(big.Int).Sqrt(big.NewInt(k * (n - k))).Int64()
			if root*root != k*(n-k) {
				continue
			}
			for low := int64(0); low < 10; low++ {
				// k values of 10 and n-k of low: the deviation is
				// (10-low)*sqrt(k(n-k))/n.
				if 100*(10-low)*root%n != 0 {
					continue
				}
				want := float64(100*(10-low)*root/n) / 100
				h := Histogram{10: k}
				h[low] = n - k
				if got := h.stdDev(); got != want {
					t.Errorf("%d of %d from %d: got %v, want %v", k, n, low, got, want)
				}
				mean := float64(10*k+low*(n-k)) / float64(n)
				a, b := 10-mean, float64(low)-mean
				variance := (float64(k)*a*a + float64(n-k)*b*b) / float64(n)
				if float64(int64(math.Sqrt(variance)*100))/100 != want {
					short++
				}
			}
		}
	}
	if short == 0 {
		t.Error("floating point was right everywhere: the test does not show what it says")
	}
}

// naive reduces lists of alerts as the formulas are written.
type naive struct {
	counts     map[string]int64
	listA      []int64
	listR      []int64
	sets       [2]map[string]bool
	times      []time.Time
	signatures int64
}

func (n *naive) add(a alert) {
	var e int64
	for _, name := range a.names {
		n.counts[name]++
		n.signatures++
		for _, r := range a.rules {
			if r.Name != name {
				continue
			}
			for _, ref := range r.ATTACK {
				n.sets[0][ref.ID] = true
				n.sets[1][ref.Tactic] = true
			}
			if c := int64(min(10, r.Criticality)); c != 0 {
				e += c
				n.listR = append(n.listR, c)
			}
		}
	}
	n.listA = append(n.listA, min(10, e))
	n.times = append(n.times, a.at)
}

func total(list []int64) (sum int64) {
	for _, v := range list {
		sum += v
	}
	return sum
}

// isStdDev tells whether got, a number of hundredths, is the standard
// deviation of a list cut to two decimals: got <= 100*sd < got+1, in
// rationals.
func isStdDev(list []int64, got float64) bool {
	if len(list) == 0 {
		return got == 0
	}
	n := big.NewRat(int64(len(list)), 1)
	mean := new(big.Rat).Quo(big.NewRat(total(list), 1), n)
	variance := new(big.Rat)
	for _, v := range list {
		d := new(big.Rat).Sub(big.NewRat(v, 1), mean)
		variance.Add(variance, d.Mul(d, d))
	}
	variance.Quo(variance, n).Mul(variance, big.NewRat(10000, 1))
	k := int64(math.Round(got * 100))
	return big.NewRat(k*k, 1).Cmp(variance) <= 0 && big.NewRat((k+1)*(k+1), 1).Cmp(variance) > 0
}

func drawAlerts(t *rapid.T) []alert {
	names := []string{"a", "b", "c", "d", "e", "f"}
	zones := []*time.Location{time.UTC, time.FixedZone("", 3600), time.FixedZone("", -5*3600)}
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) alert {
		a := alert{at: t0.Add(time.Duration(rapid.Int64Range(-1e15, 1e15).Draw(t, "offset"))).In(rapid.SampledFrom(zones).Draw(t, "zone"))}
		a.names = rapid.SliceOfN(rapid.SampledFrom(names), 0, 5).Draw(t, "names")
		for i, n := range slices.Compact(slices.Sorted(slices.Values(a.names))) {
			if rapid.Bool().Draw(t, "known") {
				a.rules = append(a.rules, message.RuleInfo{Name: n, Criticality: rapid.IntRange(0, 12).Draw(t, "criticality"),
					ATTACK: []event.Attack{{ID: names[i], Tactic: n}}})
			}
		}
		return a
	}), 1, 60).Draw(t, "alerts")
}

// The statistics give what lists would, after a way through JSON at any
// point, and whatever the order of the alerts.
func TestReportIsTheNaiveOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		alerts := drawAlerts(t)
		census := rapid.Int64Range(6, 40).Draw(t, "census")
		n := naive{counts: map[string]int64{}, sets: [2]map[string]bool{{}, {}}}
		var s Stats
		stored := rapid.IntRange(0, len(alerts)-1).Draw(t, "stored")
		for i, a := range alerts {
			n.add(a)
			s.Add(a.at, a.names, a.rules)
			if i == stored {
				out, err := json.Marshal(s)
				if err != nil {
					t.Fatal(err)
				}
				s = Stats{}
				if err := json.Unmarshal(out, &s); err != nil {
					t.Fatal(err)
				}
			}
		}
		r := s.Report("id", n.counts, census)
		if !isStdDev(n.listA, r.StdDevAlert) || !isStdDev(n.listR, r.StdDevSignature) {
			t.Fatalf("deviations %v of %v, %v of %v", r.StdDevAlert, n.listA, r.StdDevSignature, n.listR)
		}
		cut := func(x float64) float64 { return math.Trunc(x*100) / 100 }
		want := numbers{alerts: int64(len(alerts)), signatures: n.signatures, sumAlert: total(n.listA), sumRule: total(n.listR),
			unique: int64(len(n.counts)), sdAlert: r.StdDevAlert, sdSignature: r.StdDevSignature}
		want.avgAlert = cut(float64(want.sumAlert) / float64(want.alerts))
		if n.signatures > 0 {
			want.avgSignature = cut(float64(want.sumRule) / float64(n.signatures))
		}
		want.diversity = cut(float64(want.unique) * 100 / float64(census))
		want.signatureMetric = want.unique * int64(math.Round(want.avgSignature))
		want.alertMetric = int64(math.Round(want.avgAlert * want.diversity))
		want.score = want.signatureMetric + want.alertMetric
		if got := numbersOf(r); got != want {
			t.Fatalf("got  %+v\nwant %+v", got, want)
		}
		for i, set := range [][]string{r.Techniques, r.Tactics} {
			if len(set) != len(n.sets[i]) || !slices.IsSorted(set) {
				t.Fatalf("set %v of %v", set, n.sets[i])
			}
			for _, e := range set {
				if !n.sets[i][e] {
					t.Fatalf("%q is not of %v", e, n.sets[i])
				}
			}
		}
		start, stop := slices.MinFunc(n.times, time.Time.Compare), slices.MaxFunc(n.times, time.Time.Compare)
		if !r.Start.Equal(start) || !r.Stop.Equal(stop) || !r.Median.Equal(start.Add(stop.Sub(start)/2)) {
			t.Fatalf("times %v %v %v of %v", r.Start, r.Median, r.Stop, n.times)
		}
		shuffled := rapid.Permutation(alerts).Draw(t, "order")
		if other := reportOf(census, shuffled...); numbersOf(other) != want || !other.Start.Equal(start) || !other.Stop.Equal(stop) {
			t.Fatalf("in another order %+v\nwant %+v", numbersOf(other), want)
		}
	})
}
