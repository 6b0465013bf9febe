"""The Python face: what `import pangu_sigma as ps` offers and what the commands call, each name a thin layer over the folder that
does the work. docs/commands.md has the commands and these functions side by side.

A model that is read is `model`: a `Model`, or the path of a folder; paths may be strings or `pathlib.Path`. What a user can mend is
raised as `UserError` with a complete message. Everything works in any thread, and several may ask models: they wait for each other,
since MindSpore does one thing at a time. Training is one.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from pangu_sigma import config_file
from pangu_sigma.ascend.supported import check_machine
from pangu_sigma.chips import Chip
from pangu_sigma.config import Activation, Config, ConfigError
from pangu_sigma.errors import UserError as UserError  # one of the promised names
from pangu_sigma.generate.sampling import Sampling, check_request, check_text
from pangu_sigma.generate.score import Score
from pangu_sigma.host_memory import check_training_fits
from pangu_sigma.launching.training import launch_training as launch_training  # what the command `launch` is
from pangu_sigma.launching.training import with_known_chip as with_known_chip
from pangu_sigma.shipped import config_path
from pangu_sigma.writable import check_folder_writable

if TYPE_CHECKING:
    import numpy as np

    from ascend_ops.few_rows import Precision
    from pangu_sigma.data.tokenizer import Tokenizer
    from pangu_sigma.domains import Domain
    from pangu_sigma.generate.engine import Engine
    from pangu_sigma.inherit.receipt import Receipt

logger = logging.getLogger(__name__)

AnyPath = str | os.PathLike[str]
Paths = AnyPath | Iterable[AnyPath]
Overrides = Mapping[str, Any] | Sequence[config_file.Override]
"""Values by key path, such as {"train.steps": 100}; or texts such as "train.steps=100"."""
Device = Literal["cpu", "ascend"]

WEIGHTS_ENDINGS = (".safetensors", ".ckpt", ".pt", ".bin")
"""Ends of the names of files that hold weights, and no configuration."""


class _Printed:
    """What a call found, as plain values; it prints as the table of the command. ok: False if that ends with status 1."""

    def __init__(self, values: Any, table: str, ok: bool = True):
        super().__init__(values)  # type: ignore[call-arg]  # of dict or list
        self.table, self.ok = table, ok

    def __repr__(self) -> str:
        return self.table


class Result(_Printed, dict[str, Any]):
    """What a call found, by name."""


class Results(_Printed, list[Any]):
    """What a call found, in order."""


def _paths(paths: Paths) -> list[Path]:
    return [Path(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]


def _changes(overrides: Overrides) -> list[config_file.Override]:
    return list(overrides.items() if isinstance(overrides, Mapping) else overrides)


def load_config(config: AnyPath, overrides: Overrides = ()) -> Config:
    """A shipped configuration by its name, such as "sigma_tiny", the one in a YAML file, or that of a run folder.

    overrides: values by key path, such as {"train.steps": 100, "domains.0.weight": 2.0}. A section given as a whole replaces the
    whole section. Raises UserError for an unknown name, which lists the shipped ones, and for every key or value that cannot be.
    """
    if Path(config).is_dir():
        from pangu_sigma.checkpoint.run_folder import run_config

        return run_config(Path(config), _changes(overrides))
    return config_file.load_config(config_path(config), _changes(overrides))


def prepare_data(config: Config, input: Paths = ()) -> Result:
    """Turn text into the token files, tokenizer and statistics that `train` reads, in the folder `config.data.path`.

    input: your own *.jsonl or *.jsonl.gz, one {"text": …, "domain": …} a line; none: text that ordinary packages ship.
    Returns the manifest: documents and tokens of each domain, and how many lines could not be used. A folder that holds this very
    result already is left as it is.
    """
    from pangu_sigma.data.overview import format_overview
    from pangu_sigma.data.prepare import prepare

    manifest = prepare(config, _paths(input), Path(config.data.path))
    return Result(manifest.model_dump(mode="json"), format_overview(manifest))


def run_of(config: Config | AnyPath, output: AnyPath | None = None, overrides: Overrides = ()) -> tuple[Config, Path]:
    """What `train` and `launch` train, and the run folder that they do it in. A folder is a run, which has both; anything else is a
    configuration, whose run is `output`, by default runs/NAME."""
    if isinstance(config, Config):
        return config, Path(output or f"runs/{config.name}")
    found = load_config(config, overrides)
    if not Path(config).is_dir():
        return run_of(found, output)
    if output is not None:
        raise ConfigError(f"{config} is a run, which goes on where it is: leave --output {output} out")
    return found, Path(config)


def train(
    config: Config | AnyPath,
    output: AnyPath | None = None,
    *,
    device: Device = "cpu",
    start_over: bool = False,
    allow_data_change: bool = False,
    lock: bool = True,
    profile: bool = False,
) -> Model:
    """Train a configuration in the folder `output`, by default runs/NAME, and return the trained model.

    config: a configuration; or a run folder, which goes on as it is. A folder that has a checkpoint goes on from its newest one,
    and one that is at its last step is only opened, with a configuration after saying which keys change. Metrics, checkpoints and
    a report are in the folder; the model's `outcome` is the summary, None if SIGTERM came before the last step.

    start_over: set aside what the folder has, and begin at step 0. allow_data_change: go on although the text is not that of the
    checkpoint. lock: False to write also where the file system has no locks, so that a second writer is not noticed. profile: write
    a timeline of some steps into the folder.
    Raises UserError when the data is not prepared or does not fit, when a key changes that the checkpoints do not go with, and when
    another process trains there.
    """
    if device not in ("cpu", "ascend"):
        raise ConfigError(f"device={device!r} is not known; use 'cpu' or 'ascend'")
    config, folder = run_of(config, output)
    if device == "cpu":
        check_training_fits(config)
    else:
        check_machine()
    check_folder_writable(folder, "--output")
    from pangu_sigma.checkpoint.run_folder import Asked
    from pangu_sigma.device import one_thread
    from pangu_sigma.train.backend import Backend, CpuBackend
    from pangu_sigma.train.loop import train as train_run

    backend: Backend = CpuBackend()
    if device == "ascend":
        from pangu_sigma.ascend.backend import AscendBackend

        backend = AscendBackend()
    with one_thread:
        trainer = train_run(config, folder, backend, Asked(start_over, allow_data_change, lock), profile)
    outcome = _summary(folder) if trainer.finished and trainer.ranks.first else None
    trainer.ranks.leave()
    return Model(folder, outcome=outcome)


def _summary(run: Path) -> Result | None:
    """The summary of a run; None, with a warning, where its log is lost: the training is whole all the same."""
    from pangu_sigma.train.metrics import NothingLogged
    from pangu_sigma.train.summary import format_summary, summarise

    try:
        summary = summarise(run)
    except NothingLogged as lost:
        logger.warning("no summary: %s", lost)
        return None
    return Result(summary, format_summary(summary))


def evaluate(model: Paths, against: Paths = (), all_samples: bool = False) -> Result:
    """Held-out loss of each domain, in nats per token: {"loss": …, "se": …, "unigram": …, "bits_per_byte": …, …}.

    model: a run, or an exported model, which is evaluated on the text of its run. se: its standard error over samples. unigram:
    what counting achieves on the same tokens. all_samples: read all held-out text instead of what training evaluates.
    against: other runs to evaluate on the same tokens, as many as `model` names: returns "pairs", with the losses of both and what
    the first loses more, paired by sample, and the "mean" over the pairs. Raises UserError where the text is gone, and for runs of
    other text or another tokenizer.
    """
    from pangu_sigma.device import one_thread
    from pangu_sigma.evaluate.comparison import compare_runs, format_differences
    from pangu_sigma.evaluate.run import evaluate_run, format_losses

    models, others = _paths(model), _paths(against)
    if not others and len(models) > 1:
        raise ConfigError(f"{len(models)} models without --against; evaluate them one at a time, or compare them")
    with one_thread:
        if others:
            found = compare_runs(models, others, all_samples)
            return Result(found, format_differences(found))
        losses = evaluate_run(models[0], all_samples)
    return Result(losses, format_losses(losses))


def benchmark(
    model: AnyPath,
    names: Sequence[str],
    *,
    files: AnyPath | None = None,
    domain: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    samples_per_problem: int = 1,
    temperature: float | None = None,
    allow_code_execution: bool = False,
    json: AnyPath | None = None,
) -> Result:
    """The figures of benchmarks, by name: {metric: value, …, "n": …, "skipped": …, "truncated": …}.

    model: a run, which keeps them for its report, or an exported model. names: those of evaluate/README.md, or any of
    lm-evaluation-harness. files: the folder with the files of each benchmark, at files/NAME/ under their published names.
    domain: which experts answer, by default zh, for programs the first code domain, for translations the first bilingual one, for
    dialogue the first one of plain text. limit: the first items only. num_fewshot: examples before each item, by default what the
    benchmark says. samples_per_problem, temperature: of programs, and of what is written at all.
    allow_code_execution: run programs of the model where they cannot be isolated from this machine, too. json: a file for the
    result; what is done is kept beside it, and the same call goes on after a kill.
    """
    from pangu_sigma.device import one_thread
    from pangu_sigma.evaluate.benchmarks import BenchmarkRequest, format_tasks
    from pangu_sigma.evaluate.evaluation import benchmark_model

    asked = BenchmarkRequest(
        tuple(dict.fromkeys(names)),
        None if files is None else str(files),
        domain,
        limit,
        num_fewshot,
        temperature,
        samples_per_problem,
        allow_code_execution,
    )
    with one_thread:
        found = benchmark_model(Path(model), asked, None if json is None else Path(json))
    return Result(found, format_tasks(found))


def report(model: AnyPath, against: Paths = ()) -> Result | Results:
    """The summary of a run, whose page and pictures are drawn anew; with other runs in them, that of each, and the differences."""
    from pangu_sigma.train.report import write_report
    from pangu_sigma.train.summary import differences, format_comparison, format_summary, summarise

    run, others = Path(model), _paths(against)
    summary = summarise(run)
    write_report(run, others)
    if not others:
        return Result(summary, format_summary(summary))
    found = [summarise(other) | {"differences": differences(run, other)} for other in others]
    return Results([summary, *found], "\n\n".join(format_comparison(summary, other) for other in found))


def finetune(
    model: AnyPath,
    task: AnyPath,
    train_file: AnyPath,
    output: AnyPath,
    *,
    dev_file: AnyPath | None = None,
    learn: Literal["all", "experts", "experts+slot"] | None = None,
    domain: str | None = None,
    overrides: Overrides = (),
    lock: bool = True,
) -> Model:
    """Tune the trained run `model` to a task, in the folder `output`, and return the tuned model, whose state is the best one.

    task: "dialogue", "qa", "translation_zh_en", "translation_en_zh", "code", or a YAML file. train_file, dev_file: *.jsonl or
    *.jsonl.gz, a line {"prompt": …, "response": …} or {"messages": [{"role": …, "content": …}, …]}, and perhaps a "domain";
    dev_file decides which state is the best, and when it is enough. learn, domain: what learns, and the domain of lines that name
    none, where the task is not to say. overrides: as in `load_config`. lock: as in `train`. The same call goes on with a run that
    was stopped. What came of it is the `outcome` of the model and in `output`, finetune/result.json. Raises UserError for a task,
    key or domain that cannot be, for a file without a sample that can be used, and when `output` is another run.
    """
    folder = Path(output)
    check_folder_writable(folder, "--output")
    from pangu_sigma.device import one_thread
    from pangu_sigma.finetune.tuning import TuningRequest, finetune_run, format_result

    dev = None if dev_file is None else Path(dev_file)
    asked = TuningRequest(Path(task), Path(train_file), dev, learn, domain, _changes(overrides))
    with one_thread:
        found = finetune_run(Path(model), asked, folder, lock)
    return Model(folder, outcome=None if found is None else Result(found, format_result(found)))


def inherit(
    model: AnyPath,
    config: Config,
    output: AnyPath | None = None,
    *,
    heads: int | None = None,
    activation: Activation | None = None,
    noise: float = 0.0,
    reinit_ratio: float = 0.0,
    moments: bool = False,
) -> Receipt:
    """Make `output`, by default runs/NAME, a run of `config` whose step 0 answers as the dense `model`; `train` goes on from there.

    model: a dense run of this project, or the files of a released PanGu-α (foreign/README.md says which).
    heads, activation: what the files of the model do not say. noise, reinit_ratio: how replicated experts differ from each other at
    the start, by default not at all (inherit/variation.py). moments: carry Adam's state over, which a run of this project has.
    Returns the receipt, which is kept in the folder as lineage.json. Raises UserError when `output` exists, and for a model that is
    sparse, of another shape, damaged, or of a layout that is not known.
    """
    _, folder = run_of(config, output)
    check_folder_writable(folder, "--output")
    from pangu_sigma.device import one_thread
    from pangu_sigma.inherit import from_alpha
    from pangu_sigma.inherit.parent import open_parent
    from pangu_sigma.inherit.variation import Variation

    from_alpha.check_absent(folder)
    with one_thread:
        parent = open_parent(Path(model), heads, activation)
        return from_alpha.inherit(parent, config, folder, Variation(noise, reinit_ratio, config.seed), moments)


def planned_inheritance(
    model: AnyPath,
    config: Config,
    *,
    heads: int | None = None,
    activation: Activation | None = None,
    noise: float = 0.0,
    reinit_ratio: float = 0.0,
    moments: bool = False,
) -> Results:
    """Where every tensor would come from if `inherit` were called."""
    from pangu_sigma.inherit import from_alpha
    from pangu_sigma.inherit.parent import open_parent
    from pangu_sigma.inherit.receipt import format_mapping
    from pangu_sigma.inherit.variation import Variation

    parent = open_parent(Path(model), heads, activation)
    child = from_alpha.plan_inheritance(parent, config, Variation(noise, reinit_ratio, config.seed), moments)
    return Results(child.descents(), format_mapping(child))


def extend(
    model: AnyPath,
    config: Config,
    output: AnyPath | None = None,
    *,
    from_domain: str | None = None,
    from_dense: AnyPath | None = None,
    from_scratch: bool = False,
    heads: int | None = None,
    activation: Activation | None = None,
    skip_graph_check: bool = False,
) -> Receipt:
    """Make `output`, by default runs/NAME, a run of `config`, which has more domains, slots, English pieces or experts than the
    trained run `model`.

    Old domains answer as before, bit for bit, and keep Adam's state; `train` goes on from step 0. New domains begin as one of:
    from_domain: a domain of `model`, with its experts and its routing; from_dense: a dense model, as `inherit` takes it, with heads
    and activation where its files do not say them; from_scratch: drawn. skip_graph_check: compare logits without compiling graphs.
    The text of `config` is prepared before, with vocabulary.english_model set to tokenizer/english.model of `model`, so that tokens
    keep their ids. Returns the receipt, which is kept in the folder as lineage.json. Raises UserError when `output` exists, and for
    what cannot be extended, by key.
    """
    _, folder = run_of(config, output)
    check_folder_writable(folder, "--output")
    from pangu_sigma.device import one_thread
    from pangu_sigma.inherit.extend import Origin, extend_run
    from pangu_sigma.inherit.parent import open_parent

    with one_thread:
        dense = None if from_dense is None else open_parent(Path(from_dense), heads, activation)
        origin = Origin(from_domain, dense, from_scratch)
        return extend_run(Path(model), config, folder, origin, not skip_graph_check)


def extract(
    model: AnyPath,
    output: AnyPath,
    *,
    keep: Sequence[str] = (),
    drop: Sequence[str] = (),
    format: Literal["run", "mindir"] = "run",
    data: AnyPath | None = None,
    skip_graph_check: bool = False,
) -> Receipt:
    """Cut domains out of the trained run `model`: they answer as before, bit for bit, from a smaller model.

    keep: names of the domains to keep; or drop: of those to leave away. format: "run" makes `output` a run folder with its text,
    which `train` goes on from at step 0 with warm Adam moments; "mindir" makes it an exported model. data: the prepared text of
    `model` if it is no longer at its data.path. skip_graph_check: compare logits without compiling graphs.
    Returns the receipt, which is kept in the folder as lineage.json. Raises UserError when `output` exists and for a domain that is
    not there.
    """
    if format not in ("run", "mindir"):
        raise ConfigError(f"format={format!r} is not known; use 'run' or 'mindir'")
    check_folder_writable(Path(output), "--output")
    from pangu_sigma.device import one_thread
    from pangu_sigma.inherit.extract import extract_export, extract_run

    make = extract_run if format == "run" else extract_export
    with one_thread:
        return make(Path(model), Path(output), keep, drop, None if data is None else Path(data), not skip_graph_check)


def is_model(what: AnyPath) -> bool:
    """True if `inspect` takes a path for a model: a folder, or a file whose name is one of a file of weights."""
    return Path(what).is_dir() or Path(what).suffix in WEIGHTS_ENDINGS


def inspect(
    what: Config | AnyPath, *, keep: Sequence[str] = (), drop: Sequence[str] = (), verify: bool = False
) -> Result:
    """What a configuration weighs: parameters, and bytes on the host and on the device. Or what a model's files hold.

    what: a configuration; or the path of a run, checkpoint, export, or folder or file of weights. keep, drop: also the size that
    `extract` would leave with these. verify: compare every file of a model with its hash, which reads all of it.
    """
    from pangu_sigma.planning import inspect as inspection

    if isinstance(what, Config) or not is_model(what):
        if verify:
            raise ConfigError("--verify is for files of weights, and this is a configuration; leave it out")
        config: Config | None = what if isinstance(what, Config) else load_config(what)
        assert config is not None
        tree = inspection.inspect(config)
        text = inspection.format_inspection(tree)
    else:
        from pangu_sigma.planning.inspect_files import format_file_inspection, inspect_files

        found = inspect_files(Path(what), verify)
        config, tree, text = found.config, found.as_dict(), format_file_inspection(found)
    if keep or drop:
        if config is None:
            raise ConfigError(f"--keep, --drop: {what} is a dense model without domains; leave them out")
        tree["extract"] = inspection.extraction(config, keep, drop)
        text += f"\n{inspection.format_extraction(tree['extract'])}"
    return Result(tree, text)


def plan(
    config: Config,
    *,
    devices: int | None = None,
    compile: bool = False,
    factors: bool = False,
    scan: AnyPath | bool = False,
) -> Result:
    """Memory, traffic and time of a configuration on a number of NPUs.

    devices: number of NPUs. compile: let MindSpore compile the step for Ascend and compare, which takes minutes. factors: also the
    smallest parallel.capacity_factor and arrival_factor that drop no row, by simulation. scan: the fastest layouts on 8 to 4,096
    NPUs; a file also gets their picture. The result is not `ok` if it does not fit, or compiles to something else.
    """
    if devices is None and (scan is False or compile or factors):
        raise ConfigError("plan needs --devices N, for a plan on N NPUs; or --scan, for a table of 8 to 4,096 NPUs")
    from pangu_sigma.planning import scan as scanning
    from pangu_sigma.planning.differences import compile_plan
    from pangu_sigma.planning.factors import format_factors, needed_factors
    from pangu_sigma.planning.plan import laid_out, make_plan
    from pangu_sigma.planning.text import format_plan

    tree: dict[str, Any] = {}
    texts: list[str] = []
    ok = True
    if devices is not None:
        planned = (compile_plan if compile else make_plan)(config, devices)
        tree, texts = planned.as_dict(), [format_plan(planned)]
        ok = planned.fits and not (planned.compiled and planned.compiled.differences)
        if factors:
            needed = needed_factors(laid_out(config, devices))
            tree, texts = tree | {"factors": vars(needed)}, [*texts, format_factors(needed)]
    if scan is not False:
        found = scanning.scan(config, None if scan is True else Path(scan))
        tree, texts = tree | found.as_dict(), [*texts, scanning.format_scan(found)]
        ok = ok and found.least_devices is not None
    return Result(tree, "\n".join(texts), ok)


def doctor(
    model: AnyPath | None = None, *, device: Device = "cpu", chip: Chip | None = None, speed: bool = False
) -> Results:
    """Check this machine; a check that fails says what to do.

    device: "ascend" to demand NPUs, and all that a host of a cluster needs for them, of `chip`, and `model` on storage that all
    nodes share. speed: measure memory, Adam and matrix products, too.
    """
    for name, value in (("--chip", chip), ("MODEL", model)):
        if value is not None and device != "ascend":
            raise ConfigError(f"{name} {value} is about NPUs: add --device ascend")
    from pangu_sigma.doctor import format_checks, run_checks
    from pangu_sigma.launching.host.access import Host

    run = None if model is None else Path(model)
    checks = run_checks(Host() if device == "ascend" else None, chip, run, speed)
    return Results(checks, format_checks(checks), all(check.ok for check in checks))


def serve(
    model: AnyPath,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_host: Sequence[str] = (),
    api_key_file: AnyPath | None = None,
    limits: Sequence[str] = (),
    weights: Precision | None = None,
) -> int:
    """Serve a model over HTTP until SIGINT or SIGTERM, and return the exit status. limits: as `Limits.changed` takes them."""
    from pangu_sigma.generate.text import open_engine
    from pangu_sigma.serve import server
    from pangu_sigma.serve.limits import Limits

    changed, key = Limits.changed(limits), server.read_key(None if api_key_file is None else Path(api_key_file))
    address = server.Address(host, port, list(allow_host))
    with server.bind(address) as listening:  # before the model is read: a port that is taken is said at once
        decoder = open_engine(Path(model), changed.lanes, weights).decoder
        return server.serve(decoder, listening, address, key, changed)


def chat(
    model: AnyPath,
    *,
    domain: str | None = None,
    temperature: float = 0.7,
    max_new_tokens: int | None = None,
    seed: int | None = None,
    weights: Precision | None = None,
) -> int:
    """Talk with a model on standard input and output, and return the exit status. domain: who answers at first."""
    from pangu_sigma.generate.text import open_engine
    from pangu_sigma.serve.terminal import Settings, talk

    settings = Settings(domain, temperature, max_new_tokens, seed)
    return talk(open_engine(Path(model), 1, weights).decoder, settings, sys.stdin, sys.stdout)


def load(model: AnyPath, weights: Precision | None = None) -> Model:
    """The model in a run folder that `train` wrote (its newest intact checkpoint), or in a folder that `Model.export` wrote.

    weights: "float32", "float16" or "int8", how it has matrices in memory; None: what an export keeps, float32 of others.
    Raises UserError when the folder is neither.
    """
    loaded = Model(model, weights)
    _ = loaded.engine  # what is wrong with the folder shows here
    return loaded


class Model:
    """A trained model. `train`, `finetune` and `load` make one; it may stand for its path.

    path: its folder, absolute. config: its configuration. engine: what answers, loaded when it is first needed. outcome: what
    training or fine-tuning came to; None for a model that was loaded, and for a run that was stopped.
    """

    def __init__(self, path: AnyPath, weights: Precision | None = None, outcome: Result | None = None):
        self.path, self._weights, self.outcome = Path(path).absolute(), weights, outcome

    def __repr__(self) -> str:
        return f"Model({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    @cached_property
    def engine(self) -> Engine:
        from pangu_sigma.generate.text import open_engine

        return open_engine(self.path, weights=self._weights)

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
        prompts = [prompt] if isinstance(prompt, str) else prompt
        texts = [answer.text for answer in self.answers(prompts, domain, max_new_tokens, seed, stop, **sampling)]
        return texts[0] if isinstance(prompt, str) else texts

    def answers(
        self,
        prompt: list[str],
        domain: str | list[str],
        max_new_tokens: int = 64,
        seed: int = 0,
        stop: Sequence[str] = (),
        **sampling: float,
    ) -> Results:
        """What `generate` says for the same arguments, with ids, and whether a text has ended: `generate.text.Generated` of each.
        Numbers and text that cannot be are refused before the model is read."""
        for option, texts in (("--prompt", prompt), ("--stop", stop)):
            for text in texts:
                check_text(text, option)
        domains = [domain] * len(prompt) if isinstance(domain, str) else domain
        if len(domains) != len(prompt):
            raise ConfigError(
                f"domain has {len(domains)} names for {len(prompt)} prompts; give one name for all, or one for each"
            )
        options = Sampling(**sampling)  # type: ignore[arg-type]
        check_request(max_new_tokens, seed)
        from pangu_sigma.generate.text import generate

        pairs = list(zip(domains, prompt, strict=True))
        found = generate(self.engine, pairs, max_new_tokens, options, seed, stop)
        return Results(found, "\n".join(f"[{answer.domain}] {answer.prompt}|{answer.text}" for answer in found))

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

    def evaluate(self, against: Paths = (), all_samples: bool = False) -> Result:
        """Held-out loss of each domain, as the function `evaluate` gives it."""
        return evaluate(self.path, against, all_samples)

    def export(
        self,
        output: AnyPath,
        format: Literal["mindir", "safetensors", "hf", "run"] = "mindir",
        weights: Precision = "float32",
    ) -> Path:
        """Write the model of a run to `output` in another form, and return its path.

        format: "mindir" writes a folder that needs nothing else and checks that it gives the same greedy tokens; "safetensors" all
        weights into one file; "hf" a Hugging Face style folder of weights, tokenizer and routing table. "run" makes of such a
        folder a run that begins with it, Adam's state from nothing: there and back gives the same bits. weights: "float32",
        "float16" or "int8", how "mindir" keeps matrices. Raises UserError for a model that cannot be written so.
        """
        if format not in ("mindir", "safetensors", "hf", "run"):
            raise ConfigError(f"format={format!r} is not known; use 'mindir', 'safetensors', 'hf' or 'run'")
        if weights != "float32" and format != "mindir":
            raise ConfigError(f"weights={weights!r} is for format='mindir'; {format!r} has the weights as they are")
        from pangu_sigma.convert.conversion import convert_model
        from pangu_sigma.convert.mindir import export_mindir, verify_export
        from pangu_sigma.convert.safetensors import export_safetensors
        from pangu_sigma.device import one_thread

        if format == "mindir":
            with one_thread:
                written = export_mindir(self.path, Path(output), weights)
                tokens = verify_export(self.path, written)
            of = "of the checkpoint" if weights == "float32" else "that its weights give without MindSpore"
            logger.info("reloaded, and %d greedy tokens equal those %s", tokens, of)
            return written
        if format == "safetensors":
            written = export_safetensors(self.path, Path(output))
        else:
            written = convert_model(self.path, Path(output), format)
        logger.info("all weights of %s, without optimizer state", self.path)
        return written

    def _domain(self, name: str) -> Domain:
        from pangu_sigma.domains import domains_of

        return domains_of(self.config).named(name)
