"""PanGu-Σ: sparse language models with Random Routed Experts on MindSpore."""

import os

# MindSpore crashes when another package has loaded protobuf's compiled backend before it.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
