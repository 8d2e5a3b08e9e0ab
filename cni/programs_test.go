package cni_test

func (n *node) loadPrograms() {}
func (n *node) openPrograms() {}
