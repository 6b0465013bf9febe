"""Loaded model: generates text, shows what it computes and what it is made of, measures its loss, and is exported.

Shape suffixes in docstrings: T tokens of a text, R rows of a slot, L layers, H hidden, N segments of the RRE layers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ascend_ops.few_rows import Precision, StoredPrecision
from pangu_sigma.arguments import (
    AnyPath,
    Overrides,
    Paths,
    to_overrides,
    to_path,
    to_paths,
    to_sampling,
    to_text,
    to_texts,
)
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.device import mindspore_lock
from pangu_sigma.errors import argument
from pangu_sigma.generate.sampling import check_count, check_request
from pangu_sigma.generate.score import Score
from pangu_sigma.kinds import check_kinds
from pangu_sigma.results import Result, Results, Table

if TYPE_CHECKING:
    import numpy as np

    from pangu_sigma.domains import Domain, Domains
    from pangu_sigma.generate.ablation import Ablation
    from pangu_sigma.generate.engine import Engine
    from pangu_sigma.stored.model import StoredModel
    from pangu_sigma.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_Prompt = TypeVar("_Prompt", str, list[str])


@check_kinds
def evaluate(
    model: Paths,
    against: Paths = (),
    all_samples: bool = False,
    *,
    input: Paths = (),
    domain: str | None = None,
    overrides: Overrides = (),
) -> Result:
    """Measure each domain's held-out loss in nats per token: {domain: {"loss": …, "se": …, "unigram": …, "bits_per_byte": …, …}}.

    model: a run, or an exported model, which is evaluated on its run's text. se: standard error over samples. unigram: loss of a
    unigram model on the same tokens. all_samples: read all held-out samples, not only the samples that training evaluates. against:
    as many other runs as `model` names, evaluated on the same tokens. Then the result has "pairs", with the losses of both runs and
    their differences, paired by sample, and the "mean" over the pairs. A loss that is not finite is None, and logged. Raises
    UserError if the text is missing, or if the runs differ in text or tokenizer.

    input: any other text, files or folders of documents as in `prepare_data`; domain: of all of them, by default they say it.
    overrides: of the keys of section `data` that say how records are read, by default the run's; a reader that a run recorded is
    not executed. Documents are read as held-out text is, one after another in samples of model.seq_length tokens; all tokens of a
    document but the first are predicted, and its <eot>. Lines that cannot be used are left out with a warning. "unigram" is None:
    no training text is read.
    """
    from pangu_sigma.evaluate.held_out.run import format_losses

    models, others, files = to_paths(model, "model"), to_paths(against, "--against"), to_paths(input, "--input")
    changes = to_overrides(overrides)
    if not others and len(models) != 1:
        raise ConfigError(
            f"{len(models)} models without {argument('--against')}; evaluate them one at a time, or compare them"
        )
    if (domain is not None or changes) and not files:
        named = (
            f"{argument('--domain')} and {argument('--set', 'overrides')} are of the records of {argument('--input')}"
        )
        raise ConfigError(f"{named}; held-out text is prepared and has its domains, leave them out")
    if files:
        measured = Model(models[0]).evaluate
        return measured(None, domain, input=files, against=others, all_samples=all_samples, overrides=changes)
    with mindspore_lock:
        if others:
            from pangu_sigma.evaluate.held_out.comparison import compare_runs, format_differences

            comparison = compare_runs(models, others, all_samples)
            rows = [each["domains"] for each in comparison["pairs"]]
            theirs = [{name: figures["against"] for name, figures in row.items()} for row in rows]
            return _measured(comparison, format_differences(comparison), [*rows, *theirs])
        from pangu_sigma.evaluate.held_out.run import evaluate_run

        losses = evaluate_run(models[0], all_samples)
    return _measured(losses, format_losses(losses), [losses])


def _measured(values: dict[str, Any], table: str, losses: Iterable[Mapping[str, Any]]) -> Result:
    """Return a result, and log the domains whose losses are not finite. losses: figures by domain."""
    found = dict.fromkeys(name for each in losses for name, figures in each.items() if figures["loss"] is None)
    if found:
        logger.error(
            "the loss of %s is not finite: weights are NaN, infinite or too large to compute with", ", ".join(found)
        )
    return Result(values, table, not found)


@check_kinds
def load(model: AnyPath, weights: Precision | None = None, *, routing: AnyPath | None = None) -> Model:
    """Load a model from a run folder (its newest intact checkpoint), or from a folder that `Model.export` wrote. weights: precision
    of the matrices in memory, "float32", "float16", "int8" or "int4"; by default the stored one of an export, float32 for a run.
    routing: file of other routing tables to answer by, as `routing.table` takes it; the same limits hold as in `Model.without`."""
    loaded = Model(model, weights)
    if routing is not None:
        loaded = loaded._lacking(routing=to_path(routing, "routing"))
    _ = loaded.engine  # raises if the folder is no model
    return loaded


class Model:
    """Trained model, as returned by `train`, `finetune` and `load`; accepted wherever a path of a model is.

    path: its folder, absolute. outcome: result of the training or fine-tuning; None for a loaded model, and if it was `stopped`.
    """

    def __init__(
        self, path: AnyPath, weights: Precision | None = None, outcome: Result | None = None, stopped: bool = False
    ):
        self.path, self._weights = to_path(path, "model").absolute(), weights
        self.outcome, self.stopped = outcome, stopped
        self._without: Ablation | None = None

    def __repr__(self) -> str:
        return f"Model({str(self.path)!r}{f', {self._without}' if self._without else ''})"

    def __fspath__(self) -> str:
        self._refuse_changed("a folder is taken as it is")
        return str(self.path)

    @cached_property
    def engine(self) -> Engine:
        """Engine that generates text, loaded at first use."""
        from pangu_sigma.generate.text import open_engine

        return open_engine(self.path, weights=self._weights, without=self._without)

    @cached_property
    def config(self) -> Config:
        """Configuration of the model."""
        return self._stored.config

    @cached_property
    def _stored(self) -> StoredModel:
        from pangu_sigma.stored.open import open_model

        return open_model(self.path)

    @property
    def domains(self) -> Domains:
        """Domains of the model in their order, each with its `index`, `name`, `slot`, `first_expert` and number of `experts`."""
        from pangu_sigma.domains import domains_of

        return domains_of(self.config)

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
        max_new_tokens: maximum number of new tokens; generation also ends at the end of the text, and at model.seq_length. seed:
        the same seed draws the same tokens for a prompt in any list; further copies of it draw with the next seeds. stop: strings;
        a continuation ends before the first. sampling: temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
        frequency_penalty, as in `generate.sampling.Sampling`; by default greedy. Raises UserError if logits are not finite.
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
        """Generate as `generate` does, and return `generate.text.Generated` for each prompt: text, ids and whether it has ended."""
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

    def ids(self, text: str, domain: str) -> list[int]:
        """Return the token ids by which a domain reads a text. In code and bilingual text the first one is the language tag."""
        from pangu_sigma.generate.text import prompt_ids

        return prompt_ids(self.tokenizer, to_text(text, "text"), self._domain(domain))

    def slot(self, domain: str) -> Table:
        """Return the token of each row of a domain's embedding slot: columns `id`, int [R], and `text`, "" for tokens without text.
        A row without a token has the id -1. The row of an id is `model.tokenizer.row_of[slot, id]`, -1 if it has none."""
        ids_R = self.tokenizer.slot_rows[self._domain(domain).slot]
        return Table({"id": ids_R, "text": [self.tokenizer.decode([id] if id >= 0 else []) for id in ids_R.tolist()]})

    @check_kinds
    def logits(self, text_or_ids: str | Sequence[int], domain: str, all_positions: bool = False) -> np.ndarray:
        """Return the logits of the token after a text or after token ids, float32 [R]; or after each of its tokens, [T, R].
        R are the rows of the domain's embedding slot, which `slot` lists; those without a token hold -inf."""
        ids = self._read(text_or_ids, domain)
        logits_WR = self.engine.logits(self._domain(domain), ids, len(ids) if all_positions else 1)
        return logits_WR if all_positions else logits_WR[0]

    def hidden_states(self, text_or_ids: str | Sequence[int], domain: str) -> np.ndarray:
        """Return the hidden states of a text's tokens, float32 [L + 1, T, H]: first the embeddings, then those after each layer.
        The last, the query layer, reads the LayerNorm of what comes before; its result times the slot's rows are the logits."""
        known, ids = self._domain(domain), self._read(text_or_ids, domain)
        with self.engine.lane_for(known, ids) as lane:
            return self.engine.decoder.hidden_states(lane, ids)

    def experts(self, text_or_ids: str | Sequence[int], domain: str) -> np.ndarray:
        """Return the expert of each token of a text in each segment of the RRE layers, int32 [N, T], numbered as in `expert`.
        Without model.segments N are the layers; with S segments in a layer, number n is segment n % S of RRE layer n // S."""
        return self.engine.decoder.experts(self._domain(domain), self._read(text_or_ids, domain))

    @check_kinds
    def expert(self, segment: int, number: int) -> dict[str, np.ndarray]:
        """Return copies of an expert's weights, float32: w1 [F, H], b1 [F], w2 [F, H], and in the first segment of a layer b2 [H].
        segment: 0 … N - 1, of F units. number: a domain's own are its `experts` from `first_expert` on; common ones are shared."""
        routed = self.config.model.routed
        if not 0 <= segment < len(routed):
            raise ConfigError(
                f"segment={segment} is not allowed: the RRE layers have the segments 0 … {len(routed) - 1}"
            )
        stored = self.config.stored_experts(routed[segment])
        if not 0 <= number < stored:
            raise ConfigError(f"number={number} is not allowed: segment {segment} has the experts 0 … {stored - 1}")
        _, in_layer = self.config.model.in_layer(segment)
        names = ("w1", "b1", "w2") if in_layer else ("w1", "b1", "w2", "b2")
        return {name: self._stored.expert(segment, number, name).copy() for name in names}

    @check_kinds
    def without(
        self, *, rows: bool | int | None = None, segment: int | None = None, expert: int | None = None
    ) -> Model:
        """Return this model without some of its parts, which then add nothing; calls add up. rows: an entry of `model.rows`, or
        True for all. segment: without its experts, or without one, expert. The folder does not change: such a model answers,
        scores, and measures the loss of a text or of `input`, and is refused where a folder is taken as it is."""
        if (rows is None) == (segment is None) or (segment is None and expert is not None):
            raise ConfigError("without: give rows=…, or segment=… and perhaps expert=…")
        entries = len(self.config.model.rows)
        if rows is not None and (rows is False or (rows is not True and not 0 <= rows < entries) or not entries):
            raise ConfigError(f"rows={rows} is not allowed: the model has {entries} entries of rows; True: all")
        if segment is not None:
            self.expert(segment, 0 if expert is None else expert)  # refuses what is not there
            return self._lacking(experts=frozenset({(segment, expert)}))
        return self._lacking(rows=frozenset(range(entries) if rows is True else [int(rows or 0)]))

    def _lacking(self, **parts: Any) -> Model:
        from pangu_sigma.generate.ablation import Ablation

        lacks, changed = self._without or Ablation(), Model(self.path, self._weights)
        sets = {name: getattr(lacks, name) | value for name, value in parts.items() if name != "routing"}
        changed._without = replace(lacks, **parts | sets)
        return changed

    def _refuse_changed(self, why: str) -> None:
        if self._without is not None:
            raise ConfigError(f"{self}: {why}, and this model was changed in memory; leave out `without` and routing")

    def score(self, text: str, domain: str) -> Score:
        """Return the log-probability, in nats, of each token of a text given the tokens before it, except the first. In code and
        bilingual text the first token is the language tag."""
        from pangu_sigma.generate.score import score

        return score(self.engine, to_text(text, "text"), self._domain(domain))

    @check_kinds
    def evaluate(
        self,
        text: str | None = None,
        domain: str | None = None,
        *,
        input: Paths = (),
        against: Paths = (),
        all_samples: bool = False,
        overrides: Overrides = (),
    ) -> Result:
        """Measure the loss as the function `evaluate` does, on held-out text or `input`; or that of a text, read by `domain`."""
        files = to_paths(input, "input")
        if text is None and not files:
            self._refuse_changed("held-out text is measured of a folder; give input=… or a text")
            return evaluate(self.path, against, all_samples, domain=domain, overrides=overrides)
        if text is not None and (files or domain is None):
            raise ConfigError("text: give it a domain, domain=…, and no input; the name of a file is input=…")
        if all_samples or to_paths(against, "against"):
            named = f"{argument('--against')} and {argument('--all-samples')}"
            raise ConfigError(f"{named} are about held-out text, and this is other text; leave them out")
        if text is not None and overrides:
            raise ConfigError("overrides say how records of input are read; leave them out")
        from pangu_sigma.evaluate.held_out.run import format_losses
        from pangu_sigma.evaluate.held_out.text import evaluate_documents, read_documents
        from pangu_sigma.text.documents import Document

        if text is None:
            documents = read_documents(self.config, files, domain, to_overrides(overrides))
        else:
            documents = [Document(self._domain(domain).name, to_text(text, "text"), "text")]
        losses = evaluate_documents(self.engine, documents)
        return _measured(losses, format_losses(losses, "nats per token"), [losses])

    @check_kinds
    def export(
        self,
        output: AnyPath,
        format: Literal["mindir", "hf", "run"] = "mindir",
        weights: StoredPrecision = "float32",
    ) -> Path:
        """Write the model of a run to `output` in another format, and return its path.

        format: "mindir" writes a self-contained folder, and checks that it generates the same greedy tokens; "hf" writes a
        Hugging Face style folder of weights (safetensors), tokenizer and routing table. "run" converts such a folder to a run with
        fresh Adam moments; a round trip keeps the bits of the weights. weights: precision of the matrices in "mindir".
        Raises UserError if `output` exists, and for a model that the format cannot hold.
        """
        if weights != "float32" and format != "mindir":
            named = f"{argument('--weights')}={weights} is for {argument('--format')}=mindir"
            raise ConfigError(f"{named}; {format} has the weights as they are")
        self._refuse_changed("a folder is exported as it is")
        path = to_path(output, "--output")
        if path.suffix == ".safetensors":
            raise ConfigError(
                f"{argument('--output')} {path} is named as a file of weights, and {argument('--format')}={format} writes a "
                f"folder; choose another name: {argument('--format')}=hf has safetensors inside"
            )
        from pangu_sigma.convert.conversion import convert_model
        from pangu_sigma.convert.mindir import export_mindir, verify_export

        if format == "mindir":
            with mindspore_lock:
                written = export_mindir(self.path, path, weights)
                tokens = verify_export(self.path, written)
            reference = "of the checkpoint" if weights == "float32" else "that its weights give without MindSpore"
            logger.info("reloaded, and %d greedy tokens equal those %s", tokens, reference)
            return written
        written = convert_model(self.path, path, format)
        logger.info("all weights of %s, without optimizer state", self.path)
        return written

    def _domain(self, name: str | None) -> Domain:
        return self.domains.named(to_text(name, "domain"))  # type: ignore[arg-type]  # which refuses None

    def _read(self, text_or_ids: str | Sequence[int], domain: str) -> list[int]:
        """Return the ids of a text, or the ids. Raises ConfigError for what is neither."""
        if isinstance(text_or_ids, str):
            return self.ids(text_or_ids, domain)
        ids = [*text_or_ids] if isinstance(text_or_ids, Iterable) else [text_or_ids]
        for token in ids:
            check_count("text_or_ids", token)
        return [int(token) for token in ids]
