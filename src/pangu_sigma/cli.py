"""The command `pangu-sigma`.

Exit status: 0 done; 1 a check failed (doctor) or something broke; 2 something the user can fix, said in one message.
Commands import what they need when they run, so that a wrong configuration is refused before MindSpore is loaded.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import dump_config, load_config
from pangu_sigma.errors import UserError

if TYPE_CHECKING:
    from pangu_sigma.launching.launch import Job

logger = logging.getLogger(__name__)

BENCHES = ("ops", "adam", "ecss", "moe", "train", "tokenizer", "scale")
"""Modules of `pangu_sigma.bench`, each with run(peers) -> rows."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("GLOG_v", "3")  # MindSpore's own warnings: many, and about its own insides
    try:
        return options.run_command(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pangu-sigma", description="PanGu-Σ on MindSpore")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _with_config(commands.add_parser("prepare-data", help="text → token files, tokenizer, statistics"))
    command.add_argument("--input", type=Path, action="append", default=[], metavar="JSONL", help="your own text")
    command.set_defaults(run_command=_prepare_data)

    command = _with_config(commands.add_parser("train", help="train, or resume, in a run folder"))
    command.add_argument("--run", type=Path, help="run folder (default runs/<name>)")
    command.add_argument("--device", choices=["cpu", "ascend"], default="cpu")
    command.set_defaults(run_command=_train)

    _add_launch(commands)

    command = _with_json(commands.add_parser("evaluate", help="held-out loss of each domain"))
    command.add_argument("run", type=Path, help="run folder")
    command.set_defaults(run_command=_evaluate)

    command = _with_json(commands.add_parser("report", help="summary and pictures of a run"))
    command.add_argument("run", type=Path, help="run folder")
    command.add_argument("--against", type=Path, metavar="RUN", help="compare the losses with another run's")
    command.set_defaults(run_command=_report)

    command = _with_json(commands.add_parser("generate", help="continue prompts"))
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="run folder")
    source.add_argument("--model", type=Path, help="exported model")
    command.add_argument("--prompt", action="append", required=True, metavar="DOMAIN:TEXT", help="may be repeated")
    command.add_argument("--max-new-tokens", type=int, default=64)
    command.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    command.add_argument("--top-k", type=int, default=0, help="0 keeps every token")
    command.add_argument("--top-p", type=float, default=1.0)
    command.add_argument("--repetition-penalty", type=float, default=1.0)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run_command=_generate)

    command = commands.add_parser(
        "export", help="a trained model as a folder that stands alone, or its weights as one file"
    )
    command.add_argument("run", type=Path, help="run folder")
    command.add_argument("--format", choices=["mindir", "safetensors"], default="mindir")
    command.add_argument("--output", type=Path, required=True)
    command.set_defaults(run_command=_export)

    command = _with_json(_with_config(commands.add_parser("inspect", help="what a configuration weighs")))
    command.set_defaults(run_command=_inspect)

    command = _with_json(commands.add_parser("plan", help="memory, traffic and time on a number of NPUs"))
    command.add_argument("--config", type=Path, required=True, help="YAML file")
    command.add_argument("--devices", type=int, required=True, metavar="N", help="NPUs, 8 a host")
    command.add_argument("--compile", action="store_true", help="let MindSpore compile the step for Ascend; minutes")
    _with_overrides(command)
    command.set_defaults(run_command=_plan)

    command = _with_json(commands.add_parser("bench", help="our speed against peers, in one run"))
    command.add_argument("bench", choices=BENCHES)
    command.add_argument("--peers", action="store_true", help="with the peers of the [bench] extra")
    command.set_defaults(run_command=_bench)

    command = _with_json(commands.add_parser("doctor", help="is this machine ready?"))
    command.set_defaults(run_command=_doctor)
    return parser


def _add_launch(commands: Any) -> None:
    command = _with_config(
        commands.add_parser("launch", help="train on many processes, NPUs or nodes, and watch over them")
    )
    command.add_argument("--run", type=Path, help="run folder (default runs/<name>)")
    command.add_argument(
        "--processes", type=int, metavar="N", help="how many you count on: refused if not the configuration's"
    )
    command.add_argument("--nodes", type=int, default=1, metavar="N")
    command.add_argument("--node-rank", type=int, metavar="R", help="0 … N - 1; node 0 has the master's address")
    command.add_argument("--master-address", metavar="HOST", help="an address of node 0 that all nodes reach")
    command.add_argument(
        "--master-port", type=int, default=8118, metavar="PORT", help="with several nodes, the next one too"
    )
    command.add_argument("--ascend", action="store_true", help="one NPU for each process; bind cores to processes")
    command.add_argument(
        "--restarts", type=int, default=0, metavar="N", help="after a failure, go on from the last checkpoint"
    )
    command.add_argument("--grace", type=float, default=10.0, metavar="S", help="seconds to save in when asked to stop")
    command.add_argument("--wait", type=float, default=300.0, metavar="S", help="seconds to wait for the other nodes")
    command.add_argument("--dry-run", action="store_true", help="print what each node would start, and start nothing")
    command.set_defaults(run_command=_launch)


