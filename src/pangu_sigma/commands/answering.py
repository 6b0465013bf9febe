"""What a trained model does: generate, chat, serve."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pangu_sigma import api
from pangu_sigma.commands.options import add_command, defaults_of, show, with_json, with_model, with_set, with_weights


def add_commands(commands: Any) -> None:
    """Declare these commands."""
    _add_generate(commands)

    about = "talk with a trained model in the terminal"
    command = add_command(commands, "chat", api.chat, about, "runs/sigma_tiny --domain en")
    with_model(command)
    command.add_argument("--domain", help="who answers at first; the first domain of the model if not given")
    command.add_argument("--temperature", type=float, help="0 is greedy")
    command.add_argument("--max-new-tokens", type=int, help="the most tokens of an answer; as many as fit if not given")
    command.add_argument("--seed", type=int, help="draw the same answers again")
    with_weights(command)

    command = add_command(
        commands,
        "serve",
        api.serve,
        "serve a trained model over HTTP, in the form of OpenAI's interface",
        "runs/sigma_tiny",
        "exports/sigma_tiny --host 0.0.0.0 --port 80 --api-key-file key.txt --set lanes=16",
        "runs/sigma_tiny --weights int8",
    )
    with_model(command)
    option = command.add_argument
    option("--host", help="address to listen at; 0.0.0.0: all of this machine")
    option("--port", type=int, help="0: any that is free, which is logged")
    option("--allow-host", action="append", metavar="NAME", help="another name of this server; may be repeated")
    option("--api-key-file", type=Path, metavar="FILE", help="the key of clients; or set PANGU_SIGMA_API_KEY")
    with_set(command, "change a limit, such as lanes=16; may be repeated", dest="limits")
    with_weights(command)


def _add_generate(commands: Any) -> None:
    command = add_command(
        commands,
        "generate",
        api.Model.generate,
        "continue prompts",
        "runs/sigma_tiny --domain en --prompt 'The ' --domain zh --prompt 今天",
        "exports/sigma_tiny --domain code --prompt 'def ' --temperature 0.8 --top-p 0.9",
        "exports/sigma_tiny --domain en --prompts lines.txt --json -",
        run=_generate,
    )
    command.set_defaults(**defaults_of(api.Sampling))
    with_model(command)
    option = command.add_argument
    option(
        "--domain", action="append", required=True, help="who answers: one for all prompts, or one for each, in order"
    )
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line; - is standard input")
    option("--max-new-tokens", type=int)
    option("--temperature", type=float, help="0 is greedy")
    option("--top-k", type=int, help="0 keeps every token")
    option("--top-p", type=float)
    option("--min-p", type=float, help="least share of the most likely token's probability")
    option("--repetition-penalty", type=float, help="on tokens of prompt and answer")
    option("--presence-penalty", type=float, help="on tokens that the answer has")
    option("--frequency-penalty", type=float, help="the same, for each time it has them")
    option("--stop", action="append", metavar="TEXT", help="end before it; may be repeated")
    option("--seed", type=int)
    with_weights(command)
    with_json(command)


def _generate(options: argparse.Namespace) -> int:
    sampling = {name: getattr(options, name) for name in defaults_of(api.Sampling)}
    answers = api.Model(options.model, options.weights).answers(
        options.prompt or _lines(options.prompts),
        options.domain if len(options.domain) > 1 else options.domain[0],
        options.max_new_tokens,
        options.seed,
        options.stop,
        **sampling,
    )
    show(answers, options.json)
    return 0


def _lines(file: Path) -> list[str]:
    """The lines of a file or of standard input; bytes that are no text stay in them and are refused as prompts."""
    if file == Path("-"):
        return sys.stdin.read().removesuffix("\n").split("\n")
    return file.read_text(encoding="utf-8", errors="surrogateescape").removesuffix("\n").split("\n")
