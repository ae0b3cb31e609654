package kube

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"weir.dev/weir/cli/internal/exit"
	"weir.dev/weir/cli/internal/parts"
	"weir.dev/weir/engine/object"
)

func describeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "describe KIND NAME", Short: "Tell an object and how it is", Args: cobra.RangeArgs(1, 2),
		Example: "  weir describe pod app2-d0b4f6c9g2-gigeh\n  weir describe cnp/rule1",
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := demoOf(cmd)
			if err != nil {
				return err
			}
			k, names, err := target(args)
			if err != nil {
				return err
			}
			all, err := objects(d, k)
			if err != nil {
				return err
			}
			refused, err := refusals(d)
			if err != nil {
				return err
			}
			found := 0
			for _, e := range all {
				if (!k.cluster && e.Namespace != namespaceOf(cmd)) || len(names) > 0 && !slices.Contains(names, e.Name) {
					continue
				}
				if found++; found > 1 {
					fmt.Fprint(cmd.OutOrStdout(), "\n\n")
				}
				if err := describe(cmd.OutOrStdout(), e, refused[e.Key()]); err != nil {
					return err
				}
			}
			if found == 0 && len(names) > 0 {
				return notFound(k, names[0])
			}
			if found == 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "No resources found in %s namespace.\n", namespaceOf(cmd))
				return exit.Silent(exit.Failed)
			}
			return nil
		},
	}
	namespaceFlag(cmd)
	return cmd
}

// refusals are the controller's reasons by object.
func refusals(d parts.Demo) (map[string]string, error) {
	list, err := d.Refused()
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, r := range list {
		out[object.Object{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}.Key()] = r.Reason
	}
	return out, nil
}

func describe(w io.Writer, e entry, refused string) error {
	line := func(name, value string) { fmt.Fprintf(w, "%-16s%s\n", name+":", value) }
	line("Name", e.Name)
	if e.Namespace != "" {
		line("Namespace", e.Namespace)
	}
	line("Kind", e.Kind+" ("+e.APIVersion+")")
	line("Source", e.Source.String())
	if refused != "" {
		line("Refused", refused)
	}
	if set := labelsOf(e); len(set) > 0 {
		line("Labels", labels.FormatLabels(set))
	}
	switch v := e.Value.(type) {
	case *corev1.Pod:
		line("Node", v.Spec.NodeName)
		line("Status", podStatus(v))
		if v.Status.Message != "" {
			line("Message", v.Status.Message)
		}
		line("IPs", addresses(v))
		if o := owner(v); o != "" {
			line("Controlled By", "Deployment/"+o)
		}
		for _, c := range v.Spec.Containers {
			var ports []string
			for _, p := range c.Ports {
				ports = append(ports, fmt.Sprint(p.ContainerPort))
			}
			line("Container", fmt.Sprintf("%s  image %s  ports %s", c.Name, c.Image, cmp.Or(strings.Join(ports, ","), "<none>")))
		}
	case *corev1.Service:
		line("IPs", strings.Join(v.Spec.ClusterIPs, ","))
		line("Selector", labels.FormatLabels(v.Spec.Selector))
		for _, p := range v.Spec.Ports {
			line("Port", fmt.Sprintf("%s %d/%s → %s", p.Name, p.Port, p.Protocol, p.TargetPort.String()))
		}
	default:
		text, err := yaml.JSONToYAML(e.JSON)
		if err != nil {
			return fmt.Errorf("describe %s: %w", e.Name, err)
		}
		fmt.Fprintf(w, "\n%s", text)
	}
	return nil
}
