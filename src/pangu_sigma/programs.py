"""What commands call besides the Python face: the check of this machine, a server, a conversation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Literal

from ascend_ops.few_rows import Precision
from pangu_sigma.arguments import AnyPath, to_path, to_texts
from pangu_sigma.arguments import to_text as to_text  # for the command `generate`
from pangu_sigma.chips import Chip
from pangu_sigma.config import ConfigError
from pangu_sigma.errors import INTERRUPTED
from pangu_sigma.generate.sampling import Sampling as Sampling  # for the command `generate`
from pangu_sigma.kinds import check_kinds
from pangu_sigma.launch import launch_training as launch_training  # for the command `launch`
from pangu_sigma.launch import with_known_chip as with_known_chip
from pangu_sigma.ranks.ranks import is_rank
from pangu_sigma.results import Results


@check_kinds
def doctor(
    model: AnyPath | None = None,
    *,
    device: Literal["cpu", "ascend"] = "cpu",
    chip: Chip | None = None,
) -> Results:
    """Check this machine; a failed check names the fix.

    device: "ascend" to require NPUs, of the type `chip`, with everything that a host of a cluster needs, and the run folder
    `model` on storage that all nodes share.
    """
    for name, value in (("--chip", chip), ("MODEL", model)):
        if value is not None and device != "ascend":
            raise ConfigError(f"{name} {value} is about NPUs: add --device ascend")
    from pangu_sigma.doctor import format_checks, run_checks
    from pangu_sigma.npu.host.access import Host
    from pangu_sigma.npu.host.checks import node_checks, npus_if_any

    run = None if model is None else to_path(model, "model")
    checks = run_checks(partial(node_checks, Host(), chip, run) if device == "ascend" else npus_if_any)
    return Results(checks, format_checks(checks), all(check.ok for check in checks))


def stopped_status() -> int:
    """Return the exit status of a training that was stopped, and has saved its step. That of a rank is 0: its launcher takes any
    other for a failure, and starts the ranks again."""
    return 0 if is_rank() else INTERRUPTED


@check_kinds
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
    """Serve a model over HTTP until SIGINT or SIGTERM, and return the status. limits, weights: as in `Limits.changed`, `load`."""
    from pangu_sigma.generate.text import open_engine
    from pangu_sigma.serve import server
    from pangu_sigma.serve.limits import Limits

    file = None if api_key_file is None else to_path(api_key_file, "--api-key-file")
    changed, key = Limits.changed(limits), server.read_key(file)
    address = server.Address(host, port, to_texts(allow_host, "--allow-host"))
    with server.bind(address) as listening:  # before the model is loaded, so that a busy port is reported at once
        decoder = open_engine(to_path(model, "model"), changed.lanes, weights).decoder
        return server.serve(decoder, listening, address, key, changed)


@check_kinds
def chat(
    model: AnyPath,
    *,
    domain: str | None = None,
    temperature: float = 0.7,
    max_new_tokens: int | None = None,
    seed: int | None = None,
    weights: Precision | None = None,
) -> int:
    """Run a chat on standard input and output, and return the exit status. domain: domain that answers first."""
    from pangu_sigma.generate.text import open_engine
    from pangu_sigma.serve.terminal import ChatSettings, run_chat

    settings = ChatSettings(domain, temperature, max_new_tokens, seed)
    return run_chat(open_engine(to_path(model, "model"), 1, weights).decoder, settings, sys.stdin, sys.stdout)
