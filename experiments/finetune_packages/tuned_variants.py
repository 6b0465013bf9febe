"""Ways to tune to a task, each at its best rate and with the same seeds: what each has learned, and what it has forgotten.

The best rate of a variant is that of the lowest dev loss of its first seed, among rates that are the same for all; its other seeds
are tuned at that rate alone. Test items decide nothing. The others are measured against the last variant, seed by seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.compare.variants import is_certain
from experiments.finetune_packages.answering import answer_test
from pangu_sigma.config import ConfigError
from pangu_sigma.held_out.losses import finite_or_none, format_number, mean_of
from pangu_sigma.stored.model import TUNING_RESULT, read_tuning_result


@dataclass(frozen=True)
class TunedVariant:
    """A way to tune. tried: by rate, as its text, the run of the first seed. parents, runs: of each seed, before and after."""

    name: str
    tried: Mapping[str, Path]
    parents: Sequence[Path]
    runs: Sequence[Path]


def best_rate(tried: Mapping[str, Path]) -> str:
    """The rate of the lowest dev loss, the first of equal ones. Raises ConfigError if none is known."""
    losses = {rate: loss for rate, run in tried.items() if (loss := result_of(run)["best"]["loss"]) is not None}
    if not losses:
        raise ConfigError(f"no run of the rates {', '.join(tried)} has a finite dev loss; try lower rates")
    return min(losses, key=losses.__getitem__)


def result_of(run: Path) -> dict[str, Any]:
    """What came of a tuned run, as `finetune_run` returns it. Raises ConfigError for one that is not finished."""
    result = read_tuning_result(run)
    if result is None:
        raise ConfigError(f"{run} is not finished: it has no {TUNING_RESULT}; tune it to its end first")
    return result


def compare_tuned(variants: Sequence[TunedVariant], test: Path, kept: Path) -> dict[str, Any]:
    """Scores of each variant on the test file before and after, and held-out losses of its domains, as values for JSON.

    kept: a folder for the answers of every model; what it has is not asked again.
    Returns {"n", "skipped", "seeds", "against": name of the last variant, "variants": {name: {"learns", "tried": dev loss by rate,
    "best", "dev": {"before", "after"}, "scores": {metric: {"before", "after", "change", "more"}}, "forgotten": {domain: {"change",
    "more"}}}}}, whose leaves are estimates over seeds; "more" is the difference to the last variant. Raises ConfigError for runs
    that are not finished, or whose forgetting was not measured.
    """
    answers = {
        variant.name: [_ask(variant, seed, test, kept) for seed in range(len(variant.runs))] for variant in variants
    }
    found = {variant.name: _by_seed(variant, answers[variant.name]) for variant in variants}
    last = found[variants[-1].name]
    first = answers[variants[0].name][0][1]
    return {
        "n": first["n"],
        "skipped": first["skipped"],
        "seeds": len(variants[0].runs),
        "against": variants[-1].name,
        "variants": {
            variant.name: {
                "learns": result_of(variant.runs[0])["parameters"]["learn"],
                "tried": {rate: result_of(run)["best"]["loss"] for rate, run in variant.tried.items()},
                "best": best_rate(variant.tried),
                "dev": {key: estimate(values) for key, values in found[variant.name]["dev"].items()},
                "scores": _against(found[variant.name]["scores"], last["scores"]),
                "forgotten": _against(found[variant.name]["forgotten"], last["forgotten"]),
            }
            for variant in variants
        },
    }


def estimate(values: Iterable[float]) -> dict[str, Any]:
    """The mean over seeds with its standard error, and whether its 95 % interval leaves 0 out; None for what is not known."""
    listed = list(values)
    mean, error = mean_of(listed)
    return {
        "values": listed,
        "mean": finite_or_none(mean),
        "se": finite_or_none(error),
        "certain": is_certain(finite_or_none(mean), finite_or_none(error), len(listed)),
    }


def _ask(variant: TunedVariant, seed: int, test: Path, kept: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the parent of a seed and its tuned run answer; variants of one parent share its answers."""
    parent, run = variant.parents[seed], variant.runs[seed]
    before = answer_test(parent, run, test, kept / f"{parent.name}.json")
    return before, answer_test(run, run, test, kept / f"{run.name}.json")


