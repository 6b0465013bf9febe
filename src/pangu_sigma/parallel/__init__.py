"""The ranks of a run: what each holds and computes, and their collectives on the CPU. `ascend/` has those of Ascend."""
