package policy

// RecompileAnew is Recompile where no round knows anything of those before it.
func RecompileAnew(before Before, c *Cluster, n Node, locals []Local, a *Allocator) *Result {
	return recompile(before, c, n, locals, a, func(*rounds) *rounds { return newRounds(c) })
}
