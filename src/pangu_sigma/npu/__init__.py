"""Everything that only NPUs need: the step, how ranks divide the network, the plan of a cluster, and the checks of its hosts."""
