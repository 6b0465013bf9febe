"""Commands that generate text with a trained model: generate, chat, serve."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pangu_sigma import api, programs
from pangu_sigma.commands.options import add_command, defaults_of, show, with_json, with_model, with_set, with_weights
from pangu_sigma.config import ConfigError


def add_commands(commands: Any) -> None:
    """Declare the commands generate, chat and serve."""
    _add_generate(commands)

    about = "chat with a trained model in the terminal"
    command = add_command(commands, "chat", programs.chat, about, "runs/sigma_tiny --domain en")
    with_model(command)
    command.add_argument("--domain", help="first domain to answer (default: the model's first)")
    command.add_argument("--temperature", type=float, help="sampling temperature; 0 is greedy")
    command.add_argument("--max-new-tokens", type=int, help="maximum tokens of an answer (default: as many as fit)")
    command.add_argument("--seed", type=int, help="random seed; the same seed draws the same answers")
    with_weights(command)

    command = add_command(
        commands,
        "serve",
        programs.serve,
        "serve a trained model over HTTP, with OpenAI's interface",
        "runs/sigma_tiny",
        "exports/sigma_tiny --host 0.0.0.0 --port 80 --api-key-file key.txt --set lanes=16",
        "runs/sigma_tiny --weights int8",
    )
    with_model(command)
    option = command.add_argument
    option("--host", help="address to listen on; 0.0.0.0: all of this machine")
    option("--port", type=int, help="port to listen on; 0: any free one, which is logged")
    option("--allow-host", action="append", metavar="NAME", help="another host name of this server; may be repeated")
    option("--api-key-file", type=Path, metavar="FILE", help="file with the API key; or set PANGU_SIGMA_API_KEY")
    with_set(command, "change a limit, such as lanes=16; may be repeated", dest="limits")
    with_weights(command)


def _add_generate(commands: Any) -> None:
    command = add_command(
        commands,
        "generate",
        api.Model.generate,
        "continue prompts",
        "runs/sigma_tiny --domain en --prompt The --domain zh --prompt 今天",
        "exports/sigma_tiny --domain code --prompt def --temperature 0.8 --top-p 0.9",
        "exports/sigma_tiny --domain en --prompts lines.txt --json -",
        run=_generate,
    )
    command.set_defaults(**defaults_of(programs.Sampling))
    with_model(command)
    option = command.add_argument
    option("--domain", action="append", required=True, help="domain to answer: one for all, or one for each, in order")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", action="append", metavar="TEXT", help="text to continue; may be repeated")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="file with a prompt a line; - is standard input")
    option("--max-new-tokens", type=int, help="maximum number of new tokens")
    option("--temperature", type=float, help="sampling temperature; 0 is greedy")
    option("--top-k", type=int, help="draw from this many most likely tokens; 0: from all")
    option("--top-p", type=float, help="draw from the fewest tokens with this total probability")
    option("--min-p", type=float, help="drop tokens below this fraction of the highest probability")
    option("--repetition-penalty", type=float, help="above 1: make tokens of prompt and answer less likely")
    option("--presence-penalty", type=float, help="subtract from the logit of tokens in the answer")
    option("--frequency-penalty", type=float, help="the same, once for each occurrence")
    option("--stop", action="append", metavar="TEXT", help="end the text before this string; may be repeated")
    option("--seed", type=int, help="random seed; the same seed draws the same tokens")
    with_weights(command)
    with_json(command)


def _generate(options: argparse.Namespace) -> int:
    sampling = {name: getattr(options, name) for name in defaults_of(programs.Sampling)}
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
    """Return the lines of a file or of standard input. Raises ConfigError, which names the line, for what is no UTF-8."""
    try:
        text = sys.stdin.read() if file == Path("-") else file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise ConfigError(f"--prompts {file}: {error.strerror}; name a file with a prompt a line") from None
    if not text:
        raise ConfigError(f"--prompts {file}: is empty; write a prompt a line")
    lines = text.removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            raise ConfigError(f"--prompts {file}: line {number} is empty; write a prompt a line")
        programs.to_text(line, f"--prompts {file}: line {number}")
    return lines
