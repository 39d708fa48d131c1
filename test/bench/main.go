// Command bench measures what a pod costs under several runtimes of one containerd, over CRI.
//
//	bench -runtimes slipway,runc,crun,conventional,null -n 30 -extra-mounts 300 -out results.json
//
// All figures of one run are interleaved: each round visits every runtime once, in an order drawn anew, so that
// noise of the machine, and what one pod leaves to clean up, falls on all alike. Nothing is left out: a request
// that fails is counted in its row and shown with its error.
//
// Metrics (with the suffix _<N>_mounts when measured again with N extra mounts on the node):
//
//	run_sandbox, create, start, stop, remove   one CRI request each (stop and remove: of the sandbox), ms
//	create_start, stop_remove                  the sums of two, ms
//	pod_running      RunPodSandbox until the container's status is Running, ms
//	first_output     RunPodSandbox until the container's first line is in its log, ms
//	pods_per_second_P   pods brought to Running per second, P in flight
//	pss_per_pod      proportional set size of all processes of an idle pod, MiB; of it pss_shim (with helpers),
//	                 pss_holder (the sandbox's process) and pss_workload (the container's)
//	guest_start      a command from start to exit, ms; see -guest-start
//	exec             ExecSync of the image's own program (slipway: its module; runc, crun: busybox true), ms
//	stats_1          ContainerStats of one container, ms
//	stats_50_pods    ListContainerStats of 50 pods' containers, ms
//	update           UpdateContainerResources of CPU and memory limits, ms
//	cpu_100m         CPU time that a spinning program uses under a quota of 10 of 100 ms, % of a CPU
//	memory_growth_W  one memory.grow of one page, of 4,000 in a row, ns; W: under the engine alone, under slipway
//	                 run with no_limit or a limit; _ratio to the engine alone, by round; see -growth
//	http_requests    requests per second that an HTTP server in a pod answers to wrk, over connections that it keeps; one
//	                 program: a module under slipway, the same module compiled ahead of time under the wasmedge command
//	                 in a runc container, and a native one under runc
//	http_p99         99th percentile of those requests' time, ms
//	http_cpu         CPU time of the server per request, µs: what is left of the figures where others use the machine;
//	                 http_requests_ratio and http_cpu_ratio: of slipway to the command, by round
//
// p50 and p95 are nearest-rank percentiles; p95 of a rate is what 95 % of the rounds reached.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runtime is one thing to measure: a runtime handler of containerd and the container it runs.
type runtime struct {
	name, handler, image string
	// command replaces the image's entrypoint, args its arguments.
	command, args []string
	// prints says that the container writes a line once it runs.
	prints bool
	// exec is a program of the image that ends at once; nil: the shim has no exec.
	exec []string
	// stats and update say that the shim answers these requests.
	stats, update bool
	// spin makes the container one that uses all the CPU time it gets; nil: there is none.
	spin func(*runtime)
	// cpuQuota is the limit in microseconds of each 100 ms; 0: none.
	cpuQuota int64
}

const (
	linuxImage = "localhost/busybox:1"
	wasmImage  = "localhost/hello:1"
)

// known are the runtimes of this project's benchmark; flags change their parts.
// Each container says that it runs and then sleeps, except the null shim's, which cannot speak.
func known() []*runtime {
	sleep := []string{"sh", "-c", "echo ready; exec sleep 100000"}
	busybox := runtime{image: linuxImage, command: sleep, prints: true, exec: []string{"true"}, stats: true, update: true,
		spin: func(r *runtime) { r.command = []string{"sh", "-c", "while :; do :; done"} }}
	hello := runtime{image: wasmImage, args: []string{"sleep"}, prints: true, stats: true,
		spin: func(r *runtime) { r.args = []string{"spin"} }}
	slipway, runc, crun, conventional := hello, busybox, busybox, hello
	slipway.name, runc.name, crun.name, conventional.name = "slipway", "runc", "crun", "conventional"
	slipway.exec, slipway.update = []string{"/hello.wasm"}, true
	// It says 0 of every container's CPU time.
	conventional.spin = nil
	return []*runtime{&slipway, &runc, &crun, &conventional, {name: "null", image: linuxImage, command: sleep}}
}

// group is a part of a run.
type group struct {
	name string
	// once: not again with extra mounts on the node.
	once    bool
	measure func(context.Context, *plan, *client, *results)
}

// groups are the parts of a run, in their order.
var groups = []group{
	{"phases", false, lives},
	{"rates", false, rates},
	{"memory", false, memory},
	{"guest_start", false, guestStarts},
	{"tasks", false, tasks},
	{"stats", false, statsOfMany},
	{"cpu", true, quotas},
	{"growth", true, memoryGrowth},
	{"http", true, httpLoad},
}

