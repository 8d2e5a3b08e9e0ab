package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// versionsOnly asks for objects' metadata alone.
const versionsOnly = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

// A connection that broke since it was used last is no server that is away.
const (
	tries    = 3
	tryAgain = 200 * time.Millisecond
)

// patience with an API server that says nothing, while a pod waits.
const patience = 2 * time.Second

// Sync reads from the API server which versions of all objects are there now, waits until
// the watches have brought them, and returns the revision that holds them; Run has called
// back with it. A watch alone does not tell how far behind it is. It is an error if the API
// server does not answer.
func (s *Source) Sync(ctx context.Context) (uint64, error) {
	group, ctx := errgroup.WithContext(ctx)
	for _, k := range s.stores.kinds() {
		group.Go(func() error {
			version, listed, err := s.versionsTried(ctx, k, "")
			if err != nil {
				return fmt.Errorf("API server %s: list %s: %s", s.Client.Host, k.resource, reason(err))
			}
			return s.await(ctx, func() bool { return !k.store.behind(version, listed) })
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	return s.awaitPublished(context.WithoutCancel(ctx))
}

// SyncPolicies waits until the watch has brought what policies a namespace has now, for a
// pod that begins there: pods and policies are watched apart, and the one may be ahead of
// the other. An API server that does not answer has nothing newer to say; that is no error.
func (s *Source) SyncPolicies(ctx context.Context, namespace string) error {
	for _, k := range s.stores.kinds() {
		if k.store != s.stores.policies {
			continue
		}
		ask, cancel := context.WithTimeout(ctx, patience)
		_, listed, err := s.versionsTried(ask, k, namespace)
		cancel()
		if err != nil {
			s.health.note(call{k.resource, "list"}, err)
			return nil
		}
		if err := s.await(ctx, func() bool { return s.stores.policies.has(listed) }); err != nil {
			return fmt.Errorf("%s of %s are newer in API server %s than its watch has brought: %w", k.resource, namespace, s.Client.Host, err)
		}
	}
	_, err := s.awaitPublished(ctx)
	return err
}

// versionsTried are versions from a server that may have to be asked again.
func (s *Source) versionsTried(ctx context.Context, k kind, namespace string) (version uint64, listed map[types.NamespacedName]uint64, err error) {
	version, listed, err = s.versions(ctx, k, namespace)
	for try := 1; try < tries && classify(err) == away && ctx.Err() == nil; try++ {
		select {
		case <-ctx.Done():
		case <-time.After(tryAgain):
		}
		version, listed, err = s.versions(ctx, k, namespace)
	}
	return version, listed, err
}

// versions of a kind's objects, of one namespace or all, from a consistent read.
func (s *Source) versions(ctx context.Context, k kind, namespace string) (version uint64, listed map[types.NamespacedName]uint64, err error) {
	body, err := request(s.Client.groups[k.group], k, metav1.ListOptions{}).Namespace(namespace).SetHeader("Accept", versionsOnly).Stream(ctx)
	if err != nil {
		return 0, nil, err
	}
	defer body.Close()
	return readVersions(body)
}

// objectMeta is what is read of an object's metadata, or a list's.
type objectMeta struct {
	Namespace       string `json:"namespace"`
	Name            string `json:"name"`
	ResourceVersion string `json:"resourceVersion"`
}

// readVersions of a list as JSON, an object at a time: the metadata of all pods of a large cluster
// are tens of MiB.
func readVersions(from io.Reader) (version uint64, listed map[types.NamespacedName]uint64, err error) {
	var meta objectMeta
	listed = map[types.NamespacedName]uint64{}
	d := json.NewDecoder(from)
	if err := expect(d, json.Delim('{')); err != nil {
		return 0, nil, err
	}
	for d.More() {
		name, err := d.Token()
		switch {
		case err != nil:
		case name == "metadata":
			err = d.Decode(&meta)
		case name == "items":
			err = readItems(d, listed)
		default:
			var skipped json.RawMessage
			err = d.Decode(&skipped)
		}
		if err != nil {
			return 0, nil, err
		}
	}
	if err := expect(d, json.Delim('}')); err != nil {
		return 0, nil, err
	}
	version, err = parseVersion(meta.ResourceVersion)
	return version, listed, err
}

func readItems(d *json.Decoder, listed map[types.NamespacedName]uint64) error {
	switch begin, err := d.Token(); {
	case err != nil:
		return err
	case begin == nil: // there are none
		return nil
	case begin != json.Delim('['):
		return fmt.Errorf("a list's items begin with %v", begin)
	}
	for d.More() {
		var item struct {
			Metadata objectMeta `json:"metadata"`
		}
		if err := d.Decode(&item); err != nil {
			return err
		}
		version, err := parseVersion(item.Metadata.ResourceVersion)
		if err != nil {
			return err
		}
		listed[types.NamespacedName{Namespace: item.Metadata.Namespace, Name: item.Metadata.Name}] = version
	}
	return expect(d, json.Delim(']'))
}

func expect(d *json.Decoder, want json.Delim) error {
	got, err := d.Token()
	if err == nil && got != want {
		err = fmt.Errorf("a list has %v where %v was to be", got, want)
	}
	return err
}

// await returns when done says so; it is called with the lock held, at first and whenever
// something changed.
func (s *Source) await(ctx context.Context, done func() bool) error {
	for {
		s.stores.Lock()
		ok, moved := done(), s.stores.moved
		s.stores.Unlock()
		if ok {
			return nil
		}
		select {
		case <-moved:
		case <-s.ended:
			return errors.New("the source has ended")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
