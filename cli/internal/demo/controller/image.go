package controller

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Program is what a container of an image runs.
type Program struct {
	Binary string // in the folder of binaries
	Args   []string
}

// programs are the images that a demo can run, all of them.
func programs() map[string]Program {
	return map[string]Program{
		"weir-demo-httpd:v1":  {Binary: "weir-demo-app", Args: []string{"serve"}},
		"weir-demo-client:v1": {Binary: "weir-demo-app", Args: []string{"idle"}},
	}
}

// ProgramOf is what the container runs; ok is false if its image is unknown.
func ProgramOf(c corev1.Container) (p Program, ok bool) {
	p, ok = programs()[c.Image]
	if ok && len(c.Args) > 0 {
		p.Args = append(slices.Clone(p.Args), c.Args...)
	}
	return p, ok
}

// Runnable says why the demo cannot run the pod, or nothing.
func Runnable(pod *corev1.Pod) string {
	if len(pod.Spec.Containers) == 0 {
		return "spec.containers is empty"
	}
	if pod.Spec.HostNetwork {
		return "spec.hostNetwork is not supported in the demo"
	}
	for i, c := range pod.Spec.Containers {
		if _, ok := ProgramOf(c); !ok {
			known := slices.Sorted(maps.Keys(programs()))
			return fmt.Sprintf("spec.containers[%d].image: unknown image %q: the demo knows %s", i, c.Image, strings.Join(known, ", "))
		}
		if len(c.Command) > 0 {
			return fmt.Sprintf("spec.containers[%d].command is not supported in the demo: an image runs its own program; use args", i)
		}
	}
	return ""
}