def _by_seed(variant: TunedVariant, answers: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Values of a variant, in lists with one of each seed."""
    results = [result_of(run) for run in variant.runs]
    for run, result in zip(variant.runs, results, strict=True):
        if "domains" not in result.get("forgetting", {}):
            raise ConfigError(
                f"{run}: what it has forgotten was not measured: {result.get('forgetting', {}).get('skipped')}"
            )
    scores = {}
    for metric in answers[0][0]["scores"]:
        before, after = ([pair[at]["scores"][metric] for pair in answers] for at in (0, 1))
        scores[metric] = {"before": before, "after": after, "change": _minus(after, before)}
    forgotten = {
        name: {"change": [_number(r["forgetting"]["domains"][name]["difference"]["nats_per_token"]) for r in results]}
        for name in results[0]["forgetting"]["domains"]
    }
    dev = {
        key: [_number(result["best"][of]) for result in results]
        for key, of in (("before", "before"), ("after", "loss"))
    }
    return {"scores": scores, "forgotten": forgotten, "dev": dev}


def _against(own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Estimates of each list of values, and of the difference of the changes, or of the scores after, seed by seed."""
    rows = {}
    for name, lists in own.items():
        key = "after" if "after" in lists else "change"
        rows[name] = {each: estimate(values) for each, values in lists.items()}
        rows[name]["more"] = estimate(_minus(lists[key], other[name][key]))
    return rows


def _minus(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def format_tuned(task: str, compared: Mapping[str, Any]) -> str:
    """The tables of `compare_tuned` for people. What the seeds do not decide is said to be not certain."""
    variants, last = compared["variants"], compared["against"]
    width = max(map(len, variants))
    skipped = f" ({compared['skipped']} lines skipped)" if compared["skipped"] else ""
    lines = [f"{task}: {compared['n']} test items{skipped}, mean of {compared['seeds']} seeds, ± its error over seeds"]
    rates = list(variants[last]["tried"])
    lines += [
        "",
        f"{'rate':{width}} {'learns':>11} {' '.join(f'{rate:>9}' for rate in rates)}   dev loss of seed 1; * best",
    ]
    for name, variant in variants.items():
        cells = [
            format_number(loss, 8) + ("*" if rate == variant["best"] else " ")
            for rate, loss in variant["tried"].items()
        ]
        lines.append(f"{name:{width}} {variant['learns']:11,} {' '.join(cells)}".rstrip())
    heads = f"{_heads('before')} {_heads('after')} {_CHANGE} {_heads('more than')}"
    lines += ["", f"{'score':12} {'variant':{width}} {heads}   {last}"]
    for metric in variants[last]["scores"]:
        lines += [
            _row(metric, name, width, variant["scores"][metric], 2, name != last) for name, variant in variants.items()
        ]
    lines += [_row("dev loss", name, width, variant["dev"], 3, False) for name, variant in variants.items()]
    lines += [
        "",
        f"{'forgotten':12} {'variant':{width}} {_CHANGE} {_heads('more than')}   {last}; held-out nats per token",
    ]
    for domain in variants[last]["forgotten"]:
        lines += [
            _row(domain, name, width, variant["forgotten"][domain], 4, name != last)
            for name, variant in variants.items()
        ]
    return "\n".join(lines)


def _heads(head: str) -> str:
    return f"{head:>9} {'±':>7}"


_CHANGE = f"{_heads('change')} {'':11}"


def _row(title: str, name: str, width: int, row: Mapping[str, Any], digits: int, compared: bool) -> str:
    """A line of a table: what `row` has of before, after and change, and, if `compared`, the difference to the last variant."""
    cells = []
    for key in ("before", "after", "change", *(("more",) if compared else ())):
        if key in row:
            cells.append(f"{format_number(row[key]['mean'], 9, digits)} {format_number(row[key]['se'], 7, digits)}")
            cells += [f"{_doubt(row[key]):11}"] if key in ("change", "more") else []
    return f"{title:12} {name:{width}} {' '.join(cells)}".rstrip()


def _doubt(found: Mapping[str, Any]) -> str:
    if all(value == 0 for value in found["values"]):
        return "exactly 0"
    return "" if found["certain"] else "not certain"


def write_tuned(task: str, compared: Mapping[str, Any], folder: Path) -> str:
    """Write the comparison into `folder` as <task>.txt and <task>.json. Returns what <task>.txt holds."""
    text = format_tuned(task, compared)
    (folder / f"{task}.txt").write_text(f"{text}\n", encoding="utf-8")
    (folder / f"{task}.json").write_text(f"{json.dumps(compared, ensure_ascii=False, indent=1)}\n", encoding="utf-8")
    return text
