package otlp

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// Protocols.
const (
	GRPC = "grpc"
	HTTP = "http"
)

// Options say where a collector is, and who tells it.
type Options struct {
	Endpoint    *url.URL // of ParseEndpoint
	Protocol    string
	CA          string // PEM files; "" = the system's authorities
	Cert, Key   string // of the node, for a collector that asks; "" = none
	HeadersFile string // a line "name: value" each; "" = none
	Gzip        bool
	Fields      Fields // of flows; zero = all

	Node, Version string
}

// timeout is how long one request may take.
const timeout = 10 * time.Second

// ParseEndpoint reads a collector's URL: https, or http for one without TLS. A port must be
// given; a path only has a meaning with HTTP, where v1/logs and v1/metrics follow it.
func ParseEndpoint(text, protocol string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return nil, errors.New("write http://HOST:PORT, or https://HOST:PORT for TLS")
	case u.Port() == "":
		return nil, errors.New("it has no port: collectors take gRPC at 4317 and HTTP at 4318")
	case u.User != nil:
		return nil, errors.New("it must not hold a password: headers may")
	case u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("it must end with the path")
	case protocol == GRPC && strings.Trim(u.Path, "/") != "":
		return nil, errors.New("with gRPC it has no path")
	}
	if n, err := net.LookupPort("tcp", u.Port()); err != nil || n == 0 {
		return nil, fmt.Errorf("%s is no port", u.Port())
	}
	u.Path = strings.TrimRight(u.Path, "/")
	return u, nil
}

// tls are the credentials, read anew at each call: files are replaced while we run.
func (o *Options) tls() (*tls.Config, error) {
	if o.Endpoint.Scheme != "https" {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: o.Endpoint.Hostname()}
	if o.CA != "" {
		pem, err := os.ReadFile(o.CA)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", o.CA)
		}
	}
	if o.Cert != "" {
		own, err := tls.LoadX509KeyPair(o.Cert, o.Key)
		if err != nil {
			return nil, fmt.Errorf("%s and %s: %w", o.Cert, o.Key, err)
		}
		if now := time.Now(); now.After(own.Leaf.NotAfter) {
			return nil, fmt.Errorf("%s expired at %s", o.Cert, own.Leaf.NotAfter.UTC().Format(time.RFC3339))
		}
		c.Certificates = []tls.Certificate{own}
	}
	return c, nil
}

// headers go with each request. Errors do not show their values.
func (o *Options) headers() (map[string]string, error) {
	if o.HeadersFile == "" {
		return nil, nil
	}
	text, err := os.ReadFile(o.HeadersFile)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if name = strings.ToLower(strings.TrimSpace(name)); !ok || !isToken(name) {
			return nil, fmt.Errorf("%s:%d: not a line NAME: VALUE", o.HeadersFile, n)
		}
		out[name] = strings.TrimSpace(value)
	}
	return out, nil
}

// isToken reports whether s can be the name of a header.
func isToken(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
}

// resource is who tells.
func (o *Options) resource() *resource.Resource {
	return resource.NewWithAttributes(semconv.SchemaURL,
		semconv.ServiceName("weir-agent"), semconv.ServiceVersion(o.Version), semconv.K8SNodeName(o.Node),
		attribute.String("service.instance.id", o.Node))
}
