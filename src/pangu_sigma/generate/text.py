"""Generation of text from prompts, with the engine of the server."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ascend_ops.few_rows import Precision
from pangu_sigma.bars import Bar
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.generate.ablation import Ablation, WithoutParts
from pangu_sigma.generate.decoder import Decoder
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Request
from pangu_sigma.generate.sampling import Sampling
from pangu_sigma.stored.export import StoredExport
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import ANSWERING, open_model

logger = logging.getLogger(__name__)

BLANK_AT_THE_END = "the prompt ends in a blank, which belongs to the next word; leave it out, or the text goes on badly"
"""Warning about a prompt that `ends_in_blank`."""

Prompt = tuple[str, str]
"""Prompt of a generation: domain name, and text to continue."""


@dataclass(frozen=True)
class Generated:
    """Generated continuation of a prompt.

    ids: prompt and continuation, without the final <eot>. text: the continuation only. finished: True if it ended with <eot> or
    before a stop string, False if it reached max_new_tokens or model.seq_length.
    """

    domain: str
    prompt: str
    text: str
    ids: list[int]
    finished: bool


def open_engine(
    path: Path | StoredModel, lanes: int = 8, weights: Precision | None = None, without: Ablation | None = None
) -> Engine:
    """Open the engine of a model, which answers many requests together. Arguments and errors: as of `open_decoder`."""
    return Engine(open_decoder(path, lanes, weights, without))


def open_decoder(
    path: Path | StoredModel, lanes: int = 4, weights: Precision | None = None, without: Ablation | None = None
) -> Decoder:
    """Open a CPU decoder for a run folder (its newest intact checkpoint), an exported model, a Hugging Face style folder, or a
    dense PanGu-α in the files of others, which has one domain, zh. path: its path, or the model if it is open.

    lanes: number of texts that the decoder can read at a time. weights: precision of the matrices in memory; None: the precision
    in which an export stores them, else float32. without: parts of the model to leave out. Errors: see `open_model`.
    """
    model = path if isinstance(path, StoredModel) else open_model(path, *ANSWERING)
    precision = weights or (model.precision if isinstance(model, StoredExport) else "float32")
    if without is None:
        return Decoder(model.config, model.tokenizer, model.table, model, lanes, precision)
    table, other_weights = without.table_of(model), WithoutParts(model, without)
    return Decoder(model.config, model.tokenizer, table, other_weights, lanes, precision)


def generate(
    engine: Engine,
    prompts: list[Prompt],
    max_new_tokens: int = 64,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    seed: int = 0,
    stop: Sequence[str] = (),
) -> list[Generated]:
    """Continue each prompt. Texts end at <eot>, before a string of `stop`, after max_new_tokens, or at model.seq_length.

    seed: seed of each prompt's own random generator, so that answers do not depend on each other; a repeated prompt gets the next
    seed. Raises ConfigError for an unknown domain, a prompt that does not fit, and invalid options, DataError for a prompt that is
    no Unicode text, and UserError if the logits of a prompt are not finite.
    """
    requests = _requests(engine, prompts, max_new_tokens, sampling, seed, stop)
    with closing(engine.answers_to(requests)) as numbered_answers:  # cancels the others if an answer fails
        answers = sorted(Bar(numbered_answers, total=len(requests), desc="generate", unit="text", leave=False))
    return [
        Generated(name, text, answer.text, [*answer.request.ids, *answer.ids], answer.finish == "stop")
        for (name, text), (_, answer) in zip(prompts, answers, strict=True)
    ]


def stream(
    engine: Engine,
    prompt: Prompt,
    max_new_tokens: int = 64,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    seed: int = 0,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Return an iterator over pieces of the continuation that `generate` would return. A character comes once all its bytes are
    generated. Arguments: as of `generate`. Raises the ConfigError and DataError of `generate` at once, not in the iterator.
    """
    (request,) = _requests(engine, [prompt], max_new_tokens, sampling, seed, stop)
    engine.check(request)
    return text_in_parts(engine, request)


def text_in_parts(engine: Engine, request: Request) -> Iterator[str]:
    """Yield the text of the answer to a request in parts, as it is generated. If the caller closes the iterator before its end, the
    answer is cancelled."""
    answer = engine.submit_when_free(request)
    sent = 0  # number of characters that were yielded
    try:
        while engine.is_unfinished(answer) or sent < len(answer.text):
            new_text = answer.text[sent:]
            if not new_text:
                engine.step()
                continue
            sent += len(new_text)
            yield new_text
    finally:
        engine.cancel(answer)  # changes nothing if the answer is finished


def _requests(
    engine: Engine, prompts: Sequence[Prompt], max_new_tokens: int, sampling: Sampling, seed: int, stop: Sequence[str]
) -> list[Request]:
    """Make the engine's requests for prompts, and warn once if prompts end in a blank. seed: seed of the first answer to a prompt;
    a repeated prompt gets the next seed. Raises ConfigError for an unknown domain, DataError for a text that is not Unicode."""
    domains, repetitions = domains_of(engine.decoder.config), Counter[Prompt]()
    requests, texts_with_blank = [], []
    for name, text in prompts:
        domain = domains.named(name)
        ids = tuple(engine.decoder.tokenizer.prompt(text, domain))
        prompt_seed = seed + repetitions[name, text]
        requests.append(Request(domain, ids, max_new_tokens, sampling, prompt_seed, tuple(stop)))
        repetitions[name, text] += 1
        if ends_in_blank(text, domain):
            texts_with_blank.append(text)
    if texts_with_blank:
        example = texts_with_blank[0][-20:]
        logger.warning(
            "%d of %d prompts, such as %r: %s", len(texts_with_blank), len(prompts), example, BLANK_AT_THE_END
        )
    return requests


def ends_in_blank(text: str, domain: Domain) -> bool:
    """Return True if a prompt ends in a blank that belongs to the token of the next word. A Chinese blank is a token by itself, and
    a last line of blanks is an indentation."""
    return domain.language != "zh" and text.endswith(" ") and not text.rpartition("\n")[2].isspace()
