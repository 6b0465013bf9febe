"""Python interface: the functions of `import pangu_sigma as ps`. Most are commands of `pangu-sigma`, too: `cli` makes options of
their parameters, and help of their docstrings. Each is a thin layer over the folder
that does the work.

An argument `model` is a `Model` or the path of a folder, `config` a `Config` or what `load_config` takes, and `overrides` changes
keys of the configuration. All functions may be called from any thread; calls that need MindSpore wait for each other.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ascend_ops.few_rows import Precision
from pangu_sigma import arguments, config_file
from pangu_sigma.arguments import AnyConfig, AnyPath, AtLeastOne, Count, Overrides, Paths, Seconds, Text, Texts, checked
from pangu_sigma.arguments import load_config as load_config
from pangu_sigma.bars import Bar
from pangu_sigma.checkpoint.run_folder import refuse_second_writer
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import UserError as UserError  # a public name
from pangu_sigma.errors import argument, warn_without_effect
from pangu_sigma.generate.sampling import Temperature
from pangu_sigma.generate.score import Score as Score  # a public name
from pangu_sigma.host_memory import check_training_fits
from pangu_sigma.loaded import Model
from pangu_sigma.loaded import evaluate as evaluate
from pangu_sigma.loaded import export as export
from pangu_sigma.loaded import generate as generate
from pangu_sigma.loaded import load as load
from pangu_sigma.machine import doctor as doctor
from pangu_sigma.npu.communicators import check_layout
from pangu_sigma.npu.host.environment import devices_of
from pangu_sigma.npu.supported import check_machine
from pangu_sigma.process import mindspore_lock
from pangu_sigma.ranks import launch as ranks_launch
from pangu_sigma.ranks.ranks import check_started_ranks, is_rank
from pangu_sigma.results import Result, Results, Table
from pangu_sigma.rre.own_table import Router, own_table
from pangu_sigma.sections import Activation
from pangu_sigma.writable import check_file_writable, check_folder_writable, refuse_link

if TYPE_CHECKING:
    from pangu_sigma.inherit.receipt import Receipt

logger = logging.getLogger(__name__)


@checked
def prepare_data(
    config: AnyConfig,
    input: Paths = (),
    check: bool = False,
    extend: bool = False,
    *,
    reader: Text | None = None,
    workers: AtLeastOne | None = None,
    ray: str | None = None,
    overrides: Overrides = (),
) -> Result:
    """Convert text to the token files, tokenizer and statistics that `train` reads, in the folder data.path.

    Returns the manifest: documents and tokens of each domain, and the number of lines that could not be used. If data.path has
    this very data, nothing is done; other data there is an error. A killed call goes on where it was.

    Args:
        config: a configuration.
        input: files, or folders of files: JSON lines (*.jsonl), JSON arrays (*.json), each also *.gz or *.zst, and Parquet. Records
            are {"text": …, "domain": …} unless section `data` says otherwise. By default text from software packages.
        check: only examine the text, and print the table and all problems; a hidden stage beside data.path helps the next call.
        extend: prepare only the domains that data.path lacks, and add their folders to it; what is there stays as it is.
        reader: function of yours, FILE.py:FUNCTION, that takes each record, a dict, and returns the one to use in its place, or
            None to leave it out, which is counted.
        workers: number of processes; by default one a core, as far as data.memory_gib allows, and one for a few MiB.
        ray: address of a Ray cluster that does the work, for several machines, or "auto" for the cluster of this machine.
        overrides: keys of the configuration to change, such as train.steps=10.

    Examples:
        pangu-sigma prepare-data sigma_tiny
        pangu-sigma prepare-data sigma_tiny --input mine.jsonl --set data.path=data/mine
        pangu-sigma prepare-data five.yaml --input law.jsonl --extend
    """
    from pangu_sigma.data.manifest import load_manifest
    from pangu_sigma.data.packaged.packages import packaged_files
    from pangu_sigma.data.prepare import prepare as preparation
    from pangu_sigma.data.prepare.extension import extension_of
    from pangu_sigma.data.prepare.overview import format_overview

    full_config, files = load_config(config, overrides), arguments.paths(input)
    folder, options = Path(full_config.data.path), preparation.Options(workers, ray, reader)
    # with `extend`: the configuration of the domains that data.path lacks, and the vocabulary of its data, which they keep
    new_config, vocabulary = extension_of(full_config) if extend else (full_config, None)
    if not files:
        sources = packaged_files(domains_of(new_config), folder.parent / "packages", new_config.data.max_mib_per_domain)
        files, options = list(sources), replace(options, sources=sources)
    if check:
        manifest, problems = preparation.run_preparation(new_config, files, folder, options, vocabulary, writes=False)
        table = "\n".join([format_overview(manifest), *problems])
        return Result(manifest.model_dump(mode="json") | {"problems": problems}, table, ok=not problems)
    manifest = preparation.prepare(new_config, files, folder, options, vocabulary)
    if extend:  # the result is about all domains
        manifest = load_manifest(folder, [domain.name for domain in full_config.domains])
    return Result(manifest.model_dump(mode="json"), format_overview(manifest))


@checked
def train(
    config: AnyConfig,
    output: AnyPath | None = None,
    *,
    device: Literal["cpu", "ascend"] = "cpu",
    start_over: bool = False,
    from_step: int | None = None,
    allow_data_change: bool = False,
    profile: bool = False,
    on_step: Callable[[Any], object] | None = None,
    overrides: Overrides = (),
) -> Model:
    """Train a configuration in a run folder, or resume a run, and return the trained model.

    A run folder with checkpoints resumes from the newest; changed keys are logged. A run at its last step is not trained further.
    Metrics, checkpoints and a report are in the run folder. The model's `outcome` is the summary of the training, or None if
    SIGTERM or `on_step` stopped it. Raises UserError if data or a changed key do not fit, or if another process trains in the
    folder.

    Args:
        config: a configuration, or a run folder to resume.
        output: run folder of a configuration, by default runs/NAME.
        device: "ascend" to train on NPUs, one a process.
        start_over: move the folder's contents aside, and begin at step 0.
        from_step: step of an older checkpoint to go on from; checkpoints of later steps are moved aside.
        allow_data_change: resume although the training text differs from the checkpoint's.
        profile: write a timeline of five steps to profile/trace.json of the run folder.
        on_step: function that is called with each step's metrics, a dictionary (`step`, `loss`, `loss/en`, `learning_rate`, …:
            training/log/metrics.py); if it returns True, the training saves this step and stops, and the next call goes on.
        overrides: keys of the configuration to change, such as train.steps=10.

    Examples:
        pangu-sigma train sigma_tiny
        pangu-sigma train sigma_tiny -o runs/short --set train.steps=100 --set routing.table=balanced
        pangu-sigma train runs/short --from-step 50 --set train.steps=200
    """
    from pangu_sigma.training.start import StartOptions, check_cpu, check_start

    resolved, folder = arguments.resolve_run(config, output, overrides)
    if device == "cpu":
        check_cpu(resolved)
        check_training_fits(resolved)
    else:
        check_machine(resolved)
    check_started_ranks(resolved.parallel)
    check_folder_writable(folder, "--output")
    if resolved.ecss.store == "file" and resolved.ecss.path is not None:
        check_folder_writable(Path(resolved.ecss.path), "ecss.path")
    options = StartOptions(start_over, allow_data_change, from_step)
    if not is_rank():  # a rank's launcher has checked it
        check_start(folder, resolved, options)
        refuse_second_writer(folder)
    from pangu_sigma.training.backend import Backend
    from pangu_sigma.training.loop import train as train_run

    backend = Backend()
    if device == "ascend":
        from pangu_sigma.npu.backend import AscendBackend

        backend = AscendBackend()
    try:
        with mindspore_lock:
            ranks = backend.connect(resolved)
            trainer = train_run(resolved, folder, backend, options, profile, on_step=on_step, ranks=ranks)
        stopped = trainer is not None and not trainer.finished  # None: the run was at its last step already
        outcome = _outcome(folder) if ranks.first and not stopped else None
    except OSError as error:
        error.filename = error.filename or str(folder)  # a write that fails names no file
        raise
    return Model(folder, outcome=outcome, stopped=stopped)


def _outcome(run: Path) -> Result | None:
    """Draw the report of a finished run, and return the summary of its log; if the log is lost, warn and return None."""
    from pangu_sigma.training.log.metrics import EmptyLogError
    from pangu_sigma.training.log.report import draw_report
    from pangu_sigma.training.log.summary import format_summary, summarise

    draw_report(run)
    try:
        summary = summarise(run)
    except EmptyLogError as error:
        logger.warning("no summary: %s", error)
        return None
    return Result(summary, format_summary(summary))


@checked
def launch(
    config: AnyPath,
    output: AnyPath | None = None,
    *,
    device: Literal["cpu", "ascend"] = "cpu",
    start_over: bool = False,
    from_step: int | None = None,
    allow_data_change: bool = False,
    nodes: AtLeastOne = 1,
    node_rank: Count | None = None,
    master_address: str | None = None,
    master_port: Count = ranks_launch.DEFAULT_PORT,
    max_restarts: Count = 0,
    grace: Seconds = 10.0,
    wait: Seconds = 300.0,
    hang_timeout: Seconds = 1800.0,
    dry_run: bool = False,
    overrides: Overrides = (),
) -> int | str:
    """Train on the processes that section `parallel` lays out, on NPUs or nodes, watch them, and return the exit status.

    With `dry_run` it returns a shell script of the commands that each node would run.

    Args:
        config: a shipped name or a YAML file, which each node loads; or a run folder to resume.
        output: run folder of a configuration, by default runs/NAME.
        device: "ascend" to train on NPUs, one a process.
        start_over: move the folder's contents aside, and begin at step 0.
        from_step: step of an older checkpoint to go on from; checkpoints of later steps are moved aside.
        allow_data_change: resume although the training text differs from the checkpoint's.
        nodes: number of nodes.
        node_rank: number of this node, 0 … nodes - 1; node 0 has the master address.
        master_address: address of node 0 that all nodes can reach.
        master_port: port of node 0; with several nodes also the next one.
        max_restarts: number of restarts from the last checkpoint after failures.
        grace: seconds for saving when asked to stop.
        wait: seconds to wait for the other nodes.
        hang_timeout: seconds without progress that count as a hang; 0: never.
        dry_run: print what each node would start, and start nothing.
        overrides: keys of the configuration to change, such as train.steps=10.

    Examples:
        pangu-sigma launch sigma_tiny --set parallel.data=2
        pangu-sigma launch sigma_1t --device ascend --nodes 64 --node-rank 0 --master-address 10.0.0.1 --max-restarts 3
        pangu-sigma launch sigma_1t --device ascend --set parallel.chip=910b --nodes 64 --dry-run
    """
    from pangu_sigma.checkpoint import run_folder
    from pangu_sigma.training.start import StartOptions, check_cpu, check_start

    changes = [config_file.as_text(change) for change in arguments.overrides_of(overrides)]  # for the ranks' command
    resolved, folder = arguments.resolve_run(config, output, changes)
    check_device = check_layout if device == "ascend" else check_cpu
    check_device(resolved)
    if nodes > 1 and not dry_run:
        for name, value in (("--node-rank", node_rank), ("--master-address", master_address)):
            if value in (None, ""):
                why = f"with {argument('--nodes')} {nodes} each is told its rank and where node 0 is"
                raise ConfigError(f"{argument(name)} is missing: {why}")
    job = ranks_launch.Job(
        command=training_command(Path(config), folder, changes, device, allow_data_change),
        logs=folder / "logs",
        ranks=resolved.parallel.ranks,
        nodes=nodes,
        node=node_rank or 0,
        address=master_address or ("MASTER" if nodes > 1 else "127.0.0.1"),  # MASTER: to replace, in a dry run
        port=master_port,
        devices=devices_of(resolved.parallel.chip) if device == "ascend" else None,
        restarts=max_restarts,
        grace=grace,
        wait=wait,
        hang_timeout=hang_timeout,
    )
    if dry_run:
        if start_over or from_step is not None:
            names = f"{argument('--start-over')}, {argument('--from-step')}"
            warn_without_effect(names, "the printed commands go on from the newest checkpoint")
        return ranks_launch.dry_run(job)
    ranks_launch.check_job(job)
    check_folder_writable(folder, "--output")
    refuse_link(job.logs)
    if not job.devices:  # the ranks run on CPUs
        check_training_fits(resolved, job.local)
    for change in check_start(folder, resolved, StartOptions(start_over, allow_data_change, from_step)):
        logger.info("%s", change)
    ranks_launch.check_ports(job)
    if (start_over or from_step is not None) and job.node == 0:
        with run_folder.one_writer(folder):  # before ranks start, so that a restart after a failure resumes
            run_folder.start_over(folder) if from_step is None else run_folder.go_back(folder, from_step)
    if nodes > 1:  # launchers compare the facts, and start no rank if the nodes differ
        job = replace(job, facts=training_facts(resolved, None if start_over else folder))
    return ranks_launch.launch(job)


def training_command(
    source: Path, output: Path, overrides: Sequence[str] = (), device: str = "cpu", allow_data_change: bool = False
) -> list[str]:
    """Return the command that every rank runs: `pangu-sigma train`, which resumes in a run with a checkpoint. source: the
    configuration, as the user named it and each node loads it, or the run folder. overrides: texts KEY=VALUE."""
    return [
        *(sys.executable, "-m", "pangu_sigma", "train", str(source)),
        *([] if source == output else ["--output", str(output)]),
        *([] if device == "cpu" else ["--device", device]),
        *(text for change in overrides for text in ("--set", change)),
        *(["--allow-data-change"] if allow_data_change else []),
        *(["--quiet"] if Bar.quiet else []),
    ]


def training_facts(config: Config, folder: Path | None) -> dict[str, str]:
    """Return {name: value} of the facts that must be equal on all nodes of a run: keys of the configuration, hashes of prepared
    data and routing tables, software versions. folder: run folder, whose tables count if it has a checkpoint; None for a run that
    starts over. Raises ConfigError, DataError or DamagedFile for files that are missing, damaged or do not fit."""
    from pangu_sigma.checkpoint.changes import leaves
    from pangu_sigma.checkpoint.checkpoint import checkpoints
    from pangu_sigma.checkpoint.run_folder import CHECKPOINTS
    from pangu_sigma.data.prepared import data_of, drawn_tables, read_prepared_tokenizer
    from pangu_sigma.stored.run import StoredRun

    tokenizer, data = read_prepared_tokenizer(config), data_of(config)
    run = StoredRun(folder) if folder and checkpoints(folder / CHECKPOINTS) else None
    table = run.table if run else drawn_tables(config, tokenizer)
    # the content hash, the training text's token counts, and the files' paths and sizes, which differ for a truncated copy too
    digest = hashlib.sha256(data.frequencies().tobytes() + data.manifest.content_hash.encode())
    for name, record in data.manifest.domains.items():
        for file in record.files:
            digest.update(f"{name}/{file} {(data.folder / name / file).stat().st_size}\n".encode())
    facts = {key: str(value) for key, value in leaves(config.model_dump(mode="json")).items()}
    facts |= {name: version(name) for name in ("pangu-sigma", "mindspore", "numpy")}
    return facts | {
        "vocabulary": tokenizer.hash[:16],
        "routing tables": table.hash[:16],
        "prepared data": digest.hexdigest()[:16],
    }


@checked
def metrics(run: AnyPath, kind: str = "step") -> Table:
    """Return what a run logged as columns, {name: array}, as `pandas.DataFrame` takes them; values of a domain such as loss/en.

    Args:
        run: a run folder.
        kind: "step", "evaluation", "load" (tokens_NK: tokens of each of K experts of N segments), or another of metrics.jsonl.
    """
    from pangu_sigma.training.log.metrics import metrics_columns

    return Table(metrics_columns(Path(run), kind))


@checked
def write_routing(config: AnyConfig, router: Router, output: AnyPath) -> Path:
    """Write routing tables of one's own for a configuration, whose text is prepared; `routing.table: FILE` trains with them.

    Args:
        config: a configuration.
        router: function of (text, id, domain, segment) that returns the expert of a token, 0 … experts_per_domain - 1; or an array
            of whole numbers that broadcasts to [segments of all RRE layers, domains, ids]. In a common segment the function is
            called once for all domains, with domain "".
        output: a new file, NAME.npz.
    """
    from pangu_sigma.data.prepared import read_prepared_tokenizer

    resolved, file = load_config(config), Path(output)
    if file.suffix != ".npz" or file.exists():
        raise ConfigError(f"{argument('--output')} {file}: name a new file, NAME.npz")
    check_file_writable(file, "--output")
    tokenizer = read_prepared_tokenizer(resolved)
    own_table(router, resolved, [tokenizer.decode([token]) for token in range(tokenizer.size)]).save(file)
    return file


@checked
def benchmark(
    model: AnyPath,
    names: Texts,
    *,
    files: AnyPath | None = None,
    include_path: AnyPath | None = None,
    domain: str | None = None,
    limit: AtLeastOne | None = None,
    num_fewshot: Count | None = None,
    samples_per_problem: AtLeastOne = 1,
    temperature: Temperature | None = None,
    allow_code_execution: bool = False,
    json: AnyPath | None = None,
) -> Result:
    """Run benchmarks on a model and return the metrics by benchmark: {metric: value, …, "n": …, "skipped": …, "truncated": …}.

    Args:
        model: a run, which keeps the metrics for its report, or another model.
        names: benchmarks of evaluate/README.md, or any of lm-evaluation-harness.
        files: folder with the published files of each benchmark in files/NAME/.
        include_path: folder with tasks of your own for lm-evaluation-harness, in YAML.
        domain: domain that answers; by default zh, or the first one of code or bilingual text for programs, translations.
        limit: number of first items to run.
        num_fewshot: number of examples before each item, by default the benchmark's.
        samples_per_problem: programs per problem of humaneval, mbpp.
        temperature: sampling temperature of generated answers, by default the benchmark's.
        allow_code_execution: run the programs that the model writes, in a sandbox.
        json: file for the result, beside which the same call resumes after a kill.

    Examples:
        pangu-sigma benchmark runs/sigma_tiny ocnli cmrc2018 --files benchmarks --json results.json
    """
    from pangu_sigma.evaluate.benchmarks import BenchmarkRequest, benchmark_model, format_tasks

    tasks, result_file = tuple(dict.fromkeys(arguments.texts(names))), None if json is None else Path(json)
    folder, own_tasks = (None if path is None else str(path) for path in (files, include_path))
    request = BenchmarkRequest(
        tasks, folder, domain, limit, num_fewshot, temperature, samples_per_problem, allow_code_execution, own_tasks
    )
    if result_file is not None:
        check_file_writable(result_file, "--json")
    with mindspore_lock:
        metrics = benchmark_model(Path(model), request, result_file)
    return Result(metrics, format_tasks(metrics))


@checked
def report(model: AnyPath, against: Paths = ()) -> Result | Results:
    """Summarise a run and redraw its report; or summarise prepared data, and draw its picture to FOLDER.report.png.

    Args:
        model: a run folder, or a folder of prepared data.
        against: other runs to plot and summarise too; the differences in loss are always `model` minus the other run.

    Examples:
        pangu-sigma report runs/sigma_tiny
        pangu-sigma report runs/sigma_tiny --against runs/short
        pangu-sigma report data/prepared
    """
    from pangu_sigma.data.prepared import is_prepared
    from pangu_sigma.inspection.prepared_report import report_prepared

    run, others = Path(model), arguments.paths(against)
    if is_prepared(run):
        if others:
            warn_without_effect(argument("--against"), f"it compares runs, and {run} is prepared data")
        return Result(*report_prepared(run))
    from pangu_sigma.training.log.report import write_report
    from pangu_sigma.training.log.summary import compare_logs, format_summary, summarise

    summary, *other_summaries = (summarise(folder) for folder in (run, *others))  # before drawing: raises if not a run
    loss_tables = []
    for other, other_summary in zip(others, other_summaries, strict=True):
        other_summary["differences"], loss_table = compare_logs(run, other)
        loss_tables.append(loss_table)
    tables = "\n\n".join(loss_tables)
    report_path = write_report(run, others, tables)
    if others:
        return Results([summary, *other_summaries], f"{tables}\n\n{'report':12} {report_path}")
    text = format_summary(summary)
    if forgetting := (summary["finetune"] or {}).get("forgetting"):  # of a tuned run that is finished
        from pangu_sigma.finetune.tuning import format_forgetting

        text += f"\n\n{format_forgetting(forgetting)}"
    return Result(summary, text)


@checked
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
) -> Model:
    """Fine-tune a trained run on a task, and return the tuned model in its best state. The same call resumes a stopped run.

    The model's `outcome`, also in finetune/result.json of `output`, is the result.

    Args:
        model: the trained run.
        task: "dialogue", "qa", "translation_zh_en", "translation_en_zh", "code", or a YAML file.
        train_file: *.jsonl or *.jsonl.gz with lines {"prompt": …, "response": …} or {"messages": [{"role": …, "content": …}, …]},
            optionally with "domain".
        output: run folder of the tuned model.
        dev_file: lines as in train_file; the loss on them selects the best state, and stops the training early.
        learn: parameters that are trained, by default the task's.
        domain: domain of lines that name none, by default the task's.
        overrides: keys of the configuration to change, such as train.steps=10.

    Examples:
        pangu-sigma finetune runs/sigma_tiny --task qa --train-file train.jsonl --dev-file dev.jsonl -o runs/qa
        pangu-sigma finetune runs/sigma_tiny --task code --train-file train.jsonl -o runs/code --learn experts
    """
    folder = Path(output)
    check_folder_writable(folder, "--output")
    from pangu_sigma.finetune.tuning import TuningRequest, finetune_run, format_result

    dev = None if dev_file is None else Path(dev_file)
    request = TuningRequest(Path(task), Path(train_file), dev, learn, domain, arguments.overrides_of(overrides))
    with mindspore_lock:
        result = finetune_run(Path(model), request, folder)
    outcome = None if result is None else Result(result, format_result(result))
    return Model(folder, outcome=outcome, stopped=result is None)


@checked
def inherit(
    model: AnyPath,
    config: AnyConfig,
    output: AnyPath | None = None,
    *,
    heads: int | None = None,
    activation: Activation | None = None,
    moments: bool = False,
    drop_rows: bool = False,
    dry_run: bool = False,
    overrides: Overrides = (),
) -> Receipt | Result:
    """Start a sparse run from a dense model: at step 0 it answers as that model, and `train` resumes it.

    Returns the receipt of the weights' origin, saved as lineage.json. Raises UserError if `output` exists.

    Args:
        model: a dense run of this project, or the files of a released PanGu-α (foreign/README.md lists them).
        config: configuration of the new run, which computes the model's GELU unless it names one.
        output: new run folder, by default runs/NAME.
        heads: attention heads of the model, if its files do not state them.
        activation: GELU of the model, if its files do not state it.
        moments: also copy the Adam moments of a dense run.
        drop_rows: leave out embedding rows whose tokens the prepared text lacks: the same text then becomes other tokens.
        dry_run: print the origin of every tensor, and write nothing.
        overrides: keys of the configuration to change, such as train.steps=10.

    Examples:
        pangu-sigma inherit runs/alpha_tiny sigma_tiny -o runs/inherited
        pangu-sigma inherit pangu-alpha_2.6B mine.yaml --dry-run
    """
    from pangu_sigma.inherit import from_alpha
    from pangu_sigma.inherit.parent import open_parent

    resolved = load_config(config, overrides)
    folder = Path(output or f"runs/{resolved.name}")
    if not dry_run:
        check_folder_writable(folder, "--output")
    with mindspore_lock:
        parent = open_parent(Path(model).absolute(), heads, activation)
        if dry_run:
            return Result(*from_alpha.mapped(parent, resolved, moments, drop_rows))  # values and their table
        return from_alpha.inherit(parent, resolved, folder, moments, drop_rows)


@checked
def extend(
    model: AnyPath,
    config: AnyConfig,
    output: AnyPath | None = None,
    *,
    from_domain: str | None = None,
    from_scratch: bool = False,
    overrides: Overrides = (),
) -> Receipt:
    """Add domains, slots or English pieces to a trained run, in a new run; old domains answer as before, bit for bit.

    Old domains keep their Adam moments; `train` resumes from step 0. Give one origin of the new domains. Prepare the text before,
    by `prepare-data --extend` in the run's data.path, or all of it with vocabulary.keep set to `model`, so that tokens keep their
    ids. Returns the record of the weights' origin, saved as lineage.json.

    Args:
        model: the trained run.
        config: configuration of the new run, with more domains, slots or English pieces.
        output: new run folder, by default runs/NAME.
        from_domain: copy new domains from this domain of the run, with its experts and routing.
        from_scratch: initialise new domains at random.
        overrides: keys of the configuration to change, such as train.steps=10.

    Examples:
        pangu-sigma extend runs/sigma_tiny more.yaml -o runs/more --from-domain zh
        pangu-sigma extend runs/sigma_tiny more.yaml -o runs/more --from-scratch
    """
    resolved = load_config(config, overrides)
    folder = Path(output or f"runs/{resolved.name}")
    check_folder_writable(folder, "--output")
    from pangu_sigma.inherit.extend import extend_run

    with mindspore_lock:
        return extend_run(Path(model).absolute(), resolved, folder, from_domain, from_scratch)


@checked
def extract(
    model: AnyPath,
    output: AnyPath,
    *,
    keep: Texts = (),
    drop: Texts = (),
    format: Literal["run", "mindir"] = "run",
    data: AnyPath | None = None,
) -> Receipt:
    """Extract domains from a trained run into a smaller model, in which they answer as before, bit for bit.

    Returns the record of the weights' origin, saved as lineage.json.

    Args:
        model: the trained run.
        output: new folder of the run or export; it must not exist.
        keep: names of the domains to keep.
        drop: or names of the domains to remove.
        format: "run" writes a run folder, from which `train` resumes at step 0 with its Adam moments; "mindir" an exported model.
        data: folder of the run's prepared text if it has moved from data.path.

    Examples:
        pangu-sigma extract runs/sigma_tiny --keep zh -o runs/zh
        pangu-sigma extract runs/sigma_tiny --drop code -o exported/without_code --format mindir
    """
    check_folder_writable(Path(output), "--output")
    from pangu_sigma.inherit.extract import extract_domains

    keep, drop, text = arguments.texts(keep), arguments.texts(drop), None if data is None else Path(data)
    with mindspore_lock:
        return extract_domains(Path(model).absolute(), Path(output), keep, drop, text, export=format == "mindir")


@checked
def inspect(
    what: AnyConfig, *, keep: Texts = (), drop: Texts = (), verify: bool = False, overrides: Overrides = ()
) -> Result:
    """Show the size of a configuration: parameters, and bytes on host and device; or what the files of a model hold.

    Args:
        what: a configuration; or a model: a run, checkpoint, export, or another folder or file of weights.
        keep: also show the size that `extract` would leave with these domains.
        drop: or without these domains.
        verify: compare every file of a model with its hash; "damaged" has a message on each damaged file, and `ok` is then False.
        overrides: keys of the configuration to change, such as train.steps=10.

    Examples:
        pangu-sigma inspect sigma_1t --keep zh
        pangu-sigma inspect sigma_tiny --set model.experts_per_domain=16
        pangu-sigma inspect runs/sigma_tiny --verify
    """
    from pangu_sigma.inspection import inspect as inspection

    path = None if isinstance(what, Config) else Path(what)
    if path is not None and (path.is_dir() or path.suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin")):
        from pangu_sigma.inspection.inspect_files import format_file_inspection, inspect_files

        if overrides:
            warn_without_effect(argument("--set", "overrides"), f"{what} is not a configuration")
        files = inspect_files(path, verify)
        config, result = files.config, Result(files.as_dict(), format_file_inspection(files), ok=not files.damaged)
    else:
        if verify:
            warn_without_effect(argument("--verify"), "it is about files of weights, and this is a configuration")
        config = load_config(what, overrides)
        sizes = inspection.inspect(config)
        result = Result(sizes, inspection.format_inspection(sizes))
    if config is not None and (keep or drop):
        result["extract"] = inspection.extraction(config, arguments.texts(keep), arguments.texts(drop))
        result.table += f"\n{inspection.format_extraction(result['extract'])}"
    elif keep or drop:
        warn_without_effect(f"{argument('--keep')}, {argument('--drop')}", f"{what} has no domains that can be read")
    return result


@checked
def plan(
    config: AnyConfig,
    *,
    devices: AtLeastOne | None = None,
    compile: bool = False,
    scan: bool = False,
    overrides: Overrides = (),
) -> Result:
    """Plan the memory, traffic and time of a configuration on a number of NPUs.

    The result is not `ok` if the plan does not fit, or differs from the compiled step.

    Args:
        config: a configuration.
        devices: number of NPUs.
        compile: also compile the step for Ascend with MindSpore, and compare; takes minutes.
        scan: also find the fastest layouts on 8 to 4,096 NPUs.
        overrides: keys of the configuration to change, such as train.steps=10.

    Examples:
        pangu-sigma plan sigma_1t --devices 512
        pangu-sigma plan sigma_1t --devices 512 --compile
        pangu-sigma plan sigma_1t --set parallel.chip=910b --scan
    """
    if devices is None and (not scan or compile):
        table = f"{argument('--scan')}, for a table of 8 to 4,096 NPUs"
        raise ConfigError(f"plan needs {argument('--devices')} N, for a plan on N NPUs; or {table}")
    from pangu_sigma.npu.plan import plan as plans
    from pangu_sigma.npu.plan.differences import compile_plan

    resolved, figures, lines, ok = load_config(config, overrides), dict[str, Any](), list[str](), True
    if devices is not None:
        figures = compile_plan(resolved, devices) if compile else plans.make_plan(resolved, devices)
        lines, ok = [plans.format_plan(figures)], figures["fits"] and not figures["differences"]
    if scan:
        layouts = plans.scan(resolved)
        figures, lines = figures | layouts, [*lines, *plans.format_tree(layouts)]
        ok = ok and layouts["least_devices"] is not None  # None: no number of NPUs is enough
    return Result(figures, "\n".join(lines), ok)


@checked
def chat(
    model: AnyPath,
    *,
    domain: str | None = None,
    temperature: Temperature = 0.7,
    max_new_tokens: int | None = None,
    seed: Count | None = None,
    weights: Precision | None = None,
) -> int:
    """Chat with a trained model on standard input and output, and return the exit status.

    Args:
        model: a run, export, Hugging Face style folder, or files of PanGu-α.
        domain: first domain to answer, by default the model's first.
        temperature: sampling temperature; 0 is greedy.
        max_new_tokens: maximum tokens of an answer, by default as many as fit.
        seed: random seed; the same seed draws the same answers.
        weights: precision of matrices in memory, by default float32 for a run, the stored one for an export.

    Examples:
        pangu-sigma chat runs/sigma_tiny --domain en
    """
    from pangu_sigma.generate.text import open_decoder
    from pangu_sigma.serve.terminal import ChatSettings, run_chat

    settings = ChatSettings(domain, temperature, max_new_tokens, seed)
    return run_chat(open_decoder(Path(model), 1, weights), settings, sys.stdin, sys.stdout)


@checked
def serve(
    model: AnyPath,
    *,
    host: str = "127.0.0.1",
    port: Count = 8000,
    allow_host: Texts = (),
    api_key_file: AnyPath | None = None,
    limits: Texts = (),
    weights: Precision | None = None,
) -> int:
    """Serve a trained model over HTTP, with OpenAI's interface, until SIGINT or SIGTERM, and return the exit status.

    Args:
        model: a run, export, Hugging Face style folder, or files of PanGu-α.
        host: address to listen on; 0.0.0.0 is all of this machine.
        port: port to listen on; 0 is any free one, which is logged.
        allow_host: other host names of this server.
        api_key_file: file with the API key; or set PANGU_SIGMA_API_KEY.
        limits: limits of the server to change, such as lanes=16.
        weights: precision of matrices in memory, by default float32 for a run, the stored one for an export.

    Examples:
        pangu-sigma serve runs/sigma_tiny
        pangu-sigma serve exports/sigma_tiny --host 0.0.0.0 --port 80 --api-key-file key.txt --set lanes=16
        pangu-sigma serve runs/sigma_tiny --weights int8
    """
    from pangu_sigma.generate.text import open_decoder
    from pangu_sigma.serve import server
    from pangu_sigma.serve.served import Limits

    new_limits = config_file.validated(Limits, config_file.override({}, arguments.texts(limits)))
    address = server.Address(host, port, arguments.texts(allow_host))
    key = server.read_key(None if api_key_file is None else Path(api_key_file))
    with server.bind(address) as listening:  # before the model is loaded, so that a busy port is reported at once
        decoder = open_decoder(Path(model), new_limits.lanes, weights)
        return server.serve(decoder, listening, address, key, new_limits)
