"""Blocks of documents, and what the passes of a preparation share.

A *block* is a stretch of the documents of one input unit, in order: a row group of the unit's result. Its number is the number of
the unit times 2^16, plus the place of the row group. The number of a document, in the column `document` of every table, is the
number of its block times 2^24, plus its row: documents are numbered in the order of the input.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import pyarrow.dataset as ds

from pangu_sigma.config import Config
from pangu_sigma.data.prepare.stages.stage import Stage
from pangu_sigma.domains import Domains, domains_of
from pangu_sigma.text.layout import Layout

ROW_BITS, GROUP_BITS = 24, 16
"""Bits of a row's number in its row group, and of the row group's number in its file."""
UNIT_BITS = ROW_BITS + GROUP_BITS
"""Bits of a document's number after the number of its unit."""


@dataclass(frozen=True)
class Work:
    """What every unit of a preparation needs to know. size: bytes of text of a block. layout: layout of the records."""

    config: Config
    stage: Stage
    size: int
    layout: Layout = field(default_factory=Layout)

    @cached_property
    def domains(self) -> Domains:
        """Domains of the configuration."""
        return domains_of(self.config)


def block_size(total: int) -> int:
    """Return the bytes of text of a block for so many bytes of input: enough blocks for all cores, but no tiny ones.

    It is a function of the input alone, so that a preparation that goes on has the same blocks with any number of workers.
    """
    return max(1 << 20, min(total // 64, 16 << 20))


def in_block(block: int) -> ds.Expression:
    """Return the condition for rows of documents of a block."""
    document = ds.field("document")
    return (document >= block << ROW_BITS) & (document < (block + 1) << ROW_BITS)
