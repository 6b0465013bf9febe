"""The ranks of a run: what each holds and computes, and what they exchange on the CPU. `ascend` has what is Ascend's alone."""
