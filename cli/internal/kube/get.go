package kube

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/yaml"

	"weir.dev/weir/cli/internal/exit"
	"weir.dev/weir/cli/internal/parts"
	"weir.dev/weir/engine/object"
)

func getCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "get KIND [NAME...]", Short: "List objects", Args: cobra.MinimumNArgs(1),
		Example: "  weir get all\n  weir get pods,svc -o wide\n  weir get svc app1-service -o json",
		RunE:    get,
	}
	namespaceFlag(cmd)
	cmd.Flags().BoolP("all-namespaces", "A", false, "objects of every namespace")
	cmd.Flags().StringP("output", "o", "", "wide, json, yaml or name; nothing for a table")
	cmd.Flags().StringP("selector", "l", "", "labels that must match")
	return cmd
}

func get(cmd *cobra.Command, args []string) error {
	d, err := demoOf(cmd)
	if err != nil {
		return err
	}
	words := strings.Split(args[0], ",")
	if args[0] == "all" {
		words = []string{object.KindPod, object.KindService, object.KindDeployment}
	}
	if len(words) > 1 {
		return getMany(cmd, words, args[1:])
	}
	k, names, err := target(args)
	if err != nil {
		return err
	}
	output := cmd.Flag("output").Value.String()
	if !slices.Contains([]string{"", "wide", "json", "yaml", "name"}, output) {
		return exit.With(exit.Usage, fmt.Errorf("--output %q: use wide, json, yaml or name", output))
	}
	selector, err := labels.Parse(cmd.Flag("selector").Value.String())
	if err != nil {
		return exit.With(exit.Usage, fmt.Errorf("--selector: %w", err))
	}
	everywhere, err := cmd.Flags().GetBool("all-namespaces")
	if err != nil {
		return err
	}
	all, err := objects(d, k)
	if err != nil {
		return err
	}
	var found []entry
	missing := slices.Clone(names)
	for _, e := range all {
		if !k.cluster && !everywhere && e.Namespace != namespaceOf(cmd) || len(names) > 0 && !slices.Contains(names, e.Name) {
			continue
		}
		if !selector.Empty() && !selector.Matches(labelsOf(e)) {
			continue
		}
		found = append(found, e)
		missing = slices.DeleteFunc(missing, func(n string) bool { return n == e.Name })
	}
	for _, n := range missing {
		fmt.Fprintf(cmd.ErrOrStderr(), "error: %v\n", notFound(k, n))
	}
	if err := show(cmd, d, k, found, output, everywhere && !k.cluster, len(names) == 1); err != nil {
		return err
	}
	if len(missing) > 0 {
		return exit.Silent(exit.Failed)
	}
	return nil
}

// getMany shows one kind after the other.
func getMany(cmd *cobra.Command, words, names []string) error {
	for i, w := range words {
		if i > 0 && cmd.Flag("output").Value.String() != "name" {
			fmt.Fprintln(cmd.OutOrStdout())
		}
		if err := get(cmd, append([]string{w}, names...)); err != nil {
			return err
		}
	}
	return nil
}

func labelsOf(e entry) labels.Set {
	if m, ok := e.Value.(metav1.Object); ok {
		return m.GetLabels()
	}
	var h struct {
		Metadata struct{ Labels map[string]string }
	}
	if json.Unmarshal(e.JSON, &h) != nil {
		return nil
	}
	return h.Metadata.Labels
}

