"""What needs Ascend is refused on the CPU, by the checks of the commands and by the backend itself."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.toy import toy_config

from pangu_sigma.config import ConfigError
from pangu_sigma.train.backend import CpuBackend
from pangu_sigma.train.supported import check_cpu


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"train": {"compute_dtype": "half"}, "parallel": {"chip": "910b"}},
            r"^train\.compute_dtype=bfloat16 needs Ascend: MindSpore multiplies no bfloat16 on the CPU; set it to float32$",
        ),
        ({"parallel": {"tensor": 2}}, r"^parallel\.tensor=2 needs Ascend: .*; set it to 1$"),
        (
            {"parallel": {"stages": 2}, "train": {"accumulation": 2, "batch_size": 8}},
            r"^parallel\.stages=2 needs Ascend: .*; set it to 1$",
        ),
    ],
)
def test_what_needs_ascend_is_refused_on_the_cpu(sections: dict[str, dict[str, Any]], message: str):
    config = toy_config(**sections)
    for check in (check_cpu, CpuBackend().connect):
        with pytest.raises(ConfigError, match=message):
            check(config)


def test_both_types_that_the_cpu_multiplies_are_taken():
    for dtype in ("float32", "float16"):
        check_cpu(toy_config(train={"compute_dtype": dtype}))
