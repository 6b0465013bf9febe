"""Input arrays of one training step, by name.

Inside a graph they are plain arguments, because MindSpore 2.9 silently gives a NamedTuple that is built inside `construct` a
gradient of zero. A test ties the fields to the arguments of `TrainStep.construct`.

Shape suffixes: G micro-batches of an update, B sequences of a micro-batch, S sequence length, T = B·S, M blocks (sequences of one
domain), N segments of the RRE layers, A active experts of one.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class StepArrays(NamedTuple):
    """Input arrays of a training step, in the order of `TrainStep.construct` after the learning rate: NumPy arrays or tensors."""

    rows_GBS: Any
    """Row of each token in the flattened embedding slots, int32."""
    positions_GBS: Any
    """Position of each token in its document, int32."""
    documents_GBS: Any
    """Number of the document of each token in its sequence, int32."""
    slots_GM: Any
    """Embedding slot of each block, int32."""
    labels_GBS: Any
    """Row of the next token within its slot, int32."""
    weights_GBS: Any
    """Weight of each token in the loss of the whole update, float32."""
    draws_GB4: Any
    """Random seed of the dropout masks of each sequence, int32 (`draws_of`)."""
    order_GT: Any
    inverse_GT: Any
    offsets_GA1: Any
    """Routing plan of each segment, int32: tuples over the N segments. See `RoutingPlan`."""
    e_GTH: Any
    """Rows of each token (`model.rows`) side by side, float32; () without rows."""
    active_A: Any
    used_A1: Any
    """Active experts of each segment, and offsets of their tokens in all micro-batches and ranks of the group, int32: as above."""

    def of_micro_batch(self, micro_batch: int) -> tuple[Any, ...]:
        """Return the input arrays of `NextTokenLoss` for one micro-batch (a forward-backward pass), without expert weights."""
        fields = self[: len(MICRO_BATCH_FIELDS)]
        return tuple(tuple(a[micro_batch] for a in f) if isinstance(f, tuple) else f[micro_batch] for f in fields)


MICRO_BATCH_FIELDS = StepArrays._fields[: StepArrays._fields.index("active_A")]
"""Fields of `StepArrays` that have an axis for micro-batches."""