func show(cmd *cobra.Command, d parts.Demo, k kind, found []entry, output string, withNamespace, one bool) error {
	out := cmd.OutOrStdout()
	switch output {
	case "json", "yaml":
		return encode(out, found, output, one)
	case "name":
		for _, e := range found {
			fmt.Fprintln(out, k.full(e.Name))
		}
		return nil
	}
	if len(found) == 0 {
		if !one {
			place := "demo " + d.Name
			if !k.cluster && !withNamespace {
				place = namespaceOf(cmd) + " namespace"
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "No resources found in %s.\n", place)
		}
		return nil
	}
	pods, err := read(d.Cluster())
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	head, row := table(k, pods, output == "wide")
	if withNamespace {
		head = append([]string{"NAMESPACE"}, head...)
	}
	fmt.Fprintln(w, strings.Join(head, "\t"))
	for _, e := range found {
		cells := row(e)
		if withNamespace {
			cells = append([]string{e.Namespace}, cells...)
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	return w.Flush()
}

// encode prints one object, or a List of them.
func encode(out io.Writer, found []entry, output string, one bool) error {
	items := []json.RawMessage{}
	for _, e := range found {
		items = append(items, e.JSON)
	}
	var v any = map[string]any{"apiVersion": "v1", "kind": "List", "items": items}
	if one && len(items) == 1 {
		v = items[0]
	}
	text, err := json.MarshalIndent(v, "", "    ")
	if err == nil && output == "yaml" {
		text, err = yaml.JSONToYAML(text)
	}
	if err != nil {
		return fmt.Errorf("encode objects: %w", err)
	}
	if _, err := fmt.Fprintln(out, strings.TrimRight(string(text), "\n")); err != nil {
		return fmt.Errorf("print objects: %w", err)
	}
	return nil
}

// table is how objects of a kind look in a row.
func table(k kind, cluster []entry, wide bool) (head []string, row func(entry) []string) {
	switch k.name {
	case object.KindPod:
		return podTable(wide)
	case object.KindService:
		return serviceTable(wide)
	case object.KindDeployment:
		return deploymentTable(cluster)
	case object.KindNode:
		return nodeTable(wide)
	case object.KindNamespace:
		return []string{"NAME", "STATUS", "AGE"}, func(e entry) []string { return []string{e.Name, "Active", age(e.modified)} }
	}
	return []string{"NAME", "API", "AGE"}, func(e entry) []string {
		return []string{e.Name, e.APIVersion, age(e.modified)}
	}
}

func podTable(wide bool) ([]string, func(entry) []string) {
	head := []string{"NAME", "READY", "STATUS", "RESTARTS", "AGE"}
	if wide {
		head = append(head, "IP", "NODE")
	}
	return head, func(e entry) []string {
		p := e.Value.(*corev1.Pod)
		ready := 0
		for _, c := range p.Status.ContainerStatuses {
			if c.Ready && p.Status.Phase == corev1.PodRunning {
				ready++
			}
		}
		out := []string{
			p.Name, fmt.Sprintf("%d/%d", ready, len(p.Spec.Containers)), podStatus(p), "0", age(p.CreationTimestamp.Time),
		}
		if wide {
			out = append(out, addresses(p), p.Spec.NodeName)
		}
		return out
	}
}

func podStatus(p *corev1.Pod) string {
	switch {
	case p.DeletionTimestamp != nil:
		return "Terminating"
	case p.Status.Reason != "":
		return p.Status.Reason
	}
	return string(p.Status.Phase)
}

func addresses(p *corev1.Pod) string {
	var out []string
	for _, ip := range p.Status.PodIPs {
		out = append(out, ip.IP)
	}
	return strings.Join(out, ",")
}

func serviceTable(wide bool) ([]string, func(entry) []string) {
	head := []string{"NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"}
	if wide {
		head = append(head, "SELECTOR")
	}
	return head, func(e entry) []string {
		s := e.Value.(*corev1.Service)
		var ports []string
		for _, p := range s.Spec.Ports {
			ports = append(ports, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		}
		out := []string{s.Name, string(s.Spec.Type), strings.Join(s.Spec.ClusterIPs, ","), "<none>", strings.Join(ports, ","), age(e.modified)}
		if wide {
			out = append(out, labels.FormatLabels(s.Spec.Selector))
		}
		return out
	}
}

func deploymentTable(cluster []entry) ([]string, func(entry) []string) {
	return []string{"NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"}, func(e entry) []string {
		d := e.Value.(*appsv1.Deployment)
		want, have, ready := int32(1), 0, 0
		if d.Spec.Replicas != nil {
			want = *d.Spec.Replicas
		}
		for _, c := range cluster {
			p, ok := c.Value.(*corev1.Pod)
			if !ok || p.Namespace != d.Namespace || owner(p) != d.Name {
				continue
			}
			have++
			if p.Status.Phase == corev1.PodRunning {
				ready++
			}
		}
		return []string{d.Name, fmt.Sprintf("%d/%d", ready, want), fmt.Sprint(have), fmt.Sprint(ready), age(e.modified)}
	}
}

func nodeTable(wide bool) ([]string, func(entry) []string) {
	head := []string{"NAME", "STATUS", "AGE"}
	if wide {
		head = append(head, "INTERNAL-IP", "POD-CIDRS")
	}
	return head, func(e entry) []string {
		n := e.Value.(*corev1.Node)
		out := []string{n.Name, "Ready", age(e.modified)}
		if wide {
			var ips []string
			for _, a := range n.Status.Addresses {
				ips = append(ips, a.Address)
			}
			out = append(out, strings.Join(ips, ","), strings.Join(n.Spec.PodCIDRs, ","))
		}
		return out
	}
}

func age(since time.Time) string { return duration.HumanDuration(time.Since(since)) }
