package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// servers are the ways in which the HTTP server runs: as a module under slipway, natively under runc, and the module
// under the wasmedge command in a container of runc's, which has the same network as the others.
var servers = []string{"slipway", "runc", "wasmedge"}

const serverPort = "8080"

// httpLoad measures what HTTP servers in pods answer to wrk, one after the other in each round. All are up all the
// while; those that wait use no CPU time.
func httpLoad(ctx context.Context, p *plan, c *client, r *results) {
	// Pods in the node's network would all have the same port.
	if len(p.servers) == 0 || c.hostNetwork || p.httpRounds == 0 {
		return
	}
	var measured []*runtime
	for _, name := range servers {
		if image, ok := p.servers[name]; ok {
			measured = append(measured, r.known(name, image))
		}
	}
	up := c.oneOfEach(ctx, measured, r)
	defer func() { r.removeAll(ctx, c, up) }()
	addresses := map[*runtime]string{}
	for rt, pod := range up {
		err := c.request(ctx, "http_requests", func(ctx context.Context) (err error) {
			addresses[rt], err = c.listening(ctx, pod)
			return err
		})
		r.fail(rt, err)
	}
	for round := range 1 + p.httpRounds {
		r.progress("HTTP under load", round+1, 1+p.httpRounds)
		rates, costs := map[string]float64{}, map[string]float64{}
		for _, rt := range shuffled(measured) {
			if ctx.Err() != nil {
				return
			}
			if addresses[rt] == "" {
				continue
			}
			server := map[*runtime]*pod{rt: up[rt]}
			before := c.cpuTimes(ctx, server, r)[rt]
			answered, err := wrk(ctx, addresses[rt], p)
			after := c.cpuTimes(ctx, server, r)[rt]
			switch {
			case err != nil:
				r.failAs(rt, "http_requests", err)
			case round > 0: // the first warms up
				rates[rt.name] = answered.rate
				r.addRate(rt, "http_requests", "per s", answered.rate)
				r.add(rt, "http_p99", "ms", milliseconds(answered.p99))
				costs[rt.name] = float64(after.used-before.used) / 1000 / answered.requests
				r.add(rt, "http_cpu", "µs", costs[rt.name])
			}
		}
		r.addHTTPRatios(rates, costs)
	}
}

// known is the measured runtime of this name, with another image; one that is not measured otherwise gets a column.
func (r *results) known(name, image string) *runtime {
	i := slices.IndexFunc(r.runtimes, func(rt *runtime) bool { return rt.name == name })
	if i < 0 {
		i = len(r.runtimes)
		r.runtimes = append(r.runtimes, &runtime{name: name, handler: "runc"})
	}
	return &runtime{name: name, handler: r.runtimes[i].handler, image: image}
}

// addHTTPRatios compares one round's figures.
func (r *results) addHTTPRatios(rates, costs map[string]float64) {
	if rates["slipway"] == 0 || rates["wasmedge"] == 0 {
		return
	}
	slipway := r.known("slipway", "")
	r.addRate(slipway, "http_requests_ratio", "× wasmedge", rates["slipway"]/rates["wasmedge"])
	r.add(slipway, "http_cpu_ratio", "× wasmedge", costs["slipway"]/costs["wasmedge"])
}

// listening waits until the pod's server takes connections, and returns its address.
func (c *client) listening(ctx context.Context, p *pod) (string, error) {
	status, err := c.cri.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.sandbox})
	if err != nil {
		return "", err
	}
	address := net.JoinHostPort(status.GetStatus().GetNetwork().GetIp(), serverPort)
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			return address, conn.Close()
		}
		if ended := c.running(ctx, p); ended != nil {
			return "", errors.Join(ended, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// answered is what a server did under load.
type answered struct {
	rate, requests float64
	p99            time.Duration
}

// wrk loads a server for a window. Half of the processors are left to the server.
func wrk(ctx context.Context, address string, p *plan) (answered, error) {
	threads := max(1, goruntime.NumCPU()/2)
	load := exec.CommandContext(ctx, "wrk", "--latency", "--threads", strconv.Itoa(threads),
		"--connections", strconv.Itoa(max(threads, p.httpConnections)), "--duration", fmt.Sprintf("%.0fs", p.httpWindow.Seconds()),
		"http://"+address+"/")
	out, err := load.CombinedOutput()
	if err != nil {
		return answered{}, fmt.Errorf("wrk: %w: %s", err, out)
	}
	return parseWrk(string(out))
}

// parseWrk reads wrk's report. Answers that were not given, or not 200, spoil a window.
func parseWrk(report string) (a answered, err error) {
	for line := range strings.Lines(report) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 2:
		case strings.HasPrefix(line, "  Socket errors:"), strings.HasPrefix(line, "  Non-2xx"):
			return answered{}, fmt.Errorf("wrk: %s", strings.TrimSpace(line))
		case fields[0] == "99%":
			if a.p99, err = time.ParseDuration(fields[1]); err != nil {
				return answered{}, fmt.Errorf("wrk: %w", err)
			}
		case fields[0] == "Requests/sec:":
			if a.rate, err = strconv.ParseFloat(fields[1], 64); err != nil {
				return answered{}, fmt.Errorf("wrk: %w", err)
			}
		case fields[1] == "requests":
			if a.requests, err = strconv.ParseFloat(fields[0], 64); err != nil {
				return answered{}, fmt.Errorf("wrk: %w", err)
			}
		}
	}
	if a.rate == 0 || a.requests == 0 || a.p99 == 0 {
		return answered{}, fmt.Errorf("wrk: no rate, requests or 99th percentile in: %s", report)
	}
	return a, nil
}
