"""PanGu-Σ: sparse language models with Random Routed Experts on MindSpore."""

import os

# MindSpore crashes when another package has loaded protobuf's compiled backend before it.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

# The kernels of `ascend_ops` run on OpenMP threads, MindSpore on threads of its own. By default OpenMP's keep spinning for
# milliseconds after a kernel and hold the cores that MindSpore's next operators need: a sixth of a step on two cores. It must be
# set before MindSpore is imported, which loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
