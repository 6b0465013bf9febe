"""Loaded model: generates text, returns logits and scores, measures held-out loss, and is exported."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ascend_ops.few_rows import Precision, StoredPrecision
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.device import mindspore_lock
from pangu_sigma.errors import argument, keyword
from pangu_sigma.generate.sampling import Sampling, check_count, check_request, check_text
from pangu_sigma.generate.score import Score
from pangu_sigma.kinds import check_kinds
from pangu_sigma.results import Result, Results

if TYPE_CHECKING:
    import numpy as np

    from pangu_sigma.domains import Domain
    from pangu_sigma.generate.engine import Engine
    from pangu_sigma.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

AnyPath = str | os.PathLike[str]
Paths = AnyPath | Iterable[AnyPath]
_Prompt = TypeVar("_Prompt", str, list[str])


def to_path(path: AnyPath, name: str) -> Path:
    """Return a caller's argument as a path. name: of the argument. Raises ConfigError for other types and blank text."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path).strip():
        raise ConfigError(f"{argument(name)}={path!r} is not allowed: a path, as text or pathlib.Path, not blank")
    return Path(path)


def to_paths(paths: Paths, name: str) -> list[Path]:
    """Return a caller's argument, one path or several, as a list. name: of the argument. Raises ConfigError for other types."""
    if isinstance(paths, str | bytes | Mapping | os.PathLike) or not isinstance(paths, Iterable):
        return [to_path(paths, name)]  # type: ignore[arg-type]  # which refuses it
    return [to_path(path, name) for path in paths]


def to_text(text: str, name: str) -> str:
    """Return a caller's argument if it is a text. name: of the argument. Raises ConfigError for other types and bad Unicode."""
    if not isinstance(text, str):
        raise ConfigError(f"{argument(name)}={text!r} is not allowed: a text")
    check_text(text, argument(name))
    return text


def to_texts(texts: str | Iterable[str], name: str) -> list[str]:
    """Return a caller's argument, one text or several, as a list. name: of the argument. Raises ConfigError for other types."""
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        return [to_text(texts, name)]  # type: ignore[arg-type]  # which refuses it
    return [to_text(text, name) for text in texts]


def to_sampling(options: Mapping[str, Any], seed: int) -> Sampling:
    """Return sampling options given as keywords. Raises ConfigError for an unknown one, and for one or a seed without effect."""
    known = ["prompt", "domain", "max_new_tokens", "seed", "stop", *(field.name for field in fields(Sampling))]
    for name in options:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise ConfigError(f"{name}: unknown argument; nearest: {near[0]}; allowed here: {', '.join(known)}")
    sampling = Sampling(**options)
    without_effect = {name: getattr(sampling, name) for name in ("top_k", "top_p", "min_p")} | {"seed": seed}
    for name, value in without_effect.items():
        if sampling.temperature == 0 and value != getattr(Sampling, name, 0):
            raise ConfigError(
                f"{keyword(name)}={value} does nothing at {keyword('temperature')}=0, which takes the likeliest token; raise it"
            )
    return sampling


@check_kinds
def evaluate(model: Paths, against: Paths = (), all_samples: bool = False) -> Result:
    """Measure each domain's held-out loss in nats per token: {domain: {"loss": …, "se": …, "unigram": …, "bits_per_byte": …, …}}.

    model: a run, or an exported model, which is evaluated on its run's text. se: standard error over samples. unigram: loss of a
    unigram model on the same tokens. all_samples: read all held-out samples, not only the samples that training evaluates. against:
    as many other runs as `model` names, evaluated on the same tokens. Then the result has "pairs", with the losses of both runs and
    their differences, paired by sample, and the "mean" over the pairs. Raises UserError if the text is missing, or if the runs
    differ in text or tokenizer.
    """
    from pangu_sigma.evaluate.held_out.comparison import compare_runs, format_differences
    from pangu_sigma.evaluate.held_out.run import evaluate_run, format_losses

    models, others = to_paths(model, "model"), to_paths(against, "--against")
    if not others and len(models) != 1:
        raise ConfigError(
            f"{len(models)} models without {argument('--against')}; evaluate them one at a time, or compare them"
        )
    with mindspore_lock:
        if others:
            comparison = compare_runs(models, others, all_samples)
            return Result(comparison, format_differences(comparison))
        losses = evaluate_run(models[0], all_samples)
    return Result(losses, format_losses(losses))


