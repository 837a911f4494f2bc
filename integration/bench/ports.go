package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/shim/api"
)

// publishedPorts are the numbers of ports that a container is given by nerdctl.
var publishedPorts = []int{0, 10, 50}

// portsURL is where the checkpoint of the service with ports is.
const portsURL = "node:ports"

// firstPort is the machine's port of the first published one of so many: each number
// has ports of its own.
func firstPort(ports int) int { return 20000 + 100*ports }

// ports measures how the number of published ports tells on a restore into a new
// container, and on one into a container that is there.
func (b *bench) ports(ctx context.Context) error {
	b.results.section("Restore of a small service with published ports (nerdctl); warm: /run in standby; cold: nerdctl run, for stock create + start --checkpoint")
	if err := b.portCheckpoints(ctx); err != nil {
		return err
	}
	defer func() { _, _ = b.node.Nerdctl(context.WithoutCancel(ctx), "rm", "-f", portSource) }()
	figure := chart{
		title: "Restore of a small service, by published ports (medians)", unit: "ms",
		series: []string{"stock shim, new container", "FastMig, new container", "FastMig, standby container"},
	}
	var all []portRows
	for _, n := range publishedPorts {
		rows := portRows{
			ports: n,
			cold:  b.results.row(fmt.Sprintf("%d ports, cold", n), "ms"),
			warm:  b.results.row(fmt.Sprintf("%d ports, warm: request → answer", n), "ms"),
			life:  b.results.row("  request → the service answers", "ms"),
		}
		all = append(all, rows)
		err := b.alternate(ctx, fmt.Sprintf("%d published ports", n), b.cfg.portRounds, func(ctx context.Context, r harness.Runtime) (values, error) {
			took, err := b.coldWithPorts(ctx, r, n)
			return values{rows.cold: took}, err
		})
		if err != nil {
			return err
		}
	}
	if err := b.warmWithPorts(ctx, all); err != nil {
		return err
	}
	for _, rows := range all {
		figure.groups = append(figure.groups, group{
			name:   fmt.Sprintf("%d ports", rows.ports),
			values: []float64{medianOf(rows.cold.Stock.Values), medianOf(rows.cold.FastMig.Values), medianOf(rows.warm.FastMig.Values)},
		})
	}
	first, last := all[0], all[len(all)-1]
	b.results.row("most ports to none, warm", "×").goal("FastMig ≈ 1×").quotient(last.warm, first.warm)
	b.results.row("most ports to none, cold", "×").quotient(last.cold, first.cold)
	b.results.figures = append(b.results.figures, figureFile{"ports.svg", figure})
	return nil
}

// portRows are those of one number of ports.
type portRows struct {
	ports            int
	cold, warm, life *row
}

// portSource is the stock container whose checkpoint is restored.
const portSource = "bench-ports-source"

