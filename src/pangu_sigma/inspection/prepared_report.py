"""HTML report of a prepared data folder: figures and tables of its numbers (`prepared_numbers.measure_prepared`).

It is written beside the folder, in `<folder>.report/`: the folder itself has nothing but what `prepare-data` wrote.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: draws with Agg, needs no display

from pangu_sigma.data.prepare.overview import warnings_of
from pangu_sigma.errors import DataError
from pangu_sigma.inspection.prepared_numbers import EXPERT_COUNTS, DomainNumbers, PreparedNumbers
from pangu_sigma.sealed import write_atomically
from pangu_sigma.writable import refuse_link

_SHOWN_EXPERTS = 16
"""Number of experts of a domain in the printed table: that of the paper and of every shipped configuration."""
_PAGE = "report.html"
"""Name of the page in the folder of a report."""
_FATES = {
    "kept": "C0",
    "filtered": "C4",
    "exact copies": "C1",
    "near-duplicates": "C8",
    "too long": "C3",
    "over the limit": "C7",
}
"""What became of the documents offered, with colours."""
_ALT = {
    "shares": "share of the tokens of each domain, and what became of the documents offered",
    "lengths": "lengths of the documents of each domain",
    "fertility": "tokens per character and per byte, and unknown tokens, of each domain",
    "load": "expected load of the most loaded expert, with random and with balanced tables",
}
"""Descriptions of the figures for those who do not see them."""


def write_prepared_report(numbers: PreparedNumbers) -> Path:
    """Write the report of a prepared data folder: report.html and its figures shares, lengths, fertility, load; return its path.

    The page needs no other file. Each file is written atomically. Raises DataError if the folder of the report cannot be written.
    """
    folder = numbers.folder.resolve()
    page = folder.with_name(f"{folder.name}.report") / _PAGE
    figures = {
        "shares": _draw_shares(numbers),
        "lengths": _draw_lengths(numbers.domains),
        "fertility": _draw_fertility(numbers.domains),
        "load": _draw_load(numbers.domains),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    try:
        refuse_link(page.parent)
        page.parent.mkdir(exist_ok=True)
        pictures = []
        for name, figure in figures.items():
            png = io.BytesIO()
            figure.savefig(png, dpi=110)
            write_atomically(page.with_name(f"{name}.png"), png.getvalue())
            pictures.append((_ALT[name], base64.b64encode(png.getvalue()).decode()))
        html = environment.get_template("prepared_report.html").render(
            numbers=numbers, pictures=pictures, warnings=warnings_of(numbers.manifest), experts=EXPERT_COUNTS
        )
        write_atomically(page, html.encode())
    except OSError as error:
        raise DataError(f"cannot write {page}: {error.strerror or error}; make {page.parent} writable") from error
    return page


def format_prepared(numbers: PreparedNumbers, page: Path) -> str:
    """Format the numbers as the table that `pangu-sigma report` prints. page: path of the report."""
    width = max(len("domain"), *(len(each.name) for each in numbers.domains))
    at = EXPERT_COUNTS.index(_SHOWN_EXPERTS)
    heads = f"{'tokens':>15} {'share':>6} {'documents':>11} {'median':>8} {'longest':>9} {'/char':>6} {'/byte':>6}"
    lines = [f"{'domain':{width}} {heads} {'unknown':>8} {'load':>11}"]
    for each in numbers.domains:
        load = " / ".join(f"{each.load[table][at]:.2f}" for table in ("random", "balanced"))
        lines.append(
            f"{each.name:{width}} {each.tokens:15,} {each.tokens / max(1, numbers.tokens):6.1%} {len(each.lengths):11,} "
            f"{each.length(50):8,.0f} {each.length(100):9,.0f} {each.per_character:6.3f} {each.per_byte:6.3f} {each.unknown:8.3%} "
            f"{load:>11}"
        )
    lines.append("median, longest: tokens of a document. /char, /byte: tokens per character and per byte (fertility)")
    lines.append(
        f"load: of the most loaded expert of a domain over its fair share, random / balanced tables, if the model has "
        f"{_SHOWN_EXPERTS} experts a domain; the page has it for {', '.join(map(str, EXPERT_COUNTS))}"
    )
    return "\n".join([*lines, *_left_out(numbers), f"report: {page}"])


def _left_out(numbers: PreparedNumbers) -> list[str]:
    """Return a line about documents that were left out, and one about filters, if there are any."""
    found = []
    left_out = {name: sum(each.fates[name] for each in numbers.domains) for name in _FATES if name != "kept"}
    if any(left_out.values()):
        offered = sum(each.record.offered for each in numbers.domains)
        found.append(f"left out of {offered:,} documents: {_listed(left_out)}")
    if counts := numbers.filtered():
        found.append(f"filtered: {_listed({name: sum(some.values()) for name, some in counts.items()})}")
    return found


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def _draw_shares(numbers: PreparedNumbers) -> Figure:
    """Draw the share of the tokens of each domain, and the shares of the documents offered that were kept or left out."""
    domains = numbers.domains
    figure, (shares, fates) = _panels(domains, 2)
    tokens = [each.tokens for each in domains]
    shares.barh(range(len(domains)), [100 * each / max(1, numbers.tokens) for each in tokens], color="C0")
    _label(shares, [f" {_short(each)}" for each in tokens])
    shares.set(xlabel="share of all tokens (%)", title=f"Tokens: {_short(numbers.tokens)} in all")
    left = np.zeros(len(domains))
    for name, color in _FATES.items():
        share = np.array([100 * each.fates[name] / max(1, each.record.offered) for each in domains])
        if share.any():
            fates.barh(range(len(domains)), share, left=left, color=color, label=name)
        left += share
    fates.set(xlabel="share of the documents offered (%)", title="Documents", xlim=(0, 100))
    figure.legend(loc="outside lower right", ncols=4, fontsize=9, frameon=False)
    return figure


def _draw_lengths(domains: list[DomainNumbers]) -> Figure:
    """Draw a histogram of the documents' lengths for each domain, a row each, by powers of two; a line marks the median."""
    top = max(int(each.length(100)) for each in domains)
    edges = 2 ** np.arange(0, max(2, int(np.ceil(np.log2(max(2, top + 1)))) + 1))
    first = min(int(np.log2(max(1.0, each.length(0)))) for each in domains)
    edges = edges[min(first, len(edges) - 2) :]
    rows = np.array([np.histogram(each.lengths, edges)[0] / max(1, len(each.lengths)) for each in domains])
    figure = Figure(figsize=(10, 1.2 + _height(domains)), layout="constrained")
    axes = figure.subplots()
    for number, (row, each) in enumerate(zip(rows, domains, strict=True)):
        heights = 0.85 * row / max(rows.max(), 1e-9)
        color = colormaps["tab10"](number % 10)
        axes.bar(
            edges[:-1], heights, np.diff(edges), bottom=len(domains) - 1 - number, align="edge", color=color, alpha=0.75
        )
        axes.plot(
            [each.length(50)] * 2,
            [len(domains) - 1 - number, len(domains) - 0.15 - number],
            color="black",
            linewidth=1.5,
        )
    axes.set_yticks([len(domains) - 1 - n + 0.4 for n in range(len(domains))], [each.name for each in domains])
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(axis="x", rotation=45)
    title = f"Lengths of documents (the highest bar is {rows.max():.0%} of a domain's documents; black: the median)"
    axes.set(xlabel="tokens of a document", xlim=(edges[0], edges[-1]), ylim=(0, len(domains)))
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3, axis="x")
    return figure


