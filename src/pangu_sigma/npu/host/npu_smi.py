"""Parse the NPUs of a host from `npu-smi info`, and the chip from their name.

    | NPU   Name      | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
    | Chip  Phy-ID    | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
    | 0     Ascend910 | OK            | 166.4       43                0    / 0             |
    | 0     0         | 0000:9D:00.0  | 0           0    / 0          3158 / 65536         |

Two lines an NPU; only 910_93 has Phy-ID, because two of its NPUs are in one package. Below the table is another, of processes.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from pangu_sigma.chips import Chip
from pangu_sigma.npu.host.access import Host

SECONDS = 30.0
"""Timeout of npu-smi in seconds; our choice. It takes 1 or 2 s, and hangs if the driver hangs."""

_BIN = re.compile(r"910B([1-4])")
_FIRST = ("910A", "910B", "910PROA", "910PROB", "910PREMIUMA", "910")
"""Names of the first family, 910A. Its faster bin is `910B` without a number; the chip commonly called 910B always has a number."""
_TOTAL = re.compile(r"/\s*(\d+)")


@dataclass(frozen=True)
class Npu:
    """NPU of a host. number: number of its device, 0 of /dev/davinci0. card, chip: numbers that select it in npu-smi. total: device
    memory (HBM) in MB."""

    number: int
    card: int
    chip: int
    name: str
    health: str
    total: int


class Unanswered(Exception):
    """Error of npu-smi that is missing, fails, or does not end. fix: advice to the user."""

    def __init__(self, problem: str, fix: str):
        super().__init__(problem)
        self.fix = fix


def list_npus(host: Host) -> list[Npu]:
    """Return the NPUs that npu-smi lists, by ascending number. Raises Unanswered, also if there is no NPU."""
    program = host.tool("npu-smi")
    if program is None:
        fix = "install the Ascend driver, or mount its npu-smi, tools and libraries into the container, or add its folder to PATH"
        raise Unanswered("npu-smi is not on PATH", fix)
    try:
        result = subprocess.run(
            [program, "info"], env=dict(host.environment), capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        problem = f"npu-smi info did not answer in {SECONDS:g} s"
        raise Unanswered(problem, "the driver hangs: see dmesg, restart the host") from None
    except OSError as error:
        raise Unanswered(f"npu-smi info: {error.strerror}", f"let this user run {program}") from error
    if result.returncode:
        message = (result.stderr.strip() or result.stdout.strip() or "nothing").splitlines()[-1]
        raise Unanswered(f"npu-smi info ended with {result.returncode}, saying: {message}", "mend what npu-smi names")
    if npus := npus_in(result.stdout):
        return npus
    raise Unanswered(
        "npu-smi info lists no NPU", "load the driver; in a container, pass the devices on: --device /dev/davinci0 …"
    )


def npus_in(text: str) -> list[Npu]:
    """Parse the NPUs in the output of `npu-smi info`."""
    npus: list[Npu] = []
    first_line_cells: list[str] = []  # of the NPU whose second line is expected
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        # in an NPU's second line: the number of the chip in its card and, on 910_93, the NPU's physical number
        numbers = cells[0].split()
        if len(cells) == 3 and ":" in cells[1] and first_line_cells and all(number.isdigit() for number in numbers):
            card, name = first_line_cells[0].split()
            total = _TOTAL.findall(cells[2])[-1]  # the first pair is of the memory of the NPU's own CPUs
            number = numbers[1] if len(numbers) > 1 else card
            npus.append(Npu(int(number), int(card), int(numbers[0]), name, first_line_cells[1], int(total)))
            first_line_cells = []
        elif len(cells) == 3 and len(numbers) == 2 and numbers[0].isdigit():
            first_line_cells = cells
    return sorted(npus, key=lambda npu: npu.number)


def chip_called(name: str) -> Chip | None:
    """Return the chip that npu-smi calls `name`; None if this project does not know the chip."""
    if name == "Ascend910":
        return "910_93"
    if match := _BIN.match(name):
        return f"910b{match[1]}"  # type: ignore[return-value]
    return "910a" if name.upper() in _FIRST else None
