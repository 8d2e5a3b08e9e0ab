// Manifests writes the plain manifests that the chart renders to, with helm's own engine,
// for those who use kubectl alone; or, with -set, prints what installs Weir with other values.
//
//	manifests DEPLOY_DIR
//	manifests -set k8sServiceHost=192.0.2.1,uninstall=true DEPLOY_DIR
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/strvals"
)

// manifest is a file of deploy/, made of some templates of the chart.
type manifest struct {
	file, head string
	templates  []string // in this order
	values     map[string]any
}

var manifests = []manifest{
	{"weir.yaml", "Weir with the chart's defaults: `kubectl apply -f weir.yaml`.", []string{"rbac.yaml", "announce.yaml", "config.yaml", "daemonset.yaml"}, nil},
	{"uninstall.yaml", "Takes Weir off every node: apply it, wait for the rollout, then delete it.", []string{"rbac.yaml", "announce.yaml", "daemonset.yaml"}, map[string]any{"uninstall": true}},
	{"rbac.yaml", "The account of the agent alone, and what it may do.", []string{"rbac.yaml", "announce.yaml"}, nil},
}

func main() {
	set := flag.String("set", "", "values as helm's --set takes them: print the manifest, write nothing")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: manifests [-set VALUES] DEPLOY_DIR")
		os.Exit(2)
	}
	var err error
	if *set != "" {
		err = show(os.Stdout, flag.Arg(0), *set)
	} else {
		err = write(flag.Arg(0))
	}
	if err != nil {
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

// show prints what installs Weir, or takes it off, with these values.
func show(to io.Writer, deploy, set string) error {
	values, err := strvals.Parse(set)
	if err != nil {
		return fmt.Errorf("-set: %w", err)
	}
	m := manifest{"-", "Values: " + set, []string{"rbac.yaml", "announce.yaml", "config.yaml", "daemonset.yaml", "podmonitor.yaml"}, values}
	text, err := m.text(filepath.Join(deploy, "chart"))
	if err == nil {
		_, err = io.WriteString(to, text)
	}
	return err
}

func (m manifest) text(chart string) (string, error) {
	rendered, err := render(chart, m.values)
	if err != nil {
		return "", fmt.Errorf("%s: %w", m.file, err)
	}
	out := "# Rendered from chart/ by `make manifests`. " + m.head + "\n"
	for _, name := range m.templates {
		if text := strings.TrimSpace(rendered[name]); text != "" {
			out += "---\n" + text + "\n"
		}
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