def _draw_fertility(domains: list[DomainNumbers]) -> Figure:
    """Draw tokens per character and per byte of each domain, and the percentage of unknown tokens if there are any."""
    drawn = [("tokens per character", [each.per_character for each in domains], "{:.2f}", "C0")]
    drawn.append(("tokens per byte", [each.per_byte for each in domains], "{:.2f}", "C0"))
    unknown = [100 * each.unknown for each in domains]
    if any(unknown):
        drawn.append(("unknown tokens (%)", unknown, "{:.2g}", "C3"))
    figure, panels = _panels(domains, len(drawn))
    for axes, (title, values, text, color) in zip(panels, drawn, strict=True):
        axes.barh(range(len(domains)), values, color=color)
        _label(axes, [f" {text.format(value)}" for value in values])
        axes.set_xlabel(title)
    figure.suptitle(f"Fertility{'' if any(unknown) else '; there are no unknown tokens'}", fontsize=11)
    return figure


def _draw_load(domains: list[DomainNumbers]) -> Figure:
    """Draw the load of the most loaded expert over its fair share: with random tables as bars, with balanced ones as marks."""
    figure, panels = _panels(domains, len(EXPERT_COUNTS))
    most = max(load for each in domains for loads in each.load.values() for load in loads)
    for at, (axes, experts) in enumerate(zip(panels, EXPERT_COUNTS, strict=True)):
        loads = [[each.load[table][at] for each in domains] for table in ("random", "balanced")]
        axes.barh(range(len(domains)), loads[0], color="C1", label="random")
        axes.plot(loads[1], range(len(domains)), "D", color="C2", label="balanced", markeredgecolor="black")
        axes.axvline(1.0, color="black", linewidth=1.0, linestyle="--")
        _label(axes, [f" {load:.2f}" for load in loads[0]])
        axes.set(xlabel="times its fair share", title=f"{experts} experts a domain")
        axes.set_xlim(0, 1.25 * most)
    figure.suptitle("Expected load of the most loaded expert, by routing.table (dashed: even)", fontsize=11)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def _panels(domains: list[DomainNumbers], count: int) -> tuple[Figure, Any]:
    """Return a figure with panels side by side that share the domains as rows, the first one on top."""
    figure = Figure(figsize=(10, 1.4 + _height(domains)), layout="constrained")
    panels = figure.subplots(1, count, sharey=True)
    panels[0].set_yticks(range(len(domains)), [each.name for each in domains])
    panels[0].set_ylim(len(domains) - 0.5, -0.5)
    for axes in panels:
        axes.grid(alpha=0.3, axis="x")
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
    return figure, panels


def _height(domains: list[DomainNumbers]) -> float:
    """Return the height of a row for each domain, in inches."""
    return max(1.6, len(domains) * (0.55 if len(domains) <= 10 else 0.28))


def _label(axes: Axes, texts: list[str]) -> None:
    """Write a text at the end of each bar, and make room for it."""
    axes.bar_label(axes.containers[0], texts, fontsize=8)  # type: ignore[arg-type]
    axes.margins(x=0.3)


def _short(number: int) -> str:
    """Format a count with three digits and a unit: 7440765 gives '7.44 M'."""
    for unit, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {letter}"
    return str(number)
