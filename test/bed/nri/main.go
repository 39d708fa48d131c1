// nri-adjust is an NRI plugin for the tests. Its argument is a ContainerAdjustment of NRI's API, in JSON: what it adjusts of every
// container that is created from then on. It prints "ready" when containerd asks it. Each line of its input is a ContainerUpdate,
// in JSON too, which it asks containerd for; it answers with "updated", or with why not. It ends with its input.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/sirupsen/logrus"
	"google.golang.org/protobuf/encoding/protojson"
)

type plugin struct{ adjustment *api.ContainerAdjustment }

// Synchronize is called once, with what runs already: the plugin has been registered.
func (plugin) Synchronize(context.Context, []*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error) {
	fmt.Println("ready")
	return nil, nil
}

func (p plugin) CreateContainer(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	return p.adjustment, nil, nil
}

func update(s stub.Stub, line []byte) error {
	var wish api.ContainerUpdate
	if err := protojson.Unmarshal(line, &wish); err != nil {
		return err
	}
	failed, err := s.UpdateContainers([]*api.ContainerUpdate{&wish})
	if err == nil && len(failed) > 0 {
		err = fmt.Errorf("containerd has not updated %s", failed[0].GetContainerId())
	}
	return err
}

func run(adjustment string) error {
	p := plugin{&api.ContainerAdjustment{}}
	if err := protojson.Unmarshal([]byte(adjustment), p.adjustment); err != nil {
		return err
	}
	s, err := stub.New(p, stub.WithPluginName("adjust"), stub.WithPluginIdx("10"))
	if err != nil {
		return err
	}
	if err := s.Start(context.Background()); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if err := update(s, lines.Bytes()); err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("updated")
		}
	}
	s.Stop()
	return lines.Err()
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "nri-adjust: its one argument is a ContainerAdjustment in JSON")
		os.Exit(2)
	}
	logrus.SetLevel(logrus.ErrorLevel)
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "nri-adjust:", err)
		os.Exit(1)
	}
}
