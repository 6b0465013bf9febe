"""Structured output: answers that match a JSON schema, a regular expression or one of several texts.

llguidance says before each token which tokens may follow; the others get the logit -inf. For it a slot's tokens are its rows, each
with the bytes that it decodes to. The 256 bytes have rows in every slot, so there is always a token that may follow.

Shape suffixes: R rows of a slot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import Domain
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import FIRST_BYTE, FIRST_ENGLISH

StructureKind = Literal["json", "regex", "choice"]
"""Kinds of structure: a JSON value that fits a schema; a text that a regular expression (Rust's syntax) matches as a whole; one of
several texts."""


def _json_grammar(schema: dict[str, Any]) -> str:
    """Return the grammar of a schema. Options for llguidance in the schema are replaced: llguidance must refuse rules that it does
    not know, and allow one blank at most between two parts, because a weak model would write blanks without end."""
    return f"start: %json {json.dumps({**schema, 'x-guidance': {'whitespace_pattern': ' ?', 'lenient': False}})}"


_GRAMMARS: dict[StructureKind, Callable[[Any], str]] = {
    "json": _json_grammar,
    "regex": lambda pattern: json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"][0]["lark_grammar"],
    "choice": lambda texts: f"start: ONE\nONE: {' | '.join(map(json.dumps, texts))}",
}
"""Grammar of each kind in llguidance's form of Lark."""

_OPTIONS = '%llguidance {"no_forcing": true}\n'
"""The model decides how text is spelled of which a grammar leaves no choice: to find it out takes minutes in `a{100000}`."""

_SHOWN = 500
"""Number of characters of llguidance's explanation in an error."""


class Structures:
    """Compiler of grammars for the slots of a tokenizer. A slot's tokens are prepared for llguidance at their first use."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._tokenizers: dict[int, LLTokenizer] = {}

    def compile(self, kind: StructureKind, constraint: Any, domain: Domain) -> Structure:
        """Make the structure of answers in a domain. constraint: the schema, the expression or the texts.

        Raises ConfigError for a constraint that llguidance does not take, or that no text can satisfy."""
        if domain.slot not in self._tokenizers:
            self._tokenizers[domain.slot] = LLTokenizer(_SlotTokens(self._tokenizer, domain.slot))  # type: ignore[arg-type]
        try:
            json.dumps(constraint, ensure_ascii=False).encode()  # half of a surrogate pair is an error here
            matcher = LLMatcher(self._tokenizers[domain.slot], _OPTIONS + _GRAMMARS[kind](constraint), log_level=0)
        except (RecursionError, UnicodeEncodeError) as error:
            raise ConfigError(f"cannot be followed: {error}; give Unicode text, nested less deeply") from error
        matcher.compute_bitmask()  # finds constraints that no text satisfies, and makes the tables that copies of the matcher share
        if matcher.is_error():
            raise ConfigError(f"cannot be followed: {_reason(matcher)}")
        return Structure(matcher)


class _SlotTokens:
    """Tokens of a slot as llguidance reads them: the bytes of each row, none for rows that spell nothing."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, slot: int):
        """Set the attributes that llguidance reads: tokens and special ids are rows of the slot."""
        surfaces = tokenizer.vocabulary.surfaces
        self.tokens = [surfaces[token] if token >= 0 else b"" for token in tokenizer.slot_rows[slot].tolist()]
        self.eos_token_id = int(tokenizer.row_of[slot, tokenizer.eot])
        self.special_token_ids: list[int] = []
        self._byte_rows = tokenizer.row_of[slot, FIRST_BYTE:FIRST_ENGLISH].tolist()

    def __call__(self, text: str) -> list[int]:
        """Return rows that spell a text; llguidance requires it, to force tokens, which `_OPTIONS` turns off."""
        return [self._byte_rows[value] for value in text.encode()]


def _reason(matcher: LLMatcher) -> str:
    """Return the reason of a matcher's error in one line of at most _SHOWN characters: its message without the line number that it
    begins with, and without the matcher's state or the lines of the grammar that follow."""
    message = re.split(r"\n(?:<| +\d+ \|)", matcher.get_error())[0]
    reason = re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", message)
    return "no text has it" if reason == "NoExtensionBias" else " ".join(reason.split())[:_SHOWN]


class Structure:
    """Structure of answers: what one answer has written, and so what may follow. `begin` copies it for a new answer."""

    def __init__(self, matcher: LLMatcher):
        self._matcher = matcher

    def begin(self) -> Structure:
        """Return the state of a new answer."""
        return Structure(self._matcher.deep_copy())

    def allowed(self, logits_R: np.ndarray) -> np.ndarray:
        """Return the logits with -inf for rows of tokens that may not follow. After a `problem` only <eot> may follow."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)  # one for each row
        allowed_R = np.unpackbits(bits, count=len(logits_R), bitorder="little").view(bool)
        return np.where(allowed_R, logits_R, np.float32(-np.inf))

    def take(self, row: int) -> None:
        """Take the row that was chosen next."""
        self._matcher.consume_token(row)

    @property
    def problem(self) -> str:
        """Reason why the library has given up on this answer: following its grammar exceeds a limit. "" if it has not."""
        if not self._matcher.is_error():
            return ""
        return f"an answer breaks off inside its structure, which is too large for llguidance: {_reason(self._matcher)}"

    @property
    def is_whole(self) -> bool:
        """True once the answer fits and nothing can be added to it."""
        return self._matcher.is_stopped() and not self._matcher.is_error()