// portCheckpoints makes the checkpoints of the service under both runtimes.
func (b *bench) portCheckpoints(ctx context.Context) error {
	// nerdctl has its own name for the runtime; the last one counts.
	for _, r := range runtimes {
		name := portSource
		if r.IsFastMig() {
			name += "-fastmig"
		}
		id, err := b.node.Nerdctl(ctx, b.withPorts("run", r, 0, nil, "-d", "--name", name)...)
		if err != nil {
			return err
		}
		id = strings.TrimSpace(id)
		if err := b.answersAt(ctx, id, 0); err != nil {
			return err
		}
		if !r.IsFastMig() {
			_, err = b.node.Nerdctl(ctx, "checkpoint", "create", "--checkpoint-dir", b.portFolder(), name, "ports")
		} else {
			var result api.Result
			err = b.call(ctx, id, "/v1/checkpoint", api.CheckpointRequest{ImageURL: portsURL}, &result)
		}
		if err != nil {
			return err
		}
		if r.IsFastMig() {
			if _, err := b.node.Nerdctl(ctx, "rm", "-f", name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) portFolder() string { return b.node.Dir + "/checkpoints" }

// withPorts are the arguments of nerdctl that make a container of the service.
func (b *bench) withPorts(command string, r harness.Runtime, ports int, annotations map[string]string, args ...string) []string {
	all := append([]string{command, "--runtime", r.Name}, args...)
	for k, v := range annotations {
		all = append(all, "--annotation", k+"="+v)
	}
	for i := range ports {
		all = append(all, "-p", fmt.Sprintf("127.0.0.1:%d:%d", firstPort(ports)+i, servicePort+i))
	}
	return append(all, images.Busybox.Ref(), "httpd", "-f", "-p", strconv.Itoa(servicePort), "-h", "/bin")
}

// coldWithPorts makes a new container out of the checkpoint, and returns the
// milliseconds of the commands that a user gives.
func (b *bench) coldWithPorts(ctx context.Context, r harness.Runtime, ports int) (took float64, err error) {
	name := harness.NewID("ports")
	defer func() {
		_, rerr := b.node.Nerdctl(context.WithoutCancel(ctx), "rm", "-f", name)
		err = errors.Join(err, rerr)
	}()
	begin := time.Now()
	var id string
	if r.IsFastMig() {
		id, err = b.node.Nerdctl(ctx, b.withPorts("run", r, ports, map[string]string{
			"io.fastmig.startup": api.StartRestore, "io.fastmig.image-url": portsURL,
		}, "-d", "--name", name)...)
	} else if id, err = b.node.Nerdctl(ctx, b.withPorts("create", r, ports, nil, "--name", name)...); err == nil {
		_, err = b.node.Nerdctl(ctx, "start", "--checkpoint", "ports", "--checkpoint-dir", b.portFolder(), name)
	}
	if err != nil {
		return 0, err
	}
	took = milliseconds(time.Since(begin))
	return took, b.answersAt(ctx, strings.TrimSpace(id), ports)
}

// warmWithPorts restores into containers that are there, by turns, again and again.
func (b *bench) warmWithPorts(ctx context.Context, all []portRows) (err error) {
	var ids, addresses []string
	defer func() {
		for _, id := range ids {
			_, rerr := b.node.Nerdctl(context.WithoutCancel(ctx), "rm", "-f", id)
			err = errors.Join(err, rerr)
		}
	}()
	for _, rows := range all {
		id, err := b.node.Nerdctl(ctx, b.withPorts("run", harness.FastMig, rows.ports, map[string]string{
			"io.fastmig.startup": api.StartStandby, "io.fastmig.on-exit": "default",
		}, "-d")...)
		if err != nil {
			return err
		}
		id = strings.TrimSpace(id)
		ids = append(ids, id)
		address, err := b.addressOf(ctx, id, rows.ports)
		if err != nil {
			return err
		}
		addresses = append(addresses, address)
	}
	fmt.Fprint(b.progress, "warm restores with ports ...")
	for round := range warmUp + b.cfg.serviceRounds() {
		for i, rows := range all {
			if err := rest(ctx); err != nil {
				return err
			}
			answer, answered, err := b.httpAsker(addresses[i]).timed(ctx, func() error {
				return b.call(ctx, ids[i], "/run", api.Run{ImageURL: portsURL}, nil)
			})
			if err != nil {
				return err
			}
			if round >= warmUp {
				rows.warm.add(harness.FastMig, milliseconds(answer))
				rows.life.add(harness.FastMig, milliseconds(answered))
			}
			if err := b.call(ctx, ids[i], "/v1/standby", api.StopRequest{}, nil); err != nil {
				return err
			}
		}
	}
	fmt.Fprintln(b.progress, " done")
	return nil
}

// addressOf is where the service answers: the first published port, or the
// container's own address.
func (b *bench) addressOf(ctx context.Context, id string, ports int) (string, error) {
	if ports > 0 {
		return fmt.Sprintf("127.0.0.1:%d", firstPort(ports)), nil
	}
	out, err := b.node.Nerdctl(ctx, "inspect", id)
	if err != nil {
		return "", err
	}
	var all []struct {
		NetworkSettings struct{ IPAddress string }
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 1 {
		return "", fmt.Errorf("read what nerdctl says about %s: %w", id, err)
	}
	return fmt.Sprintf("%s:%d", all[0].NetworkSettings.IPAddress, servicePort), nil
}

// answersAt waits until the service answers; it is not measured.
func (b *bench) answersAt(ctx context.Context, id string, ports int) error {
	address, err := b.addressOf(ctx, id, ports)
	if err != nil {
		return err
	}
	return b.httpAsker(address).awaited(ctx)
}