def _with_config(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("config", type=Path, help="YAML file")
    return _with_overrides(command)


def _with_overrides(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override any key, such as train.steps=10"
    )
    command.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    return command


def _with_json(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("--json", metavar="FILE", help="write the result as JSON; - is standard output")
    return command


def _config(options: argparse.Namespace) -> Config | None:
    """The resolved configuration; None when --print-config has printed it."""
    config = load_config(options.config, options.set)
    if options.print_config:
        print(dump_config(config), end="")
        return None
    return config


def _show(result: Any, text: str, file: str | None) -> None:
    """Print `text`, or write `result` as JSON where --json says."""
    if file is None:
        print(text)
    elif file == "-":
        print(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        Path(file).write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _prepare_data(options: argparse.Namespace) -> int:
    config = _config(options)
    if config is not None:
        from pangu_sigma.data.prepare import prepare

        prepare(config, options.input, Path(config.data.path))
    return 0


def _train(options: argparse.Namespace) -> int:
    config = _config(options)
    if config is not None:
        from pangu_sigma.train.loop import Trainer, train
        from pangu_sigma.train.summary import format_summary, summarise

        kind: type[Trainer] = Trainer
        if options.device == "ascend":
            from pangu_sigma.ascend.trainer import AscendTrainer

            kind = AscendTrainer
        run = options.run or Path("runs") / config.name
        trainer = train(config, run, kind)
        if trainer.finished and trainer.ranks.first:
            print(format_summary(summarise(run)))
        trainer.ranks.leave()
    return 0


def _launch(options: argparse.Namespace) -> int:
    config = _config(options)
    if config is None:
        return 0
    from pangu_sigma.launching.launch import check_job, dry_run, launch
    from pangu_sigma.launching.training import check_ranks, training_facts

    check_ranks(config, options.processes)
    job = _job(config, options)
    if options.dry_run:
        print(dry_run(job))
        return 0
    check_job(job)
    return launch(replace(job, facts=training_facts(config)) if job.nodes > 1 else job)


def _job(config: Config, options: argparse.Namespace) -> Job:
    from pangu_sigma.launching.launch import Job
    from pangu_sigma.launching.training import training_command

    node, address = options.node_rank, options.master_address
    if options.nodes > 1 and not options.dry_run:
        for name, value in (("--node-rank", node), ("--master-address", address)):
            if value is None:
                raise ConfigError(
                    f"{name} is missing: with --nodes {options.nodes} each is told its rank and where node 0 is"
                )
    run = options.run or Path("runs") / config.name
    return Job(
        command=training_command(options.config, run, options.set, options.ascend),
        logs=run / "logs",
        ranks=config.parallel.ranks,
        nodes=options.nodes,
        node=node or 0,
        address=address or ("MASTER" if options.nodes > 1 else "127.0.0.1"),
        port=options.master_port,
        ascend=options.ascend,
        restarts=options.restarts,
        grace=options.grace,
        wait=options.wait,
    )


def _evaluate(options: argparse.Namespace) -> int:
    from pangu_sigma.evaluate.run import evaluate_run

    losses = evaluate_run(options.run)
    rows = [f"{name:12} {d['loss']:8.3f} {d['unigram']:8.3f}" for name, d in losses.items()]
    _show(
        losses, "\n".join([f"{'domain':12} {'loss':>8} {'unigram':>8}   held-out, nats per token", *rows]), options.json
    )
    return 0


def _report(options: argparse.Namespace) -> int:
    from pangu_sigma.train.summary import format_comparison, format_summary, summarise

    summary = summarise(options.run)
    if options.against is None:
        _show(summary, format_summary(summary), options.json)
    else:
        other = summarise(options.against)
        _show([summary, other], format_comparison(summary, other), options.json)
    return 0


def _generate(options: argparse.Namespace) -> int:
    prompts = [_prompt(text) for text in options.prompt]
    from pangu_sigma.generate.predictor import Predictor
    from pangu_sigma.generate.sampling import Sampling
    from pangu_sigma.generate.text import generate

    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.repetition_penalty)
    predictor = Predictor.from_run(options.run) if options.run else Predictor.from_export(options.model)
    answers = generate(predictor, prompts, options.max_new_tokens, sampling, options.seed)
    text = "\n".join(f"[{answer.domain}] {answer.prompt}|{answer.text}" for answer in answers)
    _show([vars(answer) for answer in answers], text, options.json)
    return 0


def _prompt(text: str) -> tuple[str, str]:
    domain, colon, prompt = text.partition(":")
    if not colon:
        raise ConfigError(f"--prompt {text!r} names no domain; write DOMAIN:TEXT, for example --prompt 'en:The '")
    return domain, prompt


def _export(options: argparse.Namespace) -> int:
    from pangu_sigma.convert.mindir import export_mindir, verify_export
    from pangu_sigma.convert.safetensors import export_safetensors

    if options.format == "safetensors":
        print(f"{export_safetensors(options.run, options.output)}: all weights, without optimizer state")
        return 0
    output = export_mindir(options.run, options.output)
    tokens = verify_export(options.run, output)
    print(f"{output}: reloaded, and {tokens} greedy tokens equal those of the checkpoint")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    config = _config(options)
    if config is not None:
        from pangu_sigma.planning.inspect import format_inspection, inspect

        inspection = inspect(config)
        _show(inspection, format_inspection(inspection), options.json)
    return 0


def _plan(options: argparse.Namespace) -> int:
    config = _config(options)
    if config is not None:
        from pangu_sigma.planning.differences import compile_plan
        from pangu_sigma.planning.plan import make_plan
        from pangu_sigma.planning.text import format_plan

        plan = (compile_plan if options.compile else make_plan)(config, options.devices)
        _show(plan.as_dict(), format_plan(plan), options.json)
        return 1 if plan.compiled and plan.compiled.differences else 0
    return 0


def _bench(options: argparse.Namespace) -> int:
    from pangu_sigma.bench.harness import format_rows

    rows = importlib.import_module(f"pangu_sigma.bench.{options.bench}").run(options.peers)
    _show([row.as_dict() for row in rows], format_rows(rows), options.json)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from pangu_sigma.commands.doctor import format_checks, run_checks

    checks = run_checks()
    _show([vars(check) for check in checks], format_checks(checks), options.json)
    return 0 if all(check.ok for check in checks) else 1
