"""Tables of npu-smi as people published them (helpers/ascend_host.py has the others), with what the parser must not mistake."""

from __future__ import annotations

import pytest
from helpers.ascend_host import npu_smi_info

from pangu_sigma.chips import family
from pangu_sigma.npu.host.npu_smi import Npu, chip_called, npus_in

TWO_DIES = """\
+------------------------------------------------------------------------------------------------------------------+
| npu-smi 26.0.rc2                            Version: 26.0.rc2                                                    |
+---------------------------+---------------+----------------------------------------------------------------------+
| NPU   Name                | Health        | Power(W)             Temp(C)                 Hugepages-Usage(page)   |
| Chip  Phy-ID              | Bus-Id        | AICore(%)            Memory-Usage(MB)        HBM-Usage(MB)           |
+===========================+===============+======================================================================+
| 0     Ascend910           | OK            | 162.6                34                      0    / 0                |
| 0     0                   | 0000:9D:00.0  | 0                    0    / 0                3419 / 65536            |
+------------------------------------------------------------------------------------------------------------------+
| 0     Ascend910           | OK            | -                    34                      0    / 0                |
| 1     1                   | 0000:9F:00.0  | 0                    0    / 0                2874 / 65536            |
+===========================+===============+======================================================================+
| 1     Ascend910           | Alarm         | 170.1                34                      0    / 0                |
| 0     2                   | 0000:99:00.0  | 12                   0    / 0                60156/ 65536            |
+===========================+===============+======================================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)                        |
+===========================+===============+======================================================================+
| 1       0                 | 2290156       | python                   | 56742                                     |
+===========================+===============+======================================================================+
"""  # github.com/vllm-project/vllm-ascend/issues/12980; the third NPU, ill and busy, is ours


def test_numbers_names_and_memory_are_read():
    assert npus_in(npu_smi_info("910ProB", 2, 32768, {1: "Alarm"})) == [
        Npu(0, 0, 0, "910ProB", "OK", 32768),
        Npu(1, 1, 0, "910ProB", "Alarm", 32768),
    ]
    assert npus_in("npu-smi: error") == []


def test_dies_have_numbers_of_their_own():
    actual = npus_in(TWO_DIES)
    assert [(npu.number, npu.card, npu.chip, npu.health) for npu in actual] == [
        (0, 0, 0, "OK"),
        (1, 0, 1, "OK"),
        (2, 1, 0, "Alarm"),
    ]
    assert {npu.total for npu in actual} == {65536}


@pytest.mark.parametrize(
    ("name", "chip"),
    [
        ("910A", "910a"),
        ("910ProA", "910a"),
        ("910PremiumA", "910a"),
        ("910B", "910a"),  # a bin of the first family; what is sold as 910B has a number
        ("910B1", "910b1"),
        ("910B3", "910b3"),
        ("910B4-1", "910b4"),
        ("Ascend910", "910_93"),
        ("310P3", None),
        ("Ascend950", None),
    ],
)
def test_names_stand_for_chips(name, chip):
    assert chip_called(name) == chip
    assert chip is None or family(chip) in ("910a", "910b", "910_93")
