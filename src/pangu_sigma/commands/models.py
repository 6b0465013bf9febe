"""What a trained model does: generate, export."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from pangu_sigma.commands.options import add_command, show, with_json, with_weights
from pangu_sigma.config import ConfigError


def add_commands(commands: Any) -> None:
    """Declare these commands."""
    command = with_weights(
        with_json(
            add_command(
                commands,
                "generate",
                _generate,
                "continue prompts",
                "--run runs/sigma_tiny --prompt 'en:The ' --prompt zh:今天",
                "--model exports/sigma_tiny --prompt 'code:def ' --temperature 0.8 --top-p 0.9",
            )
        )
    )
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="run folder")
    source.add_argument("--model", type=Path, help="exported model")
    command.add_argument("--prompt", action="append", required=True, metavar="DOMAIN:TEXT", help="may be repeated")
    command.add_argument("--max-new-tokens", type=int, default=64)
    command.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    command.add_argument("--top-k", type=int, default=0, help="0 keeps every token")
    command.add_argument("--top-p", type=float, default=1.0)
    command.add_argument("--min-p", type=float, default=0.0, help="least share of the most likely token's probability")
    command.add_argument("--repetition-penalty", type=float, default=1.0, help="on tokens of prompt and answer")
    command.add_argument("--presence-penalty", type=float, default=0.0, help="on tokens that the answer has")
    command.add_argument("--frequency-penalty", type=float, default=0.0, help="the same, for each time it has them")
    command.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before it; may be repeated")
    command.add_argument("--seed", type=int, default=0)

    command = add_command(
        commands,
        "export",
        _export,
        "a trained model as a folder that stands alone, or its weights as one file",
        "runs/sigma_tiny --output exports/sigma_tiny",
        "runs/sigma_tiny --output exports/sigma_tiny_int8 --weights int8",
        "runs/sigma_tiny --format safetensors --output sigma_tiny.safetensors",
    )
    command.add_argument("run", type=Path, help="run folder")
    command.add_argument("--format", choices=["mindir", "safetensors"], default="mindir")
    command.add_argument("--output", type=Path, required=True)
    command.add_argument(
        "--weights", choices=["float32", "float16", "int8"], default="float32", help="how mindir keeps matrices"
    )


def _generate(options: argparse.Namespace) -> int:
    from pangu_sigma.generate.sampling import Sampling, check_request, check_text

    for name, texts in (("--prompt", options.prompt), ("--stop", options.stop)):
        for text in texts:
            check_text(text, name)
    prompts = [_prompt(text) for text in options.prompt]
    sampling = Sampling(**{field.name: getattr(options, field.name) for field in fields(Sampling)})
    check_request(options.max_new_tokens, options.seed)

    from pangu_sigma.generate.text import generate, open_engine

    engine = open_engine(options.run or options.model, "run" if options.run else "export", weights=options.weights)
    answers = generate(engine, prompts, options.max_new_tokens, sampling, options.seed, options.stop)
    text = "\n".join(f"[{answer.domain}] {answer.prompt}|{answer.text}" for answer in answers)
    show([vars(answer) for answer in answers], text, options.json)
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
        if options.weights != "float32":
            raise ConfigError(
                f"--weights {options.weights} is for --format mindir; safetensors has the weights as they are"
            )
        print(f"{export_safetensors(options.run, options.output)}: all weights, without optimizer state")
        return 0
    output = export_mindir(options.run, options.output, options.weights)
    tokens = verify_export(options.run, output)
    of = "of the checkpoint" if options.weights == "float32" else "that its weights give without MindSpore"
    print(f"{output}: reloaded, and {tokens} greedy tokens equal those {of}")
    return 0