@check_kinds
def load(model: AnyPath, weights: Precision | None = None) -> Model:
    """Load a model from a run folder (its newest intact checkpoint), or from a folder that `Model.export` wrote.

    weights: precision of the matrices in memory, "float32", "float16", "int8" or "int4"; by default the stored one of an export,
    float32 for a run. Raises UserError for any other folder.
    """
    loaded = Model(model, weights)
    _ = loaded.engine  # raises if the folder is no model
    return loaded


class Model:
    """Trained model, as returned by `train`, `finetune` and `load`; accepted wherever a path of a model is.

    path: its folder, absolute. config: its configuration. engine: generates text; loaded at first use. outcome: result of the
    training or fine-tuning; None for a loaded model, and for a stopped run.
    """

    def __init__(self, path: AnyPath, weights: Precision | None = None, outcome: Result | None = None):
        self.path, self._weights, self.outcome = to_path(path, "model").absolute(), weights, outcome

    def __repr__(self) -> str:
        return f"Model({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    @cached_property
    def engine(self) -> Engine:
        """Engine that generates text, loaded at first use."""
        from pangu_sigma.generate.text import open_engine

        return open_engine(self.path, weights=self._weights)

    @cached_property
    def config(self) -> Config:
        """Configuration of the model."""
        from pangu_sigma.stored.open import open_model

        return open_model(self.path).config

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the model, from text to token ids and back."""
        return self.engine.decoder.tokenizer

    def generate(
        self,
        prompt: _Prompt,
        domain: str | list[str],
        max_new_tokens: int = 64,
        seed: int = 0,
        stop: Sequence[str] = (),
        **sampling: float,
    ) -> _Prompt:
        """Generate the continuation of a prompt, without the prompt; for a list of prompts, a list, computed as a batch.

        domain: domain whose experts and vocabulary answer; for a list of prompts, one name for all or a list of names.
        max_new_tokens: maximum number of new tokens; generation also ends at the end of the text, and at model.seq_length.
        seed: the same seed draws the same tokens for a prompt in any list; further copies of it draw with the next seeds.
        stop: strings; a continuation ends before the first of them.
        sampling: temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, as in
        `generate.sampling.Sampling`; by default greedy.
        """
        texts = [answer.text for answer in self.answers(prompt, domain, max_new_tokens, seed, stop, **sampling)]
        return texts[0] if isinstance(prompt, str) else texts

    def answers(
        self,
        prompt: str | list[str],
        domain: str | list[str],
        max_new_tokens: int = 64,
        seed: int = 0,
        stop: Sequence[str] = (),
        **sampling: float,
    ) -> Results:
        """Generate as `generate` does, and return `generate.text.Generated` for each prompt: text, ids and whether it has ended.
        Invalid numbers and texts are refused before the model is loaded."""
        prompts, stops, domains = to_texts(prompt, "--prompt"), to_texts(stop, "--stop"), to_texts(domain, "--domain")
        if isinstance(domain, str):
            domains *= len(prompts)
        if len(domains) != len(prompts):
            raise ConfigError(
                f"{argument('--domain')} has {len(domains)} names for {len(prompts)} prompts; give one for all, or one for each"
            )
        check_request(max_new_tokens, seed)
        options = to_sampling(sampling, seed)
        from pangu_sigma.generate.text import generate

        pairs = list(zip(domains, prompts, strict=True))
        answers = generate(self.engine, pairs, max_new_tokens, options, seed, stops)
        length = self.config.model.seq_length
        if cut := sum(not each.finished and len(each.ids) >= length for each in answers):
            logger.warning(
                "%d of %d answers end because prompt and answer have model.seq_length=%d", cut, len(answers), length
            )
        return Results(answers, "\n".join(f"[{each.domain}] {each.prompt}|{each.text}" for each in answers))

    def stream(
        self,
        prompt: str,
        domain: str,
        max_new_tokens: int = 64,
        seed: int = 0,
        stop: Sequence[str] = (),
        **sampling: float,
    ) -> Iterator[str]:
        """Yield the text that `generate` returns for the same arguments, in parts, as tokens are generated."""
        from pangu_sigma.generate.text import stream

        asked = to_text(domain, "domain"), to_text(prompt, "prompt")
        return stream(self.engine, asked, max_new_tokens, to_sampling(sampling, seed), seed, to_texts(stop, "stop"))

    def logits(self, text_or_ids: str | Sequence[int], domain: str) -> np.ndarray:
        """Return the logits of the token after a text or after token ids, float32 [R].

        R is model.slot_rows, the number of rows of the domain's embedding slot: row r stands for the token id
        `model.tokenizer.slot_rows[slot, r]`, and rows without a token hold -inf.
        """
        from pangu_sigma.generate.text import prompt_ids

        known = self._domain(domain)
        if isinstance(text_or_ids, str):
            return self.engine.logits(known, prompt_ids(self.tokenizer, text_or_ids, known))
        ids = [*text_or_ids] if isinstance(text_or_ids, Iterable) else [text_or_ids]
        for token in ids:
            check_count("text_or_ids", token)
        return self.engine.logits(known, [int(token) for token in ids])

    def score(self, text: str, domain: str) -> Score:
        """Return the log-probability, in nats, of each token of a text given the tokens before it, except the first. In code and
        bilingual text the first token is the language tag."""
        from pangu_sigma.generate.score import score

        return score(self.engine, to_text(text, "text"), self._domain(domain))

    def evaluate(self, against: Paths = (), all_samples: bool = False) -> Result:
        """Measure the held-out loss of each domain, as the function `evaluate` does."""
        return evaluate(self.path, against, all_samples)

    @check_kinds
    def export(
        self,
        output: AnyPath,
        format: Literal["mindir", "safetensors", "hf", "run"] = "mindir",
        weights: StoredPrecision = "float32",
    ) -> Path:
        """Write the model of a run to `output` in another format, and return its path.

        format: "mindir" writes a self-contained folder, and checks that it generates the same greedy tokens; "safetensors" writes
        all weights to one file; "hf" writes a Hugging Face style folder of weights, tokenizer and routing table. "run" converts
        such a folder to a run with fresh Adam moments; a round trip keeps the bits of the weights. weights: precision of the
        matrices in "mindir": "float32", "float16" or "int8". Raises UserError if `output` exists, and for a model that the format
        cannot hold.
        """
        if weights != "float32" and format != "mindir":
            named = f"{argument('--weights')}={weights} is for {argument('--format')}=mindir"
            raise ConfigError(f"{named}; {format} has the weights as they are")
        path = to_path(output, "--output")
        if format != "safetensors" and path.suffix == ".safetensors":
            raise ConfigError(
                f"{argument('--output')} {path} is named as a file of weights, and {argument('--format')} is {format}, a folder; "
                f"add {argument('--format')}=safetensors, or choose another name"
            )
        from pangu_sigma.convert.conversion import convert_model
        from pangu_sigma.convert.mindir import export_mindir, verify_export
        from pangu_sigma.convert.safetensors import export_safetensors

        if format == "mindir":
            with mindspore_lock:
                written = export_mindir(self.path, path, weights)
                tokens = verify_export(self.path, written)
            reference = "of the checkpoint" if weights == "float32" else "that its weights give without MindSpore"
            logger.info("reloaded, and %d greedy tokens equal those %s", tokens, reference)
            return written
        written = (
            export_safetensors(self.path, path) if format == "safetensors" else convert_model(self.path, path, format)
        )
        logger.info("all weights of %s, without optimizer state", self.path)
        return written

    def _domain(self, name: str) -> Domain:
        from pangu_sigma.domains import domains_of

        return domains_of(self.config).named(to_text(name, "domain"))
