"""A trained model for others: serve it over HTTP, chat with it here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_sigma.commands.options import add_command, with_weights

if TYPE_CHECKING:
    from pangu_sigma.generate.decoder import Decoder


def add_commands(commands: Any) -> None:
    """Declare these commands."""
    command = with_weights(
        add_command(
            commands,
            "serve",
            _serve,
            "serve a trained model over HTTP, in the form of OpenAI's interface",
            "runs/sigma_tiny",
            "exports/sigma_tiny --host 0.0.0.0 --port 80 --api-key-file key.txt --limit lanes=16",
            "runs/sigma_tiny --weights int8",
        )
    )
    command.add_argument("model", type=Path, help="run folder, or exported model")
    command.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all of this machine")
    command.add_argument("--port", type=int, default=8000, help="0: any that is free, which is logged")
    command.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="another name of this server; may be repeated"
    )
    command.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="holds the key that clients must know; or set PANGU_SIGMA_API_KEY",
    )
    command.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=N",
        help="change a limit, such as lanes=16; may be repeated",
    )

    command = with_weights(
        add_command(commands, "chat", _chat, "talk with a trained model in the terminal", "runs/sigma_tiny --domain en")
    )
    command.add_argument("model", type=Path, help="run folder, or exported model")
    command.add_argument("--domain", help="who answers at first; the first domain of the model if not given")
    command.add_argument("--temperature", type=float, default=0.7, help="0 is greedy")
    command.add_argument("--max-tokens", type=int, help="the most tokens of an answer; as many as fit if not given")
    command.add_argument("--seed", type=int, help="draw the same answers again")


def _serve(options: argparse.Namespace) -> int:
    from pangu_sigma.serve.limits import Limits
    from pangu_sigma.serve.server import Address, bind, read_key, serve

    limits, key = Limits.changed(options.limit), read_key(options.api_key_file)
    address = Address(options.host, options.port, options.allow_host)
    with bind(address) as listening:  # before the model is read: a port that is taken is said at once
        return serve(_decoder(options, limits.lanes), listening, address, key, limits)


def _chat(options: argparse.Namespace) -> int:
    from pangu_sigma.serve.terminal import Settings, talk

    settings = Settings(options.domain, options.temperature, options.max_tokens, options.seed)
    return talk(_decoder(options, 1), settings, sys.stdin, sys.stdout)


def _decoder(options: argparse.Namespace, lanes: int) -> Decoder:
    from pangu_sigma.generate.text import open_engine

    return open_engine(options.model, lanes=lanes, weights=options.weights).decoder
