package policy

import (
	"encoding/json"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

func (s *scene) compileWith(ids *Allocator) *Result {
	c := &Cluster{Services: map[types.NamespacedName]*corev1.Service{}}
	for _, x := range append(s.others, s.service) {
		c.Services[types.NamespacedName{Namespace: x.Namespace, Name: x.Name}] = x
	}
	return Compile(c, Node{Name: "here"}, nil, ids)
}

// A Service has one number for all its ports and addresses, and keeps it; nobody else gets it,
// not after the Service went, nor after its name was forgotten or the agent started again.
func TestServiceNumbers(t *testing.T) {
	ids, meant := NewAllocator(), map[uint16]string{}
	s := newScene()
	s.service.Spec.Ports = append(s.service.Spec.Ports, corev1.ServicePort{Name: "more", Port: 81})
	rounds := keepNames + 100
	var web uint16
	for i := range rounds {
		passing := newScene().service
		passing.Name = fmt.Sprint("passing", i)
		passing.Spec.ClusterIPs, passing.Spec.ClusterIP = []string{"10.96.1.1"}, "10.96.1.1"
		s.others = []*corev1.Service{passing}
		if i%1000 == 0 {
			text, err := json.Marshal(ids)
			if err != nil {
				t.Fatal(err)
			}
			ids = NewAllocator()
			if err := json.Unmarshal(text, ids); err != nil {
				t.Fatal(err)
			}
		}
		for f, service := range s.compileWith(ids).State.Services {
			want := "shop/web"
			if f.Addr.String() == "10.96.1.1" {
				want = "shop/" + passing.Name
			}
			if was, seen := meant[service.Number]; service.Number == 0 || seen && was != want {
				t.Fatalf("%s has number %d, which was %q", want, service.Number, was)
			}
			meant[service.Number] = want
			if name, ok := ids.Service(service.Number); !ok || name.String() != want {
				t.Fatalf("number %d of %s is %v %v", service.Number, want, name, ok)
			}
			if want == "shop/web" && web != 0 && web != service.Number {
				t.Fatalf("shop/web has number %d, had %d", service.Number, web)
			} else if want == "shop/web" {
				web = service.Number
			}
		}
		ids.Forget()
	}
	if len(meant) != rounds+1 {
		t.Errorf("%d numbers, want %d", len(meant), rounds+1)
	}
	known := 0
	for n, name := range meant {
		if is, ok := ids.Service(n); ok && is.String() != name {
			t.Errorf("number %d is %s, was %s", n, is, name)
		} else if ok {
			known++
		}
	}
	if want := keepNames + 1; known < want || known > want+1 {
		t.Errorf("%d names are known, want %d that went last and one in use", known, want)
	}
}

// Where all numbers were given out, Services have none, and those that have one keep it.
func TestServiceNumbersRunOut(t *testing.T) {
	ids := NewAllocator()
	ids.services.Next = servicesMost
	s := newScene()
	s.compileWith(ids)
	late := newScene().service
	late.Name, late.Spec.ClusterIPs, late.Spec.ClusterIP = "zoo", []string{"10.96.1.1"}, "10.96.1.1"
	s.others = []*corev1.Service{late}
	for f, service := range s.compileWith(ids).State.Services {
		want := uint16(servicesMost)
		if f.Addr.String() == "10.96.1.1" {
			want = 0
		}
		if service.Number != want {
			t.Errorf("%s: number %d, want %d", f.Addr, service.Number, want)
		}
	}
	if name, ok := ids.Service(0); ok {
		t.Errorf("0 is %s", name)
	}
}
