"""What only NPUs need: no folder of a lower floor imports it, and no run on CPUs meets it."""