// plan is what the command line asks for.
type plan struct {
	endpoint    string
	runtimes    []*runtime
	guestStarts map[string]string
	// growths are the commands of memory_growth, by the names of growths.
	growths      map[string]string
	growthRounds int
	// servers are the images of the HTTP server, by the names of servers.
	servers         map[string]string
	httpRounds      int
	httpWindow      time.Duration
	httpConnections int
	// only are the groups to measure; empty: all.
	only      []string
	n, warmup int
	rounds    int
	statsPods int
	// cpuWindows spans of cpuWindow each are measured.
	cpuWindows  int
	cpuWindow   time.Duration
	parallel    []int
	idlePods    int
	settle      time.Duration
	extraMounts int
	hostNetwork bool
	// cgroupParent is where the pods' cgroups are made; empty: containerd's choice.
	cgroupParent string
	timeout      time.Duration
	out          string
	// timeline is containerd's log, to read the steps of slipway's pod starts from.
	timeline string
}

func parse(arguments []string) (*plan, error) {
	p := &plan{guestStarts: map[string]string{}, growths: map[string]string{}, servers: map[string]string{}, parallel: []int{1, 4, 16}}
	runtimes := known()
	set := flag.NewFlagSet("bench", flag.ContinueOnError)
	set.StringVar(&p.endpoint, "endpoint", os.Getenv("CONTAINER_RUNTIME_ENDPOINT"), "CRI endpoint (default: $CONTAINER_RUNTIME_ENDPOINT)")
	names := set.String("runtimes", "slipway,runc,crun,conventional,null", "runtimes to measure")
	set.IntVar(&p.n, "n", 30, "pods per runtime for the phases of a pod's life, and runs of each -guest-start; 0: leave out")
	set.IntVar(&p.warmup, "warmup", 2, "rounds that are not counted")
	set.IntVar(&p.rounds, "rounds", 5, "rounds of pods per second; 0: leave out")
	set.Func("parallel", "pods in flight for pods per second (default 1,4,16)", func(s string) (err error) {
		p.parallel, err = integers(s)
		return err
	})
	set.IntVar(&p.idlePods, "idle-pods", 20, "pods per runtime for memory; 0: leave out")
	set.IntVar(&p.statsPods, "stats-pods", 50, "pods per runtime for the list of statistics; 0: leave out")
	set.IntVar(&p.cpuWindows, "cpu-windows", 3, "spans of time for the CPU quota; 0: leave out")
	set.DurationVar(&p.cpuWindow, "cpu-window", 10*time.Second, "length of each")
	set.IntVar(&p.growthRounds, "growth-rounds", 300, "runs of each -growth")
	set.Func("growth", "`WAY=COMMAND`: a command for sh -c that prints the nanoseconds of one memory.grow; ways: "+strings.Join(growths, ", "), func(s string) error {
		way, command, _ := strings.Cut(s, "=")
		if !slices.Contains(growths, way) {
			return fmt.Errorf("no way %q", way)
		}
		p.growths[way] = command
		return nil
	})
	set.IntVar(&p.httpRounds, "http-rounds", 6, "rounds of load on each -http")
	set.DurationVar(&p.httpWindow, "http-window", 10*time.Second, "length of the load in each")
	set.IntVar(&p.httpConnections, "http-connections", 64, "connections of the load")
	set.Func("http", "`SERVER=IMAGE`: an HTTP server on port 8080; servers: "+strings.Join(servers, ", "), func(s string) error {
		name, image, _ := strings.Cut(s, "=")
		if !slices.Contains(servers, name) {
			return fmt.Errorf("no server %q", name)
		}
		p.servers[name] = image
		return nil
	})
	set.Func("only", "only these parts of the run, of: "+groupNames(), func(s string) error {
		p.only = strings.Split(s, ",")
		for _, name := range p.only {
			if !slices.ContainsFunc(groups, func(g group) bool { return g.name == name }) {
				return fmt.Errorf("no part %q", name)
			}
		}
		return nil
	})
	set.DurationVar(&p.settle, "settle", 2*time.Second, "how long the idle pods rest before their memory is read")
	set.IntVar(&p.extraMounts, "extra-mounts", 0, "measure everything again with this many extra mounts on the node")
	set.BoolVar(&p.hostNetwork, "host-network", false, "pods in the node's network namespace, without CNI")
	set.StringVar(&p.cgroupParent, "cgroup-parent", os.Getenv("CGROUP_PARENT"), "parent of the pods' cgroups (default: $CGROUP_PARENT)")
	set.DurationVar(&p.timeout, "timeout", time.Minute, "limit of each CRI request")
	set.StringVar(&p.timeline, "timeline", "", "containerd's log at debug level: read the steps of slipway's pod starts from it")
	set.StringVar(&p.out, "out", "", "write the results here, as JSON")
	// Each of these changes one part of a runtime: -image conventional=localhost/other:1
	part := func(name, usage string, change func(*runtime, string)) {
		set.Func(name, "`RUNTIME=VALUE`: "+usage, func(s string) error {
			key, value, _ := strings.Cut(s, "=")
			i := slices.IndexFunc(runtimes, func(r *runtime) bool { return r.name == key })
			if i < 0 {
				return fmt.Errorf("no runtime %q", key)
			}
			change(runtimes[i], value)
			return nil
		})
	}
	part("handler", "containerd's runtime handler (default: the runtime's name)", func(r *runtime, s string) { r.handler = s })
	part("image", "the container's image", func(r *runtime, s string) { r.image = s })
	part("command", "words that replace the image's entrypoint", func(r *runtime, s string) { r.command = strings.Fields(s) })
	part("args", "words that replace the image's arguments", func(r *runtime, s string) { r.args = strings.Fields(s) })
	part("guest-start", "a command for sh -c that runs a guest without containerd", func(r *runtime, s string) { p.guestStarts[r.name] = s })
	if err := set.Parse(arguments); err != nil {
		return nil, err
	}
	if p.endpoint == "" {
		return nil, fmt.Errorf("-endpoint: not given, and CONTAINER_RUNTIME_ENDPOINT is not set")
	}
	for _, name := range strings.Split(*names, ",") {
		i := slices.IndexFunc(runtimes, func(r *runtime) bool { return r.name == name })
		if i < 0 {
			return nil, fmt.Errorf("-runtimes: no runtime %q", name)
		}
		if r := runtimes[i]; r.handler == "" {
			r.handler = r.name
		}
		p.runtimes = append(p.runtimes, runtimes[i])
	}
	return p, nil
}

