"""Tokenizer of PanGu-α itself: its 40,000 pieces and nothing else, for its weights as they are."""

from __future__ import annotations

import numpy as np
import sentencepiece

from pangu_sigma.text.segmentation import Run
from pangu_sigma.text.sentencepieces import alpha_model, compact_model, encode_ids
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import ALPHA_SIZE


class AlphaTokenizer(Tokenizer):
    """PanGu-α's tokenizer, for a domain of Chinese: row i of its one slot is piece i. Raises DataError without pcl-pangu.

    It reads text as PanGu-α does: what no piece spells is <unk>, and characters that its normaliser drops are gone. Tags and bytes
    of the merged vocabulary have ids, and no rows.
    """

    def __init__(self) -> None:
        pieces, english = alpha_model(), compact_model([])
        super().__init__(pieces, english, Tokenizer.whole(pieces, english, 1).slot_rows)
        self.slot_rows = np.ascontiguousarray(self.slot_rows[:, :ALPHA_SIZE])
        self.row_of[:, ALPHA_SIZE:] = -1
        self._plain = sentencepiece.SentencePieceProcessor(model_proto=pieces)

    def _encode_run(self, run: Run, model: sentencepiece.SentencePieceProcessor) -> np.ndarray:
        return encode_ids(" ".join(run.text) if run.spelled else run.text, self._plain)
