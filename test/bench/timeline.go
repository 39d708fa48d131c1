package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// timelineLine is what slipway's shim logs at debug level: microseconds of each step of a Create or a Start.
var timelineLine = regexp.MustCompile(`msg="(created|started) \S+: microseconds: ([^"]*)"`)

// readTimeline adds the steps of all pod starts in containerd's log, and their sums, as samples of slipway.
func readTimeline(path string, rt *runtime, r *results) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	n, err := parseTimeline(file, rt, r)
	if err == nil && n == 0 {
		err = fmt.Errorf("%s: no timeline; containerd has to log at debug level", path)
	}
	return err
}

func parseTimeline(log io.Reader, rt *runtime, r *results) (lines int, err error) {
	scanner := bufio.NewScanner(log)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		match := timelineLine.FindStringSubmatch(scanner.Text())
		if match == nil {
			continue
		}
		lines++
		// Only a sandbox has a holder.
		part := match[1]
		if strings.Contains(match[2], "holder=") {
			part = "sandbox"
		}
		sum := 0.0
		for _, step := range strings.Fields(match[2]) {
			name, text, _ := strings.Cut(step, "=")
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return lines, fmt.Errorf("step %q: %w", step, err)
			}
			r.add(rt, "timeline_"+part+"_"+name, "µs", value)
			sum += value
		}
		r.add(rt, "timeline_"+part+"_all", "µs", sum)
	}
	return lines, scanner.Err()
}
