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
from pathlib import Path
from typing import Any

from pangu_sigma.config import Config, ConfigError, dump_config, load_config

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
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if not _is_ours(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _is_ours(error: Exception) -> bool:
    """Errors whose message is complete and meant for the user."""
    return type(error).__module__.startswith("pangu_sigma.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pangu-sigma", description="PanGu-Σ on MindSpore")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _with_config(commands.add_parser("prepare-data", help="text → token files, tokenizer, statistics"))
    command.add_argument("--input", type=Path, action="append", default=[], metavar="JSONL", help="your own text")
    command.set_defaults(run_command=_prepare_data)

    command = _with_config(commands.add_parser("train", help="train, or resume, in a run folder"))
    command.add_argument("--run", type=Path, help="run folder (default runs/<name>)")
    command.set_defaults(run_command=_train)

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

    command = _with_json(commands.add_parser("bench", help="our speed against peers, in one run"))
    command.add_argument("bench", choices=BENCHES)
    command.add_argument("--peers", action="store_true", help="with the peers of the [bench] extra")
    command.set_defaults(run_command=_bench)

    command = _with_json(commands.add_parser("doctor", help="is this machine ready?"))
    command.set_defaults(run_command=_doctor)
    return parser


def _with_config(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("config", type=Path, help="YAML file")
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
        from pangu_sigma.train.loop import train
        from pangu_sigma.train.summary import format_summary, summarise

        run = options.run or Path("runs") / config.name
        trainer = train(config, run)
        if trainer.finished and trainer.ranks.first:
            print(format_summary(summarise(run)))
        trainer.ranks.leave()
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from pangu_sigma.evaluate import evaluate_run

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
    from pangu_sigma.generate import generate
    from pangu_sigma.predictor import Predictor
    from pangu_sigma.sampling import Sampling

    try:
        sampling = Sampling(options.temperature, options.top_k, options.top_p, options.repetition_penalty)
        predictor = Predictor.from_run(options.run) if options.run else Predictor.from_export(options.model)
        answers = generate(predictor, prompts, options.max_new_tokens, sampling, options.seed)
    except (KeyError, ValueError) as error:
        raise ConfigError(str(error.args[0])) from error
    text = "\n".join(f"[{answer.domain}] {answer.prompt}|{answer.text}" for answer in answers)
    _show([vars(answer) for answer in answers], text, options.json)
    return 0


def _prompt(text: str) -> tuple[str, str]:
    domain, colon, prompt = text.partition(":")
    if not colon:
        raise ConfigError(f"--prompt {text!r} names no domain; write DOMAIN:TEXT, for example --prompt 'en:The '")
    return domain, prompt


def _export(options: argparse.Namespace) -> int:
    from pangu_sigma.export import export_mindir, export_safetensors, verify_export

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
        from pangu_sigma.inspect_config import format_inspection, inspect

        inspection = inspect(config)
        _show(inspection, format_inspection(inspection), options.json)
    return 0


def _bench(options: argparse.Namespace) -> int:
    from pangu_sigma.bench.harness import format_rows

    rows = importlib.import_module(f"pangu_sigma.bench.{options.bench}").run(options.peers)
    _show([row.as_dict() for row in rows], format_rows(rows), options.json)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from pangu_sigma.doctor import format_checks, run_checks

    checks = run_checks()
    _show([vars(check) for check in checks], format_checks(checks), options.json)
    return 0 if all(check.ok for check in checks) else 1
