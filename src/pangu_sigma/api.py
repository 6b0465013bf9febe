"""Python interface: the functions of `import pangu_sigma as ps`, which the commands call too. Each is a thin layer over the
folder that does the work. docs/commands.md lists commands and functions side by side.

An argument `model` is a `Model` or the path of a folder, `config` a `Config` or what `load_config` takes; paths may be strings or
`pathlib.Path`. An error that the user can fix is raised as `UserError`, whose message names the fix. All functions may be called
from any thread. MindSpore computes one thing at a time, so calls from several threads wait for each other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pangu_sigma import config_file
from pangu_sigma.arguments import AnyPath, Overrides, Paths, to_overrides, to_path, to_paths, to_texts
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.device import mindspore_lock
from pangu_sigma.errors import UserError as UserError  # a public name
from pangu_sigma.errors import argument
from pangu_sigma.generate.score import Score as Score  # a public name
from pangu_sigma.host_memory import check_training_fits
from pangu_sigma.kinds import check_kinds
from pangu_sigma.loaded import Model
from pangu_sigma.loaded import evaluate as evaluate
from pangu_sigma.loaded import load as load
from pangu_sigma.lock import LOCK, folder_lock
from pangu_sigma.npu.supported import check_machine
from pangu_sigma.ranks.ranks import is_rank, started_ranks
from pangu_sigma.results import Result, Results, Table
from pangu_sigma.rre.own_table import Router, own_table
from pangu_sigma.sections import Activation
from pangu_sigma.shipped import config_path
from pangu_sigma.writable import check_file_writable, check_folder_writable

if TYPE_CHECKING:
    from pangu_sigma.inherit.receipt import Receipt

logger = logging.getLogger(__name__)

Device = Literal["cpu", "ascend"]


def _loaded(config: Config | AnyPath) -> Config:
    """Return a configuration, which an argument may name as that of `load_config` does."""
    return config if isinstance(config, Config) else load_config(config)


@check_kinds
def load_config(config: AnyPath, overrides: Overrides = ()) -> Config:
    """Load a configuration from a shipped name, such as "sigma_tiny", from a YAML file, or from a run folder.
    overrides: values by key path, such as {"train.steps": 100, "domains.0.weight": 2.0}. A section as a value replaces the section.
    """
    from pangu_sigma.checkpoint.model_files import recorded_kind
    from pangu_sigma.checkpoint.run_folder import run_config

    path, changes = to_path(config, "config"), to_overrides(overrides)
    file = path if path.is_dir() else config_path(path)
    loaded = run_config(file, changes) if file.is_dir() else config_file.load_config(file, changes)
    named = config_file.names_reader(changes) or not (file.is_dir() or recorded_kind(file))
    return loaded.with_reader_named() if named and loaded.data.reader is not None else loaded


@check_kinds
def prepare_data(
    config: Config | AnyPath,
    input: Paths = (),
    check: bool = False,
    extend: AnyPath | None = None,
    *,
    workers: int | None = None,
    ray: str | None = None,
) -> Result:
    """Convert text to the token files, tokenizer and statistics that `train` reads, in the folder `config.data.path`.

    input: files, or folders of files: JSON lines (*.jsonl), JSON arrays (*.json), each also *.gz or *.zst, and Parquet. Records are
    {"text": …, "domain": …} unless section `data` says otherwise. By default text from ordinary software packages.
    Returns the manifest: documents and tokens of each domain, and the number of lines that could not be used. A folder that has
    this result is left unchanged, other data of the same domains is replaced with a warning, data of other domains is an error.
    check: only examine the text, and write nothing but downloaded packages. The result has the manifest that would be written, and
    under "problems" why the text would be refused; then `ok` is False. extend: folder of prepared data with other domains of
    `config`: their token files and vocabulary are kept, and only the text of the domains that it lacks is prepared.
    The result is the same however it is made, and a killed call goes on where it was. workers: number of processes; by default one
    a core, as far as data.memory_gib allows, and one for a few MiB. ray: address of a Ray cluster that does the work, for several
    machines, or "auto" for the cluster of this machine.
    """
    from pangu_sigma.data.prepare import extended
    from pangu_sigma.data.prepare import prepare as preparation
    from pangu_sigma.data.prepare.overview import format_overview

    config = _loaded(config)
    files, options = to_paths(input, "--input"), preparation.Options(workers, ray)
    old = None if extend is None else to_path(extend, "--extend")
    if check:
        manifest, problems = (
            preparation.preview(config, files, options)
            if old is None
            else extended.preview_extension(config, files, old, options)
        )
        table = "\n".join([format_overview(manifest), *problems])
        return Result(manifest.model_dump(mode="json") | {"problems": problems}, table, not problems)
    output = Path(config.data.path)
    manifest = (
        preparation.prepare(config, files, output, options)
        if old is None
        else extended.prepare_extension(config, files, old, output, options)
    )
    return Result(manifest.model_dump(mode="json"), format_overview(manifest))


def resolve_run(
    config: Config | AnyPath, output: AnyPath | None = None, overrides: Overrides = ()
) -> tuple[Config, Path]:
    """Return the configuration and the run folder for `train` and `launch`. A folder is a run folder, with its configuration;
    any other argument is a configuration, and the run folder is `output`, by default runs/NAME."""
    if isinstance(config, Config):
        return config, to_path(f"runs/{config.name}" if output is None else output, "--output")
    loaded = load_config(config, overrides)
    if not Path(config).is_dir():
        return resolve_run(loaded, output)
    if output is not None:
        raise ConfigError(f"{config} is a run, which goes on where it is: leave {argument('--output')} {output} out")
    return loaded, Path(config)


@check_kinds
def train(
    config: Config | AnyPath,
    output: AnyPath | None = None,
    *,
    device: Device = "cpu",
    start_over: bool = False,
    allow_data_change: bool = False,
    lock: bool = True,
    profile: bool = False,
    on_step: Callable[[Any], object] | None = None,
) -> Model:
    """Train a configuration in the run folder `output`, by default runs/NAME, and return the trained model.

    config: a configuration, or a run folder to resume. A run folder with checkpoints resumes from the newest; changed keys
    are logged. A run at its last step is only opened. Metrics, checkpoints and a report are in the run folder. The model's
    `outcome` is the summary of the training, or None if SIGTERM or `on_step` stopped it.

    start_over: move the folder's contents aside and begin at step 0. allow_data_change: resume although the training text differs
    from the checkpoint's. lock: False to write without a lock, for file systems that have none; a second writer is then not
    detected. profile: write a timeline of some steps to the run folder. on_step: function that is called with each step's metrics
    (`step`, `loss`, `per_domain_loss`, `load_NK`, …: train.log.metrics.StepMetrics); if it returns True, the training stops after
    this step, saved, and the next call goes on. Raises UserError if the data is not prepared, if data or a changed key do not fit,
    or if another process trains in the folder.
    """
    from pangu_sigma.training.start import StartOptions, check_cpu, check_start

    if on_step is not None and not callable(on_step):
        raise ConfigError(f"on_step={on_step!r} is not allowed: a function of a step's metrics")
    config, folder = resolve_run(config, output)
    if device == "cpu":
        check_cpu(config)
        check_training_fits(config)
    else:
        check_machine()
    started_ranks(config.parallel)
    check_folder_writable(folder, "--output")
    if config.ecss.path is not None:
        check_folder_writable(Path(config.ecss.path), "ecss.path")
    options = StartOptions(start_over, allow_data_change, lock)
    if not is_rank():  # whose launcher has checked it
        check_start(folder, config, options)
        if (folder / LOCK).exists():  # before MindSpore is imported; `train_run` takes it again
            with folder_lock(folder, lock):
                pass
        from pangu_sigma.training.finished import take_up_finished

        if take_up_finished(folder, config, options):
            return Model(folder, outcome=_summary(folder))
    from pangu_sigma.training.backend import Backend
    from pangu_sigma.training.loop import train as train_run

    backend = Backend()
    if device == "ascend":
        from pangu_sigma.npu.backend import AscendBackend

        backend = AscendBackend()
    with mindspore_lock:
        trainer = train_run(config, folder, backend, options, profile, on_step=on_step)
    outcome = _summary(folder) if trainer.finished and trainer.ranks.first else None
    trainer.ranks.leave()
    return Model(folder, outcome=outcome, stopped=not trainer.finished)


def _summary(run: Path) -> Result | None:
    """Return the summary of a run; None, with a warning, if its log is lost, which does not affect the training."""
    from pangu_sigma.training.log.metrics import EmptyLogError
    from pangu_sigma.training.log.summary import format_summary, summarise

    try:
        summary = summarise(run)
    except EmptyLogError as lost:
        logger.warning("no summary: %s", lost)
        return None
    return Result(summary, format_summary(summary))


@check_kinds
def metrics(run: AnyPath, kind: str = "step") -> Table:
    """Return what a run logged as columns, {name: array}, as `pandas.DataFrame` takes them; by domain such as per_domain_loss/en.
    kind: "step", "evaluation", "load" (tokens of each expert, tokens_NK [rows, N, K]), or another kind of line in metrics.jsonl."""
    from pangu_sigma.training.log.columns import metrics_columns

    return Table(metrics_columns(to_path(run, "run"), kind))


@check_kinds
def write_routing(config: Config | AnyPath, router: Router, output: AnyPath) -> Path:
    """Write routing tables of one's own for a configuration, whose text is prepared; `routing.table: FILE` trains with them.
    router: function of (text, id, domain, segment) that returns the expert of a token, 0 … experts_per_domain - 1; or an array of
    whole numbers that broadcasts to [segments of all RRE layers, domains, ids]. In a common segment experts are those of all
    domains, and the function is asked once for all, with domain "". output: a new file, NAME.npz.
    """
    from pangu_sigma.data.prepared import read_prepared_tokenizer

    config, file = _loaded(config), to_path(output, "--output")
    if file.suffix != ".npz" or file.exists():
        raise ConfigError(f"{argument('--output')} {file}: name a new file, NAME.npz")
    check_file_writable(file, "--output")
    tokenizer = read_prepared_tokenizer(config)
    own_table(router, config, [tokenizer.decode([token]) for token in range(tokenizer.size)]).save(file)
    return file


@check_kinds
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
    """Run benchmarks on a model and return the metrics by benchmark: {metric: value, …, "n": …, "skipped": …, "truncated": …}.
    model: a run, which keeps the metrics for its report, or another model. names: benchmarks of evaluate/README.md, or any of
    lm-evaluation-harness. files: folder with the published files of each benchmark in files/NAME/. domain: domain that answers; by
    default zh, or the first one of code or bilingual text for programs, translations. limit: number of first items
    to run. num_fewshot: number of examples before each item, by default the benchmark's.
    samples_per_problem: programs per problem. temperature: for programs and translations. allow_code_execution: run its
    programs even where they cannot be isolated. json: file for the result, beside which the same call resumes after a kill.
    """
    from pangu_sigma.evaluate.benchmarks.benchmarks import BenchmarkRequest, format_tasks
    from pangu_sigma.evaluate.evaluation import benchmark_model

    request = BenchmarkRequest(
        tuple(dict.fromkeys(to_texts(names, "names"))),
        None if files is None else str(to_path(files, "--files")),
        domain,
        limit,
        num_fewshot,
        temperature,
        samples_per_problem,
        allow_code_execution,
    )
    file = None if json is None else to_path(json, "--json")
    if file is not None:
        check_file_writable(file, "--json")
    with mindspore_lock:
        metrics = benchmark_model(to_path(model, "model"), request, file)
    return Result(metrics, format_tasks(metrics))


@check_kinds
def report(model: AnyPath, against: Paths = ()) -> Result | Results:
    """Summarise a run and redraw its report. against: other runs to plot and summarise too; the differences in loss are always
    those of `model` minus theirs. model: or a folder of prepared data, whose picture is written to `<folder>.report.png`."""
    from pangu_sigma.inspection.prepared_report import is_prepared

    if is_prepared(to_path(model, "model")):
        return _report_of_data(Path(model), against)
    from pangu_sigma.training.log.differences import loss_differences
    from pangu_sigma.training.log.report import write_report
    from pangu_sigma.training.log.summary import format_comparison, format_summary, summarise

    run, others = to_path(model, "model"), to_paths(against, "--against")
    summary, *summaries = (summarise(each) for each in (run, *others))  # says what is no run, before it is drawn
    differences = [loss_differences(run, other) for other in others]
    page = write_report(run, others, differences)
    if not others:
        text = format_summary(summary)
        if found := (summary["finetune"] or {}).get("forgetting"):  # of a tuned run that is finished
            from pangu_sigma.finetune.forgetting import format_forgetting

            text += f"\n\n{format_forgetting(found)}"
        return Result(summary, text)
    for each, found in zip(summaries, differences, strict=True):
        each["differences"] = found
    tables = [format_comparison(summary, other) for other in summaries]
    return Results([summary, *summaries], "\n\n".join([*tables, f"{'report':12} {page}"]))


def _report_of_data(folder: Path, against: Paths) -> Result:
    from pangu_sigma.inspection.prepared_report import report_prepared

    if to_paths(against, "--against"):
        raise ConfigError(f"{argument('--against')} compares runs, and {folder} is prepared data; leave it out")
    return Result(*report_prepared(folder))


@check_kinds
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
    """Fine-tune the trained run `model` on a task in the run folder `output`, and return the tuned model in its best state.
    task: "dialogue", "qa", "translation_zh_en", "translation_en_zh", "code", or a YAML file. train_file, dev_file: *.jsonl or
    *.jsonl.gz with lines {"prompt": …, "response": …} or {"messages": [{"role": …, "content": …}, …]}, optionally with "domain".
    The loss on dev_file selects the best state and stops the training early. learn: parameters that are trained, domain: domain of
    lines that name none, both by default the task's. overrides: as in `load_config`. lock: as in `train`. The same call resumes a
    stopped run. The model's `outcome`, also in finetune/result.json of `output`, is the result.
    """
    folder = to_path(output, "--output")
    check_folder_writable(folder, "--output")
    from pangu_sigma.finetune.seconds import Seconds

    seconds = Seconds()  # from here on, as what is imported next takes seconds
    from pangu_sigma.finetune.tuning import TuningRequest, finetune_run, format_result

    dev = None if dev_file is None else to_path(dev_file, "--dev-file")
    chosen, lines = to_path(task, "--task"), to_path(train_file, "--train-file")
    request = TuningRequest(chosen, lines, dev, learn, domain, to_overrides(overrides))
    with mindspore_lock:
        result = finetune_run(to_path(model, "model"), request, folder, lock, seconds)
    return Model(
        folder, outcome=None if result is None else Result(result, format_result(result)), stopped=result is None
    )


@check_kinds
def inherit(
    model: AnyPath,
    config: Config | AnyPath,
    output: AnyPath | None = None,
    *,
    heads: int | None = None,
    activation: Activation | None = None,
    moments: bool = False,
    drop_rows: bool = False,
    dry_run: bool = False,
) -> Receipt | Results:
    """Create a run of `config` in `output`, by default runs/NAME, that answers at step 0 as the dense `model`; `train` resumes it.
    model: a dense run of this project, or the files of a released PanGu-α (foreign/README.md lists them). heads, activation:
    needed if the model's files do not state them. The run computes the model's GELU unless `config` names one. moments: also
    copy the Adam moments, which a run of this project has. drop_rows: leave out embedding rows of a run whose tokens the
    prepared text lacks, although the same text then becomes other tokens, which is refused without. dry_run: write nothing,
    return the origin of each tensor.
    Returns the receipt of the weights' origin, saved as lineage.json. Raises UserError if `output` exists, or `model` does not fit.
    """
    config = _loaded(config)
    _, folder = resolve_run(config, output)
    if not dry_run:
        check_folder_writable(folder, "--output")
    from pangu_sigma.inherit import from_alpha
    from pangu_sigma.inherit.parent import open_parent
    from pangu_sigma.inherit.receipt import format_mapping

    if not dry_run:
        from_alpha.check_absent(folder)
    with mindspore_lock:
        parent = open_parent(to_path(model, "model"), heads, activation)
        if not dry_run:
            return from_alpha.inherit(parent, config, folder, moments, drop_rows)
        child = from_alpha.plan_inheritance(parent, config, moments, drop_rows)
        return Results(child.descents(), format_mapping(child))


@check_kinds
def extend(
    model: AnyPath,
    config: Config | AnyPath,
    output: AnyPath | None = None,
    *,
    from_domain: str | None = None,
    from_dense: AnyPath | None = None,
    from_scratch: bool = False,
    heads: int | None = None,
    activation: Activation | None = None,
    skip_graph_check: bool = False,
) -> Receipt:
    """Create a run of `config` in `output`, by default runs/NAME, from the trained run `model`, which has fewer domains, slots
    or English pieces.
    Old domains answer as before, bit for bit, and keep their Adam moments; `train` resumes from step 0. Give one origin of the new
    domains: from_domain: a domain of `model`, with its experts and routing; from_dense: a dense model as in `inherit`, with heads
    and activation if its files do not contain them; from_scratch: random weights. skip_graph_check: compare logits without
    compiling graphs. The text of `config` must be prepared before, with vocabulary.keep set to `model`, so that tokens keep their
    ids and rows. Returns the record of the weights' origin, saved as lineage.json.
    """
    config = _loaded(config)
    _, folder = resolve_run(config, output)
    check_folder_writable(folder, "--output")
    from pangu_sigma.inherit.extend import Origin, extend_run
    from pangu_sigma.inherit.parent import open_parent

    with mindspore_lock:
        dense = None if from_dense is None else open_parent(to_path(from_dense, "--from-dense"), heads, activation)
        origin = Origin(from_domain, dense, from_scratch)
        return extend_run(to_path(model, "model"), config, folder, origin, not skip_graph_check)


@check_kinds
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
    """Extract domains from the trained run `model` into a smaller model, in which they answer as before, bit for bit.
    keep: names of the domains to keep; or drop: names of those to remove. format: "run" writes a run folder with its text, from
    which `train` resumes at step 0 with its Adam moments; "mindir" writes an exported model. data: folder of the prepared text of
    `model` if it has moved from data.path. skip_graph_check: compare logits without compiling graphs. Returns as `extend`.
    """
    check_folder_writable(to_path(output, "--output"), "--output")
    from pangu_sigma.inherit.extract import extract_domains

    path, text = to_path(model, "model"), None if data is None else to_path(data, "--data")
    kept, dropped = to_texts(keep, "--keep"), to_texts(drop, "--drop")
    with mindspore_lock:
        return extract_domains(path, Path(output), kept, dropped, text, not skip_graph_check, format == "mindir")


def is_model(what: AnyPath) -> bool:
    """Return True if `inspect` treats a path as a model: a folder, or a file with the suffix of a file of weights."""
    return to_path(what, "what").is_dir() or Path(what).suffix in (".safetensors", ".ckpt", ".pt", ".bin")


@check_kinds
def inspect(
    what: Config | AnyPath, *, keep: Sequence[str] = (), drop: Sequence[str] = (), verify: bool = False
) -> Result:
    """Return the size of a configuration: parameters, and bytes on host and device. For a model, return the contents of its files.
    what: a configuration; or the path of a run, checkpoint, export, or folder or file of weights. keep, drop: also return the size
    that `extract` would leave. verify: compare every file of a model with its hash, which reads all of it; "damaged" has a message
    on each damaged file, and the result's `ok` is then False.
    """
    from pangu_sigma.inspection import inspect as inspection

    damaged: list[str] = []
    if isinstance(what, Config) or not is_model(what):
        if verify:
            raise ConfigError(f"{argument('--verify')} is for files of weights, not for a configuration; leave it out")
        config: Config | None = _loaded(what)
        assert config is not None
        tree = inspection.inspect(config)
        text = inspection.format_inspection(tree)
    else:
        from pangu_sigma.inspection.inspect_files import format_file_inspection, inspect_files

        files = inspect_files(Path(what), verify)
        config, tree, text, damaged = files.config, files.as_dict(), format_file_inspection(files), files.damaged
    if (keep or drop) and not (damaged and config is None):
        if config is None:
            named = f"{argument('--keep')}, {argument('--drop')}"
            raise ConfigError(f"{named}: {what} is a dense model without domains; leave them out")
        tree["extract"] = inspection.extraction(config, to_texts(keep, "--keep"), to_texts(drop, "--drop"))
        text += f"\n{inspection.format_extraction(tree['extract'])}"
    return Result(tree, text, ok=not damaged)


@check_kinds
def plan(
    config: Config | AnyPath,
    *,
    devices: int | None = None,
    compile: bool = False,
    scan: bool = False,
) -> Result:
    """Plan the memory, traffic and time of a configuration on a number of NPUs.
    devices: number of NPUs. compile: also compile the step for Ascend with MindSpore, and compare; takes minutes. scan: also find
    the fastest layouts on 8 to 4,096 NPUs. The result is not `ok` if the plan does not fit, or differs from the compiled step.
    """
    if devices is not None and devices < 1:
        raise ConfigError(f"{argument('--devices')} {devices} is not allowed: 1 or more")
    if devices is None and (not scan or compile):
        raise ConfigError(
            f"plan needs {argument('--devices')} N, for a plan on N NPUs; or {argument('--scan')}, for a table of 8 to 4,096 NPUs"
        )
    from pangu_sigma.npu.plan.differences import compile_plan
    from pangu_sigma.npu.plan.plan import format_plan, format_tree, make_plan
    from pangu_sigma.npu.plan.plan import scan as scan_devices

    config = _loaded(config)
    tree: dict[str, Any] = {}
    texts: list[str] = []
    ok = True
    if devices is not None:
        planned = (compile_plan if compile else make_plan)(config, devices)
        tree, texts = planned.as_dict(), [format_plan(planned)]
        ok = planned.fits and not planned.differences
    if scan:
        scanned = scan_devices(config)
        tree, texts = tree | scanned, [*texts, *format_tree(scanned)]
        ok = ok and scanned["least_devices"] is not None
    return Result(tree, "\n".join(texts), ok)
