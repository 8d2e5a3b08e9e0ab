// Manifests writes the plain manifests that the chart renders to, with helm's own engine,
// for those who use kubectl alone.
package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
)

// manifest is a file of deploy/, made of some templates of the chart.
type manifest struct {
	file, head string
	templates  []string // in this order
	values     map[string]any
}

var manifests = []manifest{
	{"weir.yaml", "Weir with the chart's defaults: `kubectl apply -f weir.yaml`.", []string{"rbac.yaml", "config.yaml", "daemonset.yaml"}, nil},
	{"uninstall.yaml", "Takes Weir off every node: apply it, wait for the rollout, then delete it.", []string{"rbac.yaml", "daemonset.yaml"}, map[string]any{"uninstall": true}},
	{"rbac.yaml", "The account of the agent alone, and what it may do.", []string{"rbac.yaml"}, nil},
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: manifests DEPLOY_DIR")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		os.Exit(1)
	}
}

func write(deploy string) error {
	var errs []error
	for _, m := range manifests {
		text, err := m.text(filepath.Join(deploy, "chart"))
		if err == nil {
			err = os.WriteFile(filepath.Join(deploy, m.file), []byte(text), 0o644)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (m manifest) text(chart string) (string, error) {
	rendered, err := render(chart, m.values)
	if err != nil {
		return "", fmt.Errorf("%s: %w", m.file, err)
	}
	out := "# Rendered from chart/ by `make manifests`. " + m.head + "\n"
	for _, name := range m.templates {
		out += "---\n" + strings.TrimSpace(rendered[name]) + "\n"
	}
	return out, nil
}

// render is what `helm install weir CHART -n kube-system` would apply, by template.
func render(dir string, values map[string]any) (map[string]string, error) {
	c, err := loader.Load(dir)
	if err != nil {
		return nil, fmt.Errorf("load chart: %w", err)
	}
	options := chartutil.ReleaseOptions{Name: "weir", Namespace: "kube-system", Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(c, values, options, chartutil.DefaultCapabilities)
	if err != nil {
		return nil, fmt.Errorf("values: %w", err)
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return nil, fmt.Errorf("render: %w", err)
	}
	out := map[string]string{}
	for name, text := range files {
		out[path.Base(name)] = text
	}
	return out, nil
}
