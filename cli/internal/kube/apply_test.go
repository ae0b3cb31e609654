package kube

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDocumentsKeepTheirOwnWords(t *testing.T) {
	const text = `# The first comment stays.
apiVersion: v1
kind: Namespace
metadata:
  name: far
---
apiVersion: v1
kind: Pod
metadata: {name: p} # and this one
spec:
  containers: [{name: app, image: weir-demo-client:v1}]
---
apiVersion: v1
kind: Pod
metadata: {name: bad}
spec: {containres: []}
`
	docs := split("f.yaml", []byte(text), "")
	if len(docs) != 3 {
		t.Fatalf("%d documents, want 3", len(docs))
	}
	parts := strings.Split(text, "---\n")
	var got []string
	for _, d := range docs {
		if d.refused == nil {
			got = append(got, string(d.text))
		}
	}
	if diff := cmp.Diff(parts[:2], got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	bad := docs[2]
	if bad.refused == nil || !strings.Contains(bad.refused.Error(), "containres") || !strings.Contains(bad.refused.Error(), "f.yaml:13") {
		t.Errorf("the bad document: %v, want its field, file and line", bad.refused)
	}
}

func TestANamespaceIsFilledInAndNotChanged(t *testing.T) {
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p%s}\nspec: {containers: [{name: app, image: weir-demo-client:v1}]}\n"
	docs := split("f.yaml", []byte(strings.Replace(pod, "%s", "", 1)), "far")
	if len(docs) != 1 || docs[0].refused != nil || docs[0].object.Namespace != "far" || !strings.Contains(string(docs[0].text), "namespace: far") {
		t.Errorf("without one: %+v", docs)
	}
	docs = split("f.yaml", []byte(strings.Replace(pod, "%s", ", namespace: near", 1)), "far")
	if len(docs) != 1 || docs[0].refused == nil || !strings.Contains(docs[0].refused.Error(), "does not match") {
		t.Errorf("with another one: %+v", docs)
	}
}

func TestKindsByEveryName(t *testing.T) {
	for word, want := range map[string]string{
		"pods": "pod", "po": "pod", "svc": "service", "deploy": "deployment.apps", "Deployment": "deployment.apps",
		"deployments.apps": "deployment.apps", "cnp": "ciliumnetworkpolicy.cilium.io", "netpol": "networkpolicy.networking.k8s.io", "ns": "namespace",
	} {
		k, err := kindOf(word)
		if err != nil || k.typeName() != want {
			t.Errorf("kindOf(%q) = %s, %v; want %s", word, k.typeName(), err, want)
		}
	}
	if _, err := kindOf("configmap"); err == nil {
		t.Error("configmap is known")
	}
}
