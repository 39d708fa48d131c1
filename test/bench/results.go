package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// results collects samples and failures by metric and runtime.
type results struct {
	runtimes []*runtime
	// suffix is appended to the metrics that are added.
	suffix string
	rows   []*row
}

// row is one line of results.json.
type row struct {
	Metric   string  `json:"metric"`
	Runtime  string  `json:"runtime"`
	N        int     `json:"n"`
	P50      float64 `json:"p50"`
	P95      float64 `json:"p95"`
	Unit     string  `json:"unit"`
	Failures int     `json:"failures"`

	samples []float64
	// rate says that more is better.
	rate       bool
	firstError error
}

func (r *results) row(rt *runtime, metric string) *row {
	metric += r.suffix
	i := slices.IndexFunc(r.rows, func(x *row) bool { return x.Metric == metric && x.Runtime == rt.name })
	if i < 0 {
		i = len(r.rows)
		r.rows = append(r.rows, &row{Metric: metric, Runtime: rt.name})
	}
	return r.rows[i]
}

// add takes a sample of which less is better.
func (r *results) add(rt *runtime, metric, unit string, value float64) *row {
	x := r.row(rt, metric)
	x.Unit = unit
	x.samples = append(x.samples, value)
	return x
}

// addRate takes a sample of which more is better.
func (r *results) addRate(rt *runtime, metric, unit string, value float64) {
	r.add(rt, metric, unit, value).rate = true
}

// fail counts failures under the metrics that they name; nil is none.
func (r *results) fail(rt *runtime, err error) {
	for _, err := range flatten(err) {
		metric := "other"
		if f := (*failure)(nil); errors.As(err, &f) {
			metric = f.metric
		}
		r.failAs(rt, metric, err)
	}
}

// failAs counts all of a joined error under one metric; nil is none.
func (r *results) failAs(rt *runtime, metric string, err error) {
	for _, err := range flatten(err) {
		x := r.row(rt, metric)
		x.Failures++
		if x.firstError == nil {
			x.firstError = err
		}
	}
}

// flatten undoes errors.Join.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, err := range joined.Unwrap() {
		all = append(all, flatten(err)...)
	}
	return all
}

// percentile is the nearest-rank percentile of sorted samples.
func percentile(sorted []float64, share float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, int(math.Ceil(share*float64(len(sorted))))-1)]
}

// finish computes the percentiles.
func (r *results) finish() {
	for _, x := range r.rows {
		slices.Sort(x.samples)
		if x.rate {
			slices.Reverse(x.samples)
		}
		x.N, x.P50, x.P95 = len(x.samples), percentile(x.samples, 0.5), percentile(x.samples, 0.95)
	}
}

// silent are the runtimes that were measured without any sample.
func (r *results) silent() []string {
	var names []string
	for _, rt := range r.runtimes {
		failed := slices.ContainsFunc(r.rows, func(x *row) bool { return x.Runtime == rt.name && x.Failures > 0 })
		if failed && !slices.ContainsFunc(r.rows, func(x *row) bool { return x.Runtime == rt.name && len(x.samples) > 0 }) {
			names = append(names, rt.name)
		}
	}
	return names
}

// write stores the rows as JSON, whole or not at all.
func (r *results) write(path string) error {
	r.finish()
	text, err := json.MarshalIndent(r.rows, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// print writes a table of p50/p95, a column per runtime; then the first runtime's p50 as a ratio to the others';
// then the failures.
func (r *results) print(out io.Writer) {
	r.finish()
	byName := map[[2]string]*row{}
	var metrics []string
	for _, x := range r.rows {
		byName[[2]string{x.Metric, x.Runtime}] = x
		if !slices.Contains(metrics, x.Metric) {
			metrics = append(metrics, x.Metric)
		}
	}
	table := func(title string, columns []*runtime, cell func(metric string, rt *runtime) string) {
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(w, "%s\t", title)
		for _, rt := range columns {
			fmt.Fprintf(w, "%s\t", rt.name)
		}
		for _, metric := range metrics {
			fmt.Fprintf(w, "\n%s\t", metric)
			for _, rt := range columns {
				fmt.Fprintf(w, "%s\t", cell(metric, rt))
			}
		}
		fmt.Fprintln(w)
		w.Flush()
	}
	table("p50/p95", r.runtimes, func(metric string, rt *runtime) string {
		x := byName[[2]string{metric, rt.name}]
		if x == nil || x.N == 0 {
			return "-"
		}
		return fmt.Sprintf("%.3g/%.3g %s", x.P50, x.P95, x.Unit)
	})
	if len(r.runtimes) > 1 {
		first := r.runtimes[0]
		fmt.Fprintln(out)
		table(first.name+" ÷", r.runtimes[1:], func(metric string, rt *runtime) string {
			x, y := byName[[2]string{metric, first.name}], byName[[2]string{metric, rt.name}]
			if x == nil || y == nil || x.N == 0 || y.P50 == 0 {
				return "-"
			}
			return fmt.Sprintf("%.2f", x.P50/y.P50)
		})
	}
	fmt.Fprintln(out)
	for _, x := range r.rows {
		if x.Failures > 0 {
			fmt.Fprintf(out, "FAILED %s %s: %d times, %d succeeded; first: %v\n", x.Runtime, x.Metric, x.Failures, x.N, x.firstError)
		}
	}
	fmt.Fprintf(out, "n: %s\n", r.counts(metrics, byName))
}

// counts says how many samples are behind the figures of each metric.
func (r *results) counts(metrics []string, byName map[[2]string]*row) string {
	var all []string
	for _, metric := range metrics {
		least := math.MaxInt
		for _, rt := range r.runtimes {
			if x := byName[[2]string{metric, rt.name}]; x != nil {
				least = min(least, x.N)
			}
		}
		all = append(all, fmt.Sprintf("%s %d", metric, least))
	}
	return strings.Join(all, ", ")
}

// progress says on stderr what is being done.
func (r *results) progress(what string, done, of int) {
	fmt.Fprintf(os.Stderr, "%s%s: %d of %d\n", what, strings.ReplaceAll(r.suffix, "_", " "), done, of)
}
