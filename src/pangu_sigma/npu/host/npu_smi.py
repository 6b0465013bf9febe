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
    """NPU of a host. number: as in /dev/davinci0. total: device memory (HBM) in MB."""

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
        done = subprocess.run(
            [program, "info"], env=dict(host.environment), capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        problem = f"npu-smi info did not answer in {SECONDS:g} s"
        raise Unanswered(problem, "the driver hangs: see dmesg, restart the host") from None
    except OSError as error:
        raise Unanswered(f"npu-smi info: {error.strerror}", f"let this user run {program}") from error
    if done.returncode:
        message = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise Unanswered(f"npu-smi info ended with {done.returncode}, saying: {message}", "mend what npu-smi names")
    if listed := npus_in(done.stdout):
        return listed
    raise Unanswered(
        "npu-smi info lists no NPU", "load the driver; in a container, pass the devices on: --device /dev/davinci0 …"
    )


def npus_in(text: str) -> list[Npu]:
    """Parse the NPUs in the output of `npu-smi info`."""
    listed: list[Npu] = []
    above: list[str] = []  # the cells of the first line of an NPU
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        numbers = cells[0].split()  # of the second line the chip and, if given, its physical number
        if len(cells) == 3 and ":" in cells[1] and above and all(number.isdigit() for number in numbers):
            card, name = above[0].split()
            total = _TOTAL.findall(cells[2])[-1]  # the first pair is of the memory of the NPU's own CPUs
            number = numbers[1] if len(numbers) > 1 else card
            listed.append(Npu(int(number), int(card), int(numbers[0]), name, above[1], int(total)))
            above = []
        elif len(cells) == 3 and len(numbers) == 2 and numbers[0].isdigit():
            above = cells
    return sorted(listed, key=lambda npu: npu.number)


def chip_called(name: str) -> Chip | None:
    """Return the chip that npu-smi calls `name`; None if this project does not know the chip."""
    if name == "Ascend910":
        return "910_93"
    if bin_found := _BIN.match(name):
        return f"910b{bin_found[1]}"  # type: ignore[return-value]
    return "910a" if name.upper() in _FIRST else None
