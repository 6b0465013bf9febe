"""One operator, three implementations: the emulated Ascend C kernel, the CPU kernel and the NumPy oracle, on the same tables.

Sums are compared by value: a dropped token adds +0 on the device, so a residual of -0 comes out as +0 there.
"""

from __future__ import annotations

import numpy as np
import pytest

from ascend_ops.expert_dispatch import combine_oracle, dispatch_oracle, plan_oracle

CASES = {  # tokens, hidden, experts
    "one row": (1, 33, 1),
    "one column": (70, 1, 3),
    "a tail of a block": (40, 100, 16),
    "several column tiles": (3, 60_000, 2),
    "empty experts": (12, 64, 640),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("target", [("910A", "float32"), ("910A", "float16"), ("910B", "float32"), ("910B", "float16")])
def test_emulated_equals_cpu_equals_oracle(emulators, call_kernel, target: tuple[str, str], case: str):
    tokens, hidden, experts = CASES[case]
    rng = np.random.default_rng(tokens)
    emulator, dtype = emulators[target], np.dtype(target[1])
    ids = rng.integers(0, experts, tokens).astype(np.int32)
    order, inverse, _ = plan_oracle(ids, experts)

    x, residual = (rng.standard_normal((tokens, hidden)).astype(dtype) for _ in range(2))
    order[rng.integers(0, tokens)] = -1  # a row that nobody takes
    rows, cpu_rows = dispatch_oracle(x, order), np.empty_like(x)
    assert call_kernel("ExpertDispatch", x, order, cpu_rows) == 0
    assert np.array_equal(emulator.expert_dispatch(x, order).view(np.uint8), rows.view(np.uint8))
    assert np.array_equal(cpu_rows.view(np.uint8), rows.view(np.uint8))

    inverse[rng.integers(0, tokens)] = -1  # a token without a row
    cpu_sum = np.empty_like(x)
    assert call_kernel("ExpertCombine", rows, inverse, residual, cpu_sum) == 0
    summed = combine_oracle(rows, inverse, residual)
    assert np.array_equal(emulator.expert_combine(rows, inverse, residual), summed)
    assert np.array_equal(cpu_sum, summed)
