// Weir-cni is the CNI plugin that container runtimes run; see package cni.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"

	"github.com/weirnet/weir/cni"
	"github.com/weirnet/weir/controlplane/build"
)

func main() {
	skel.PluginMainFuncs(cni.Funcs(), cni.Versions(), cni.About+"\n"+build.Read().String())
}
