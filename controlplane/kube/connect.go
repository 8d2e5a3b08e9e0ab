package kube

import (
	"errors"
	"fmt"
	"net/http"
	"os"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// scheme has the groups that are used and no others: the client set of everything costs
// tens of MiB.
var scheme = runtime.NewScheme()

func init() {
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, networkingv1.AddToScheme, discoveryv1.AddToScheme, coordinationv1.AddToScheme} {
		utilruntime.Must(add(scheme))
	}
}

// Client is a way to an API server. Nothing was sent over it yet.
type Client struct {
	Host   string // URL of the API server
	InPod  bool   // that is what a pod's environment says
	groups map[schema.GroupVersion]rest.Interface
}

// Connect reads how to reach the API server: from a kubeconfig file (its current
// context), or, if kubeconfig is empty, from what a pod is given: the environment's
// KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT, and the service account's token.
func Connect(kubeconfig, userAgent string) (*Client, error) {
	config, err := load(kubeconfig)
	if err != nil {
		return nil, err
	}
	config.UserAgent = userAgent
	config.QPS = -1 // a few watches; the server has its own limits
	config.WarningHandler = rest.NoWarnings{}
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.Wrap(func(rt http.RoundTripper) http.RoundTripper { return observing{rt} })
	transport, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", origin(kubeconfig), err)
	}
	c := &Client{Host: config.Host, InPod: kubeconfig == "", groups: map[schema.GroupVersion]rest.Interface{}}
	for _, gv := range []schema.GroupVersion{corev1.SchemeGroupVersion, networkingv1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion, coordinationv1.SchemeGroupVersion} {
		if c.groups[gv], err = client(*config, gv, transport); err != nil {
			return nil, fmt.Errorf("%s: %w", origin(kubeconfig), err)
		}
	}
	return c, nil
}

func load(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("no --kubeconfig is given and this is no pod: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", origin(""), err)
		}
		return config, nil
	}
	if _, err := os.Stat(kubeconfig); err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	file := &clientcmd.ClientConfigLoadingRules{ExplicitPath: kubeconfig}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(file, &clientcmd.ConfigOverrides{}).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		err = errors.New("names no cluster: it has no current-context, or that context no cluster")
	}
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig %s: %w", kubeconfig, err)
	}
	return config, nil
}

func origin(kubeconfig string) string {
	if kubeconfig == "" {
		return "service account of this pod"
	}
	return "--kubeconfig " + kubeconfig
}

func client(config rest.Config, gv schema.GroupVersion, transport *http.Client) (rest.Interface, error) {
	config.GroupVersion = &gv
	config.APIPath = "/apis"
	if gv.Group == "" {
		config.APIPath = "/api"
	}
	return rest.RESTClientForConfigAndClient(&config, transport)
}
