"""The Python face: what `import pangu_sigma as ps` offers, each name a thin layer over the folder that does the work.

Paths may be strings or `pathlib.Path`. What a user can mend is raised as `UserError` with a complete message. Everything works
in any thread, and several may ask models: they wait for each other, since MindSpore does one thing at a time. Training is one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from pangu_sigma import config_file
from pangu_sigma.ascend.supported import check_machine
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.errors import UserError as UserError  # one of the promised names
from pangu_sigma.generate.score import Score
from pangu_sigma.host_memory import check_training_fits
from pangu_sigma.shipped import config_path
from pangu_sigma.writable import check_folder_writable

if TYPE_CHECKING:
    import numpy as np

    from pangu_sigma.data.manifest import Manifest
    from pangu_sigma.data.tokenizer import Tokenizer
    from pangu_sigma.domains import Domain
    from pangu_sigma.generate.engine import Engine
    from pangu_sigma.inherit.receipt import Receipt
    from pangu_sigma.train.loop import Trainer

AnyPath = str | os.PathLike[str]
Device = Literal["cpu", "ascend"]


def load_config(name_or_path: AnyPath, overrides: Mapping[str, Any] | None = None) -> Config:
    """A shipped configuration by its name, such as "sigma_tiny", or the one in a YAML file.

    overrides: values by key path, such as {"train.steps": 100, "domains.0.weight": 2.0}. A section given as a whole replaces the
    whole section. Raises UserError for an unknown name, which lists the shipped ones, and for every key or value that cannot be.
    """
    return config_file.load_config(config_path(name_or_path), list((overrides or {}).items()))


def prepare_data(config: Config, inputs: AnyPath | Iterable[AnyPath] = ()) -> Manifest:
    """Turn text into the token files, tokenizer and statistics that `train` reads, in the folder `config.data.path`.

    inputs: your own *.jsonl or *.jsonl.gz, one {"text": …, "domain": …} a line; none: text that ordinary packages ship.
    Returns the manifest: documents and tokens of each domain, and how many lines could not be used. A folder that holds this very
    result already is left as it is.
    """
    from pangu_sigma.data.prepare import prepare

    paths = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    return prepare(config, [Path(path) for path in paths], Path(config.data.path))


def train(
    config: Config | None,
    run: AnyPath,
    device: Device = "cpu",
    *,
    start_over: bool = False,
    other_data: bool = False,
    lock: bool = True,
) -> Model:
    """Train `config` in the folder `run` and return the trained model.

    A folder that has a checkpoint goes on from its newest one, and one that is at its last step is only opened: with None as it
    is, with a configuration after saying which keys change. Metrics, checkpoints and a report are in the folder.

    start_over: set aside what the folder has, and begin at step 0. other_data: go on although the text is not that of the
    checkpoint. lock: False to write also where the file system has no locks, so that a second writer is not noticed.
    Raises UserError when the data is not prepared or does not fit, when a key changes that the checkpoints do not go with, and when
    another process trains there.
    """
    run_training(config, run, device, start_over, other_data, lock).ranks.leave()
    return Model(run)


def run_training(
    config: Config | None,
    run: AnyPath,
    device: Device = "cpu",
    start_over: bool = False,
    other_data: bool = False,
    lock: bool = True,
    profile: bool = False,
) -> Trainer:
    """Train, and return the trainer; the caller calls its `ranks.leave()`. The command `train` wants to know its rank.

    profile: True to write a timeline of some steps into the run folder.
    """
    from pangu_sigma.checkpoint.run_folder import Asked, run_config

    if device not in ("cpu", "ascend"):
        raise ConfigError(f"device={device!r} is not known; use 'cpu' or 'ascend'")
    if config is None:
        config = run_config(Path(run))
    if device == "cpu":
        check_training_fits(config)
    else:
        check_machine()
    check_folder_writable(Path(run), "--run")
    from pangu_sigma.device import one_thread
    from pangu_sigma.train.backend import Backend, CpuBackend
    from pangu_sigma.train.loop import train

    backend: Backend = CpuBackend()
    if device == "ascend":
        from pangu_sigma.ascend.backend import AscendBackend

        backend = AscendBackend()
    with one_thread:
        return train(config, Path(run), backend, Asked(start_over, other_data, lock), profile)


def inherit(
    parent: AnyPath,
    config: Config,
    run: AnyPath,
    *,
    heads: int | None = None,
    activation: Literal["fast_gelu", "tanh", "erf"] | None = None,
    noise: float = 0.0,
    fresh: float = 0.0,
    moments: bool = False,
) -> Receipt:
    """Make `run` a run of `config` whose step 0 answers as the dense model `parent`; `train` goes on from there.

    parent: a dense run of this project, or the files of a released PanGu-α (foreign/README.md says which).
    heads, activation: what the parent's files do not say. noise, fresh: how replicated experts differ from each other at the start,
    by default not at all (inherit/variation.py). moments: carry Adam's state over, which a run of this project has.
    Returns the receipt, which is kept in the folder as lineage.json. Raises UserError when `run` exists, and for a parent that is
    sparse, of another shape, damaged, or of a layout that is not known.
    """
    check_folder_writable(Path(run), "--run")
    from pangu_sigma.device import one_thread
    from pangu_sigma.inherit import from_alpha
    from pangu_sigma.inherit.parent import open_parent
    from pangu_sigma.inherit.variation import Variation

    from_alpha.check_absent(Path(run))
    with one_thread:
        opened = open_parent(Path(parent), heads, activation)
        return from_alpha.inherit(opened, config, Path(run), Variation(noise, fresh, config.seed), moments)


def extend(
    run: AnyPath,
    config: Config,
    into: AnyPath,
    *,
    origin: str | None = None,
    alpha: AnyPath | None = None,
    fresh: bool = False,
    heads: int | None = None,
    activation: Literal["fast_gelu", "tanh", "erf"] | None = None,
    exact_only: bool = False,
) -> Receipt:
    """Make `into` a run of `config`, which has more domains, slots, English pieces or experts than the trained run `run`.

    Old domains answer as before, bit for bit, and keep Adam's state; `train` goes on from step 0. New domains begin as one of:
    origin: a domain of `run`, with its experts and its routing; alpha: the dense parent, a run or files as `inherit` takes them,
    with heads and activation where its files do not say them; fresh: drawn. exact_only: compare logits without compiling graphs.
    The text of `config` is prepared before, with vocabulary.english_model set to tokenizer/english.model of `run`, so that tokens
    keep their ids. Returns the receipt, which is kept in the folder as lineage.json. Raises UserError when `into` exists, and for
    what cannot be extended, by key.
    """
    check_folder_writable(Path(into), "--run")
    from pangu_sigma.device import one_thread
    from pangu_sigma.inherit.extend import Origin, extend_run
    from pangu_sigma.inherit.parent import open_parent

    with one_thread:
        dense = None if alpha is None else open_parent(Path(alpha), heads, activation)
        return extend_run(Path(run), config, Path(into), Origin(origin, dense, fresh), not exact_only)


def extract(
    run: AnyPath,
    into: AnyPath,
    *,
    domains: Sequence[str] = (),
    drop: Sequence[str] = (),
    format: Literal["run", "mindir"] = "run",
    data: AnyPath | None = None,
    exact_only: bool = False,
) -> Receipt:
    """Cut domains out of the trained run `run`: they answer as before, bit for bit, from a smaller model.

    domains: names of those to keep; or drop: names of those to leave away. format: "run" makes `into` a run folder with its text,
    which `train` goes on from at step 0 with warm Adam moments; "mindir" makes it an exported model. data: the prepared text of
    `run` if it is no longer at its data.path. exact_only: compare logits without compiling graphs.
    Returns the receipt, which is kept in the folder as lineage.json. Raises UserError when `into` exists and for a domain that is
    not there.
    """
    if format not in ("run", "mindir"):
        raise ConfigError(f"format={format!r} is not known; use 'run' or 'mindir'")
    check_folder_writable(Path(into), "--run" if format == "run" else "--output")
    from pangu_sigma.device import one_thread
    from pangu_sigma.inherit.extract import extract_export, extract_run

    make = extract_run if format == "run" else extract_export
    with one_thread:
        return make(Path(run), Path(into), domains, drop, None if data is None else Path(data), not exact_only)


def finetune(
    run: AnyPath,
    task: AnyPath,
    data: AnyPath,
    into: AnyPath,
    *,
    eval: AnyPath | None = None,
    learn: Literal["all", "experts", "experts+slot"] | None = None,
    domain: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    lock: bool = True,
) -> Model:
    """Tune the trained run `run` to a task, in the folder `into`, and return the tuned model, whose state is the best one.

    task: "dialogue", "qa", "translation_zh_en", "translation_en_zh", "code", or a YAML file. data, eval: *.jsonl or *.jsonl.gz, a
    line {"prompt": …, "response": …} or {"messages": [{"role": …, "content": …}, …]}, and perhaps a "domain"; eval decides which
    state is the best, and when it is enough. learn, domain: what learns, and the domain of lines that name none, where the task is
    not to say. overrides: values by key path, as `load_config` takes them. lock: as in `train`. The same call goes on with a run
    that was stopped. What came of it is in `into`, finetune/result.json. Raises UserError for a task, key or domain that cannot be,
    for a file without a sample that can be used, and when `into` is another run.
    """
    run_finetuning(run, task, data, into, eval, learn, domain, list((overrides or {}).items()), lock)
    return Model(into)


def run_finetuning(
    run: AnyPath,
    task: AnyPath,
    data: AnyPath,
    into: AnyPath,
    eval: AnyPath | None = None,
    learn: str | None = None,
    domain: str | None = None,
    overrides: Sequence[config_file.Override] = (),
    lock: bool = True,
) -> dict[str, Any] | None:
    """Tune, and return what `finetune.tuning.finetune_run` does, which the command `finetune` prints."""
    check_folder_writable(Path(into), "--run")
    from pangu_sigma.device import one_thread
    from pangu_sigma.finetune.tuning import TuningRequest, finetune_run

    dev = None if eval is None else Path(eval)
    with one_thread:
        return finetune_run(
            Path(run), TuningRequest(Path(task), Path(data), dev, learn, domain, overrides), Path(into), lock
        )


def convert(source: AnyPath, output: AnyPath, to: Literal["hf", "run"]) -> Path:
    """Write a model in another form to `output`, which must not exist, and return its path.

    source: a run folder, or a Hugging Face style folder that this function wrote.
    to: "hf", such a folder, of weights, tokenizer and routing table: the way back gives the same bits; "run", a run folder that
    begins with it, Adam's state from nothing.
    Raises UserError when `source` is damaged.
    """
    from pangu_sigma.convert.conversion import convert_model

    return convert_model(Path(source), Path(output), to)


def load(path: AnyPath) -> Model:
    """The model in a run folder that `train` wrote (its newest intact checkpoint), or in a folder that `Model.export` wrote.

    Raises UserError when the folder is neither.
    """
    model = Model(path)
    _ = model.engine  # what is wrong with the folder shows here
    return model


class Model:
    """A trained model. `train` and `load` make one.

    path: its folder, absolute. config: its configuration. engine: what answers, loaded when it is first needed.
    """

    def __init__(self, path: AnyPath):
        self.path = Path(path).absolute()

    def __repr__(self) -> str:
        return f"Model({str(self.path)!r})"

    @cached_property
    def engine(self) -> Engine:
        from pangu_sigma.device import one_thread
        from pangu_sigma.generate.text import open_engine

        with one_thread:
            return open_engine(self.path)

    @cached_property
    def config(self) -> Config:
        from pangu_sigma.stored.open import open_model

        return open_model(self.path).config

    @property
    def tokenizer(self) -> Tokenizer:
        """What turns text into token ids and back."""
        return self.engine.decoder.tokenizer

    @overload
    def generate(
        self,
        prompt: str,
        domain: str,
        max_new_tokens: int = 64,
        seed: int = 0,
        stop: Sequence[str] = (),
        **sampling: float,
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: list[str],
        domain: str | list[str],
        max_new_tokens: int = 64,
        seed: int = 0,
        stop: Sequence[str] = (),
        **sampling: float,
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str | list[str],
        domain: str | list[str],
        max_new_tokens: int = 64,
        seed: int = 0,
        stop: Sequence[str] = (),
        **sampling: float,
    ) -> str | list[str]:
        """The continuation of a prompt, without the prompt; of a list of prompts, a list of them, computed together.

        domain: which experts and which vocabulary answer; for a list of prompts, one name for all or a list of names.
        max_new_tokens: the most tokens to add; it ends earlier where the model ends its text, or at model.seq_length.
        seed: the same seed draws the same tokens for a prompt, whatever the others are; a prompt that is in the list again draws
        with the next seed.
        stop: strings; a continuation ends before the first of them.
        sampling: temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, as
        `generate.sampling.Sampling` has them; without them the most likely token is taken each time.
        """
        from pangu_sigma.generate.sampling import Sampling
        from pangu_sigma.generate.text import generate

        prompts = [prompt] if isinstance(prompt, str) else prompt
        domains = [domain] * len(prompts) if isinstance(domain, str) else domain
        if len(domains) != len(prompts):
            raise ConfigError(
                f"domain has {len(domains)} names for {len(prompts)} prompts; give one name for all, or one for each"
            )
        pairs = list(zip(domains, prompts, strict=True))
        answers = generate(self.engine, pairs, max_new_tokens, Sampling(**sampling), seed, stop)  # type: ignore[arg-type]
        texts = [answer.text for answer in answers]
        return texts[0] if isinstance(prompt, str) else texts

    def stream(
        self,
        prompt: str,
        domain: str,
        max_new_tokens: int = 64,
        seed: int = 0,
        stop: Sequence[str] = (),
        **sampling: float,
    ) -> Iterator[str]:
        """The text that `generate` returns for the same arguments, in parts, as tokens come; joined they are equal to it."""
        from pangu_sigma.generate.sampling import Sampling
        from pangu_sigma.generate.text import stream

        return stream(self.engine, (domain, prompt), max_new_tokens, Sampling(**sampling), seed, stop)  # type: ignore[arg-type]

    def logits(self, text_or_ids: str | Sequence[int], domain: str) -> np.ndarray:
        """Logits of the token after a text or after token ids, float32 [R].

        R is model.slot_rows, the number of rows of the domain's embedding slot: row r stands for the token id
        `model.tokenizer.slot_rows[slot, r]`, and rows without a token hold -inf.
        """
        from pangu_sigma.generate.text import prompt_ids

        of = self._domain(domain)
        if isinstance(text_or_ids, str):
            return self.engine.logits(of, prompt_ids(self.tokenizer, text_or_ids, of))
        return self.engine.logits(of, [int(token) for token in text_or_ids])

    def score(self, text: str, domain: str) -> Score:
        """Log-probability in nats of each token of a text, given those before it. The first one of a text has none before it and is
        not scored; in code and bilingual text that is the tag of the language."""
        from pangu_sigma.generate.score import score

        return score(self.engine, text, self._domain(domain))

    def evaluate(self, all: bool = False, against: AnyPath | None = None) -> dict[str, dict[str, Any]]:
        """Held-out loss of each domain, in nats per token: {"loss": …, "se": …, "unigram": …, "bits_per_byte": …, …}.

        se: its standard error over samples. unigram: what counting achieves on the same tokens.
        all: read all held-out text instead of what training evaluates. against: another run to evaluate on the same tokens; its
        losses are under "against", and what this run loses more under "difference", paired by sample.
        An exported model is evaluated on the text of its run, alone: without `against`. Raises UserError for that, where the text
        is gone, and for a run of other text or another tokenizer.
        """
        from pangu_sigma.device import one_thread
        from pangu_sigma.evaluate.comparison import compare_runs
        from pangu_sigma.evaluate.run import evaluate_run

        with one_thread:
            if against is None:
                return evaluate_run(self.path, all)
            return compare_runs([self._run("compare")], [Path(against)], all)["pairs"][0]["domains"]

    def export(
        self,
        output: AnyPath,
        format: Literal["mindir", "safetensors", "hf"] = "mindir",
        weights: Literal["float32", "float16", "int8"] = "float32",
    ) -> Path:
        """Write the model of a run to `output` and return its path.

        format: "mindir" writes a folder that needs nothing else and checks that it gives the same greedy tokens; "safetensors"
        writes all weights into one file; "hf" writes what `convert` writes. weights: how "mindir" keeps matrices. Raises UserError
        for a model that was exported already.
        """
        from pangu_sigma.convert.mindir import export_mindir, verify_export
        from pangu_sigma.convert.safetensors import export_safetensors
        from pangu_sigma.device import one_thread

        run = self._run("export")
        if weights != "float32" and format != "mindir":
            raise ConfigError(f"weights={weights!r} is for format='mindir', not {format!r}")
        if format == "safetensors":
            return export_safetensors(run, Path(output))
        if format == "hf":
            return convert(run, output, "hf")
        if format != "mindir":
            raise ConfigError(f"format={format!r} is not known; use 'mindir', 'safetensors' or 'hf'")
        with one_thread:
            written = export_mindir(run, Path(output), weights)
            verify_export(run, written)
        return written

    def _run(self, wanted: str) -> Path:
        """The run folder that the model is in."""
        from pangu_sigma.stored.open import kind_of

        if kind_of(self.path) == "export":
            raise ConfigError(f"{self.path} is an exported model; load the run folder that it came from to {wanted} it")
        return self.path

    def _domain(self, name: str) -> Domain:
        from pangu_sigma.domains import domains_of

        return domains_of(self.config).named(name)