func groupNames() string {
	var names []string
	for _, g := range groups {
		names = append(names, g.name)
	}
	return strings.Join(names, ", ")
}

func integers(s string) (all []int, err error) {
	for _, word := range strings.Split(s, ",") {
		i, err := strconv.Atoi(word)
		if err != nil || i < 1 {
			return nil, fmt.Errorf("%q: want whole numbers from 1", word)
		}
		all = append(all, i)
	}
	return all, nil
}

func main() {
	p, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, p); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, p *plan) error {
	conn, err := grpc.NewClient(p.endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	logs, err := os.MkdirTemp("", "bench-logs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(logs)
	client := &client{
		cri:          cri.NewRuntimeServiceClient(conn),
		logs:         logs,
		run:          strconv.FormatInt(time.Now().UnixMilli(), 36),
		hostNetwork:  p.hostNetwork,
		cgroupParent: p.cgroupParent,
		timeout:      p.timeout,
	}
	if err := checkImages(ctx, cri.NewImageServiceClient(conn), p.runtimes); err != nil {
		return err
	}
	results := &results{runtimes: p.runtimes}
	before := load()
	measureAll(ctx, p, client, results)
	if p.extraMounts > 0 && ctx.Err() == nil {
		fmt.Fprintf(os.Stderr, "mounting %d times\n", p.extraMounts)
		unmount, err := mountMany(p.extraMounts)
		if err == nil {
			results.suffix = fmt.Sprintf("_%d_mounts", p.extraMounts)
			measureAll(ctx, p, client, results)
		}
		if err := errors.Join(err, unmount()); err != nil {
			return err
		}
	}
	after := load()
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted: %w", context.Cause(ctx))
	}
	if p.timeline != "" {
		if err := readTimeline(p.timeline, p.runtimes[0], results); err != nil {
			return err
		}
	}
	results.print(os.Stdout)
	fmt.Printf("load average before %s, after %s\n", before, after)
	if p.out != "" {
		if err := results.write(p.out); err != nil {
			return err
		}
	}
	if silent := results.silent(); len(silent) > 0 {
		return fmt.Errorf("not one measurement succeeded of: %s", strings.Join(silent, ", "))
	}
	return nil
}

func measureAll(ctx context.Context, p *plan, c *client, r *results) {
	for _, g := range groups {
		wanted := len(p.only) == 0 || slices.Contains(p.only, g.name)
		if wanted && !(g.once && r.suffix != "") {
			g.measure(ctx, p, c, r)
		}
	}
}

// checkImages fails early, and by name, on an image that is not there.
func checkImages(ctx context.Context, images cri.ImageServiceClient, runtimes []*runtime) error {
	for _, r := range runtimes {
		status, err := images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: r.image}})
		if err != nil {
			return fmt.Errorf("ImageStatus: %w", err)
		}
		if status.Image == nil {
			return fmt.Errorf("%s: image %s is not in containerd: import it first", r.name, r.image)
		}
	}
	return nil
}

// load is the machine's load average of the last minute: figures taken beside other work are worth less.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err.Error()
	}
	minute, _, _ := strings.Cut(string(text), " ")
	return minute
}
