"""Loaded model: generates text, shows what it computes and what it is made of, measures its loss, and is exported. Shape suffixes
in docstrings: T tokens of a text, R rows of a slot, L layers, H hidden, N segments of the RRE layers."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import PlainValidator

from ascend_ops.few_rows import Precision, StoredPrecision
from pangu_sigma import arguments
from pangu_sigma.arguments import AnyPath, Count, Overrides, Paths, Text, Texts, checked, paths, several, texts
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import Override, override, validated
from pangu_sigma.errors import argument, keyword, warn_without_effect
from pangu_sigma.generate.sampling import Factor, Penalty, Sampling, Temperature, TopP
from pangu_sigma.generate.score import Score
from pangu_sigma.process import mindspore_lock
from pangu_sigma.results import Result, Results, Table
from pangu_sigma.sections import Fraction
from pangu_sigma.text.documents import HALF_PAIR, Document

if TYPE_CHECKING:
    import numpy as np

    from pangu_sigma.domains import Domains
    from pangu_sigma.generate.ablation import Ablation
    from pangu_sigma.generate.engine import Engine
    from pangu_sigma.stored.model import StoredModel
    from pangu_sigma.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_Prompt = TypeVar("_Prompt", str, list[str])


def _text_or_ids(value: Any) -> str | list[int]:
    """Return a text unchanged, or token ids as a list. Raises ValueError for other values."""
    if isinstance(value, str):
        return value
    ids = [*value] if isinstance(value, Iterable) else [value]
    if invalid_ids := [token for token in ids if not isinstance(token, Integral) or isinstance(token, bool)]:
        raise ValueError(f"a text, or whole numbers, ids of tokens, and not {invalid_ids[0]!r}")
    return [int(token) for token in ids]


def _model(value: Any) -> Model | Path:
    return value if isinstance(value, Model) else arguments.one_path(value)


TextOrIds = Annotated[str | Sequence[int], PlainValidator(_text_or_ids)]
AnyModel = Annotated["Model | str | os.PathLike[str]", PlainValidator(_model)]
_MODELS = PlainValidator(lambda value: several(value, _model))
Models = Annotated["Model | str | os.PathLike[str] | Iterable[Model | str | os.PathLike[str]]", _MODELS]


@checked
def evaluate(
    model: Models,
    against: Paths = (),
    all_samples: bool = False,
    *,
    input: Paths = (),
    reader: Text | None = None,
    text: Text | None = None,
    domain: Text | None = None,
    passages: Count = 0,
    overrides: Overrides = (),
) -> Result:
    """Measure the held-out loss of each domain, or of other text, or compare models on the same tokens.

    The result is {domain: {"loss": …, "se": …, "unigram": …, "bits_per_byte": …, …}}, in nats per token; se is the standard error
    over samples, unigram the loss of a unigram model on the same tokens. With `against` it has "pairs", with the losses of both
    runs and their differences, paired by sample, the "mean" over the pairs, and "left_out", which says why domains were not
    compared. A loss that is not finite is None, and logged. Raises UserError if no domain has the same tokens in all runs.

    Args:
        model: a run, an export or a Hugging Face style folder, which is evaluated on its run's text; several for `against`.
        against: as many other runs as `model` names, to compare in pairs.
        all_samples: read all samples of the held-out text or of `input`, not only as many as training evaluates,
            train.eval_batches · train.batch_size of each domain.
        input: any other text, files or folders of documents as in `prepare_data`, in samples of model.seq_length tokens; all tokens
            of a document but the first are predicted, and its <eot>. Lines that cannot be used are left out with a warning.
            "unigram" is None: no training text is read. Records are read by the run's keys of section `data`.
        reader: function of yours for records of `input`, as in `prepare_data`.
        text: or a text, as one document of `domain`.
        domain: domain of `text`, or of all records of `input`; by default records say it.
        passages: also continue this many passages of held-out text of each domain, and print how they and the model go on; in the
            result by domain under "passages".
        overrides: keys of section `data` to change for `input`, such as data.text_key=body.

    Examples:
        pangu-sigma evaluate runs/sigma_tiny --passages 1
        pangu-sigma evaluate runs/sigma_1 runs/sigma_2 --against runs/dense_1 runs/dense_2 --all-samples
        pangu-sigma evaluate runs/sigma_tiny --input mine.jsonl --domain en
    """
    from pangu_sigma.held_out.batches import samples_of_evaluation
    from pangu_sigma.held_out.decoded import measure_documents
    from pangu_sigma.held_out.losses import format_losses

    models, others, files = several(model, _model), paths(against), paths(input)
    changes, is_other_text = arguments.overrides_of(overrides), bool(files) or text is not None
    if (is_other_text or not others) and len(models) != 1:
        option = argument("--against")
        raise ConfigError(f"{len(models)} models without {option}; evaluate them one at a time, or compare them")
    if is_other_text:
        if others or passages:
            warn_without_effect(f"{argument('--against')}, {argument('--passages')}", "they are about held-out text")
        opened = models[0] if isinstance(models[0], Model) else Model(models[0])
        documents = _documents(opened, files, text, domain, reader, changes)
        limit = samples_of_evaluation(opened.config, all=all_samples or text is not None)
        losses = {name: loss.figures() for name, loss in measure_documents(opened.engine, documents, limit).items()}
        return _result(losses, format_losses(losses, "nats per token"), [losses])
    if domain is not None or reader is not None or changes:
        names = f"{argument('--domain')}, {argument('--reader')} or {argument('--set', 'overrides')}"
        warn_without_effect(names, f"held-out text is prepared; only records of {argument('--input')} are read by them")
    if others:
        return _compare(models, others, all_samples, passages)
    from pangu_sigma.held_out.run import evaluate_run

    with mindspore_lock:
        losses = evaluate_run(Path(models[0]), all_samples, passages, getattr(models[0], "_weights", None))
    table = format_losses(losses)
    if passages:
        from pangu_sigma.held_out.passages import format_passages

        table += f"\n\n{format_passages(losses)}"
    return _result(losses, table, [losses])


def _compare(models: list[Model | Path], others: list[Path], all_samples: bool, passages: int) -> Result:
    """Compare the losses of models and other runs, in pairs, on held-out text. all_samples, passages: as in `evaluate`."""
    from pangu_sigma.held_out.compare import compare_runs, format_differences

    for precision in {model._weights for model in models if isinstance(model, Model)} - {None}:
        warn_without_effect(f"weights={precision}", "runs are compared by their weights as they are stored")
    if passages:
        warn_without_effect(argument("--passages"), "runs are compared by their losses")
    with mindspore_lock:
        comparison = compare_runs([Path(model) for model in models], others, all_samples)
    losses = [pair["domains"] for pair in comparison["pairs"]]
    other_losses = [{name: row["against"] for name, row in domains.items()} for domains in losses]
    return _result(comparison, format_differences(comparison), [*losses, *other_losses])


def _documents(
    model: Model, files: list[Path], text: str | None, domain: str | None, reader: str | None, overrides: list[Override]
) -> list[Document]:
    """Return the documents of files, or a text as one document. Raises UserError for a text with files or without a domain."""
    from pangu_sigma.held_out.text import read_documents

    if text is None:
        return read_documents(model.config, files, domain, overrides, reader)
    if files or domain is None:
        file = f"the name of a file is {argument('--input')}=…"
        raise ConfigError(f"{argument('--text')}: give it a domain, {argument('--domain')}=…, and no input; {file}")
    if overrides or reader is not None:
        names = f"{argument('--reader')} or {argument('--set', 'overrides')}"
        warn_without_effect(names, "they say how records of input are read")
    return [Document(model.domains.named(domain).name, text)]


def _result(values: dict[str, Any], table: str, losses: Iterable[Mapping[str, Any]]) -> Result:
    """Return the result of a measurement. It is not `ok` if a loss is not finite, and an error is then logged. losses: figures
    by domain, of one model after the other; the "loss" of a domain that is not finite is None."""
    if names := dict.fromkeys(name for row in losses for name, figures in row.items() if figures["loss"] is None):
        why = "weights are NaN, infinite or too large to compute with"
        logger.error("the loss of %s is not finite: %s", ", ".join(names), why)
    return Result(values, table, ok=not names)


@checked
def load(model: AnyPath, weights: Precision | None = None, *, routing: AnyPath | None = None) -> Model:
    """Load a model from a run folder (its newest intact checkpoint), or from a folder that `Model.export` wrote.

    Args:
        model: path of the folder.
        weights: precision of the matrices in memory; by default the stored one of an export, float32 for a run.
        routing: file of other routing tables to answer by, as `routing.table` takes it; with the limits of `Model.without`.
    """
    opened = Model(model, weights)
    if routing is not None:
        opened = opened._with_ablation(routing=Path(routing))
    _ = opened.engine  # raises if the folder is no model
    return opened


@checked
def generate(
    model: AnyModel,
    prompt: Texts = (),
    domain: Texts = (),
    max_new_tokens: Count = 64,
    seed: Count = 0,
    stop: Texts = (),
    *,
    prompts: AnyPath | None = None,
    temperature: Temperature = 0.0,
    top_k: Count = 0,
    top_p: TopP = 1.0,
    min_p: Fraction = 0.0,
    repetition_penalty: Factor = 1.0,
    presence_penalty: Penalty = 0.0,
    frequency_penalty: Penalty = 0.0,
    weights: Precision | None = None,
) -> Results:
    """Continue prompts with a trained model.

    Returns `generate.text.Generated` for each prompt: text, ids and whether it has ended. Text also ends at model.seq_length.

    Args:
        model: a run, export, Hugging Face style folder, or files of PanGu-α.
        prompt: texts to continue.
        domain: domain to answer: one for all prompts, or one for each, in order.
        max_new_tokens: maximum number of new tokens.
        seed: random seed; it draws the same tokens for a prompt in any list; further copies of a prompt draw with the next seeds.
        stop: end the text before one of these strings.
        prompts: file with a prompt a line; - is standard input.
        temperature: sampling temperature; 0 is greedy.
        top_k: draw from this many most likely tokens; 0: from all.
        top_p: draw from the fewest tokens with this total probability.
        min_p: drop tokens below this fraction of the highest probability.
        repetition_penalty: above 1: make tokens of prompt and answer less likely.
        presence_penalty: subtract from the logit of tokens in the answer.
        frequency_penalty: the same, once for each occurrence.
        weights: precision of matrices in memory, by default float32 for a run, the stored one for an export.

    Examples:
        pangu-sigma generate runs/sigma_tiny --domain en --prompt The --domain zh --prompt 今天
        pangu-sigma generate exports/sigma_tiny --domain code --prompt def --temperature 0.8 --top-p 0.9
        pangu-sigma generate exports/sigma_tiny --domain en --prompts lines.txt --json -
    """
    values = locals()
    sampling = {name: values[name] for name in Sampling.model_fields}  # all of them are parameters
    all_prompts, domains = [*texts(prompt), *(_lines(Path(prompts)) if prompts is not None else ())], texts(domain)
    opened = model if isinstance(model, Model) and weights is None else Model(model, weights)
    if prompt == () and not all_prompts:
        raise ConfigError(f"name what to continue with {argument('--prompt')} or {argument('--prompts')}")
    if not domains:
        names = ", ".join(domain.name for domain in opened.domains)
        raise ConfigError(f"say with {argument('--domain')} which domain answers; the model has {names}")
    if len(domains) == 1:
        domains *= len(all_prompts)
    if len(domains) != len(all_prompts):
        counts = f"{argument('--domain')} has {len(domains)} names for {len(all_prompts)} prompts"
        raise ConfigError(f"{counts}; give one for all, or one for each")
    options = _sampling(sampling, seed)
    from pangu_sigma.generate import text

    pairs, length = list(zip(domains, all_prompts, strict=True)), opened.config.model.seq_length
    answers = text.generate(opened.engine, pairs, max_new_tokens, options, seed, texts(stop))
    if cut_answers := sum(not answer.finished and len(answer.ids) >= length for answer in answers):
        warning = "%d of %d answers end because prompt and answer have model.seq_length=%d"
        logger.warning(warning, cut_answers, len(answers), length)
    return Results(answers, "\n".join(f"[{answer.domain}] {answer.prompt}|{answer.text}" for answer in answers))


def _lines(file: Path) -> list[str]:
    """Return the lines of a file or of standard input. Raises ConfigError for a line that is empty or not UTF-8."""
    source = f"{argument('--prompts')} {file}"
    try:
        content = sys.stdin.buffer.read() if file == Path("-") else file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror}; name a file with a prompt a line") from None
    lines = content.decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if not line or HALF_PAIR.search(line):
            raise ConfigError(f"{source}: line {number} is empty, or not UTF-8; write a prompt a line, in UTF-8")
    return lines


@checked
def export(
    model: AnyPath,
    output: AnyPath,
    *,
    format: Literal["mindir", "hf", "run"] = "mindir",
    weights: StoredPrecision = "float32",
) -> Path:
    """Convert a model to a self-contained folder, a Hugging Face style folder, or a run, and return its path.

    Args:
        model: a run folder, or a folder written by format "hf".
        output: new folder; it must not exist.
        format: "mindir" writes a self-contained folder, and checks that it generates the same greedy tokens; "hf" a Hugging Face
            style folder (safetensors); "run" converts such a folder to a run with fresh Adam moments, and keeps bits.
        weights: precision of the matrices in "mindir".

    Examples:
        pangu-sigma export runs/sigma_tiny -o exports/sigma_tiny --weights int8
        pangu-sigma export runs/sigma_tiny -o exports/sigma_tiny_hf --format hf
        pangu-sigma export exports/sigma_tiny_hf -o runs/again --format run
    """
    source, path, option = Path(model).absolute(), Path(output), argument("--format")
    if weights != "float32" and format != "mindir":
        warn_without_effect(f"{argument('--weights')}={weights}", f"{option}={format} has the weights as they are")
    if path.suffix == ".safetensors":
        raise ConfigError(f"{path} is named as a file; choose a folder's name: {option}=hf has safetensors inside")
    from pangu_sigma.convert.conversion import convert_model
    from pangu_sigma.convert.mindir import export_mindir

    if format != "mindir":
        written = convert_model(source, path, format)
        logger.info("all weights of %s, without optimizer state", source)
        return written
    with mindspore_lock:
        return export_mindir(source, path, weights, compared_tokens=16)


def _sampling(options: Mapping[str, Any], seed: int) -> Sampling:
    """Convert keyword arguments to sampling options. Warns of an option or a seed that has no effect. Raises ConfigError for an
    unknown option, and for a value that is not allowed."""
    if unknown := options.keys() - Sampling.model_fields:
        names = ("max_new_tokens", "seed", "stop", *Sampling.model_fields)
        raise ConfigError(f"{min(unknown)}: unknown argument; allowed here: {', '.join(names)}")
    sampling = validated(Sampling, override({}, [*options.items()]))
    if sampling.temperature == 0:
        values = sampling.model_dump() | {"seed": seed}
        for name, default in {"top_k": 0, "top_p": 1, "min_p": 0, "seed": 0}.items():
            if values[name] != default:
                option, greedy = f"{keyword(name)}={values[name]}", f"{keyword('temperature')}=0"
                warn_without_effect(option, f"{greedy} takes the likeliest token")
    return sampling


def _check_below(name: str, value: int, count: int, listed: str) -> None:
    if not 0 <= value < count:
        raise ConfigError(f"{name}={value} is not allowed: {listed} 0 … {count - 1}")


class Model:
    """Trained model, as returned by `train`, `finetune` and `load`; accepted wherever a path of a model is. path: its folder,
    absolute. outcome: result of the training or fine-tuning; None for a loaded model, and if it was `stopped`."""

    answers = generate
    export = export

    def __init__(
        self, path: AnyPath, weights: Precision | None = None, outcome: Result | None = None, stopped: bool = False
    ):
        """Name the model of a folder, which is read at first use. weights: precision of matrices in memory; None: as in `load`."""
        self.path, self._weights = Path(path).absolute(), weights
        self.outcome, self.stopped = outcome, stopped
        self._without: Ablation | None = None

    def __repr__(self) -> str:
        return f"Model({str(self.path)!r}{f', {self._without}' if self._without else ''})"

    def __fspath__(self) -> str:
        if self._without is not None:
            raise ConfigError(f"{self}: a folder is taken as it is, and this model was changed in memory; load it")
        return str(self.path)

    @cached_property
    def engine(self) -> Engine:
        """Engine that generates text, loaded at first use."""
        from pangu_sigma.generate.text import open_engine

        return open_engine(self._stored, weights=self._weights, without=self._without)

    @cached_property
    def config(self) -> Config:
        """Configuration of the model."""
        return self._stored.config

    @cached_property
    def _stored(self) -> StoredModel:
        from pangu_sigma.stored.open import ANSWERING, open_model

        return open_model(self.path, *ANSWERING)

    @property
    def domains(self) -> Domains:
        """Domains of the model in their order, each with its `index`, `name`, `slot`, `first_expert` and number of `experts`."""
        from pangu_sigma.domains import domains_of

        return domains_of(self.config)

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the model, from text to token ids and back."""
        return self.engine.decoder.tokenizer

    def generate(self, prompt: _Prompt, domain: str | list[str], *more: Any, **options: Any) -> _Prompt:
        """Generate the continuation of a prompt, without the prompt; for a list of prompts, a list. Further arguments: as of
        `answers`, such as max_new_tokens=64 and temperature=0.8; by default greedy."""
        texts = [answer.text for answer in self.answers(prompt, domain, *more, **options)]
        return texts[0] if isinstance(prompt, str) else texts

    @checked
    def stream(
        self, prompt: Text, domain: Text, max_new_tokens: Count = 64, seed: Count = 0, stop: Texts = (), **sampling: Any
    ) -> Iterator[str]:
        """Yield the text that `generate` returns for the same arguments, in parts, as tokens are generated."""
        from pangu_sigma.generate.text import stream

        return stream(self.engine, (domain, prompt), max_new_tokens, _sampling(sampling, seed), seed, texts(stop))

    @checked
    def ids(self, text: Text, domain: Text) -> list[int]:
        """Return the token ids by which a domain reads a text. In code and bilingual text the first one is the language tag."""
        return self.tokenizer.prompt(text, self.domains.named(domain))

    @checked
    def slot(self, domain: Text) -> Table:
        """Return the token of each row of a domain's embedding slot: columns `id`, int [R], and `text`, "" for tokens without text.
        A row without a token has the id -1. The row of an id is `model.tokenizer.row_of[slot, id]`, -1 if it has none."""
        ids_R = self.tokenizer.slot_rows[self.domains.named(domain).slot]
        return Table({"id": ids_R, "text": [self.tokenizer.decode([id] if id >= 0 else []) for id in ids_R.tolist()]})

    @checked
    def logits(self, text_or_ids: TextOrIds, domain: Text, all_positions: bool = False) -> np.ndarray:
        """Return the logits of the token after a text or after token ids, float32 [R]; or after each of its tokens, [T, R].
        R are the rows of the domain's embedding slot, which `slot` lists; those without a token hold -inf."""
        ids = self._read(text_or_ids, domain)
        logits_WR = self.engine.logits(self.domains.named(domain), ids, len(ids) if all_positions else 1)
        return logits_WR if all_positions else logits_WR[0]

    @checked
    def hidden_states(self, text_or_ids: TextOrIds, domain: Text) -> np.ndarray:
        """Return the hidden states of a text's tokens, float32 [L + 1, T, H]: the embeddings, then the states after each layer. The
        last layer, the query layer, reads the LayerNorm of the states before; its states times the slot's rows are the logits."""
        ids = self._read(text_or_ids, domain)
        with self.engine.lane_for(self.domains.named(domain), ids) as lane:
            return self.engine.decoder.hidden_states(lane, ids)

    @checked
    def experts(self, text_or_ids: TextOrIds, domain: Text) -> np.ndarray:
        """Return the expert of each token of a text in each segment of the RRE layers, int32 [N, T], numbered as in `expert`.
        Without model.segments N are the layers; with S segments in a layer, number n is segment n % S of RRE layer n // S."""
        return self.engine.decoder.experts(self.domains.named(domain), self._read(text_or_ids, domain))

    @checked
    def expert(self, segment: int, number: int) -> dict[str, np.ndarray]:
        """Return copies of an expert's weights, float32: w1 [F, H], b1 [F], w2 [F, H], and in the first segment of a layer b2 [H].
        segment: 0 … N - 1, of F units. number: a domain's own are its `experts` from `first_expert` on; common ones are shared."""
        routed = self.config.model.routed
        _check_below("segment", segment, len(routed), "the RRE layers have the segments")
        experts = self.config.stored_experts(routed[segment])
        _check_below("number", number, experts, f"segment {segment} has the experts")
        names = ("w1", "b1", "w2") if self.config.model.in_layer(segment).number else ("w1", "b1", "w2", "b2")
        return {name: self._stored.expert(segment, number, name).copy() for name in names}

    @checked
    def without(
        self, *, rows: bool | int | None = None, segment: int | None = None, expert: int | None = None
    ) -> Model:
        """Return this model without some of its parts, which then add nothing; calls add up. rows: number of an entry of
        `model.rows`, or True for all. segment: number of a segment that loses all experts, or only `expert`. The folder does
        not change: this model can answer, score, and measure the loss of given text; functions that read the folder refuse it."""
        if (rows is None) == (segment is None) or (segment is None and expert is not None):
            raise ConfigError("without: give rows=…, or segment=… and perhaps expert=…")
        if segment is not None:
            self.expert(segment, 0 if expert is None else expert)  # refuses numbers that do not exist
            return self._with_ablation(experts=frozenset({(segment, expert)}))
        entries = range(len(self.config.model.rows))
        if not entries or rows is False or (rows is not True and rows not in entries):
            raise ConfigError(f"rows={rows} is not allowed: the model has {len(entries)} entries of rows; True: all")
        return self._with_ablation(rows=frozenset(entries) if rows is True else frozenset({rows}))

    def _with_ablation(self, **parts: Any) -> Model:
        """Return a copy of this model with a further ablation. parts: fields of `Ablation`; rows and experts add up."""
        from pangu_sigma.generate.ablation import Ablation

        ablation, model = self._without or Ablation(), Model(self.path, self._weights)
        model._stored = self._stored  # of the same checkpoint, although a training may go on
        unions = {name: getattr(ablation, name) | value for name, value in parts.items() if name != "routing"}
        model._without = replace(ablation, **parts | unions)
        return model

    @checked
    def score(self, text: Text, domain: Text) -> Score:
        """Return the log-probability, in nats, of each token of a text given the tokens before it, except the first. In code and
        bilingual text the first token is the language tag."""
        from pangu_sigma.generate.score import score

        return score(self.engine, text, self.domains.named(domain))

    def evaluate(self, text: str | None = None, domain: str | None = None, **options: Any) -> Result:
        """Measure the loss as the function `evaluate` does, on held-out text, `input`, or a text, which `domain` reads."""
        return evaluate(self, text=text, domain=domain, **options)

    def _read(self, text_or_ids: str | Sequence[int], domain: str) -> list[int]:
        """Return the token ids of a text, as the domain reads it; token ids are returned unchanged."""
        return self.ids(text_or_ids, domain) if isinstance(text_or_ids, str) else [*text_or_ids]
