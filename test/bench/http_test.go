package main

import (
	"strings"
	"testing"
	"time"
)

const report = `Running 3s test @ http://127.0.0.1:8080/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.19ms    1.83ms  12.32ms   80.64%
    Req/Sec    28.12k     6.12k   47.40k    80.65%
  Latency Distribution
     50%    1.05ms
     75%    3.38ms
     90%    5.04ms
     99%  708.00us
  86993 requests in 3.11s, 8.96MB read
Requests/sec:  27942.30
Transfer/sec:      2.88MB
`

func TestWrksReportHasRateRequestsAndPercentile(t *testing.T) {
	got, err := parseWrk(report)
	if want := (answered{rate: 27942.30, requests: 86993, p99: 708 * time.Microsecond}); err != nil || got != want {
		t.Fatalf("%v, %v; want %v", got, err, want)
	}
}

func TestALoadThatFailedIsNoSample(t *testing.T) {
	for _, spoilt := range []string{
		strings.Replace(report, "Requests/sec", "  Socket errors: connect 0, read 3, write 0, timeout 1\nRequests/sec", 1),
		strings.Replace(report, "Requests/sec", "  Non-2xx or 3xx responses: 7\nRequests/sec", 1),
		strings.Replace(report, "     99%  708.00us\n", "", 1),
		"unable to connect to 127.0.0.1:8080 Connection refused\n",
	} {
		if got, err := parseWrk(spoilt); err == nil {
			t.Errorf("%v of %s", got, spoilt)
		}
	}
}
