"""Questions on commands and functions, with the one line that their manual pages have on them (the section NAME).

The pages are those of packages of Debian for all machines, in the two languages of manual pages: man ("name, other \\- what it is")
and mdoc (.Nm name, .Nd what it is).
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.finetune_packages.debian import open_deb
from experiments.finetune_packages.decontaminate import Example, TaskSplit
from pangu_sigma.data.packaged.packages import Archive, tar_members

_TUNING = (
    Archive(
        "manpages",
        "6.9.1-1",
        "manpages_6.9.1-1_all.deb",
        "Linux-man-pages-copyleft, GPL-2.0-or-later and others",
        "91b7df0b4bd4e1a3b8ba5b229abd844e03f4c82c45ccb8c964a035190c29a501",
    ),
    Archive(
        "manpages-dev",
        "6.9.1-1",
        "manpages-dev_6.9.1-1_all.deb",
        "Linux-man-pages-copyleft, GPL-2.0-or-later and others",
        "9de42b48394935236a31385e4bae816911cd20dc3f20250531964aec44082f63",
    ),
    Archive(
        "freebsd-manpages",
        "12.2-2",
        "freebsd-manpages_12.2-2_all.deb",
        "BSD-2-Clause and BSD-4-Clause",
        "ce4f67e43bd135867b4b10c99e6573620bbf5dcda810717a630dc4d1c0dbd05f",
    ),
    Archive(
        "tcl9.0-doc",
        "9.0.1+dfsg-2",
        "tcl9.0-doc_9.0.1+dfsg-2_all.deb",
        "TCL",
        "298616d56f1a16e42bbbbd7a949962e9843c5608406410dc5f9bfd4810ad85f0",
    ),
    Archive(
        "tk9.0-doc",
        "9.0.1-3",
        "tk9.0-doc_9.0.1-3_all.deb",
        "TCL",
        "463c50eb145cef9603e7e6ddc6c1ae407e13436bfab3de6a7d31b6f20f963d2d",
    ),
    Archive(
        "tcllib",
        "2.0+dfsg-4",
        "tcllib_2.0+dfsg-4_all.deb",
        "TCL",
        "5e3d96de93e4258253eeb43c6bd47fb295d26d9457df54d9c9ff649d454f7945",
    ),
    Archive(
        "dpkg-dev",
        "1.22.22",
        "dpkg-dev_1.22.22_all.deb",
        "GPL-2.0-or-later",
        "6d4020421740a70e1fb9c41b07f8bb8306d93aef6fea1a8ce11a1f839921f414",
    ),
)
_DEV = (
    Archive(
        "ncurses-doc",
        "6.5+20250216-2",
        "ncurses-doc_6.5+20250216-2_all.deb",
        "MIT",
        "d5bfbb3fd9024e539f0ea016190ccded112442ffa4a92e2cb077cbe8bdaa8713",
    ),
    Archive(
        "debhelper",
        "13.24.2",
        "debhelper_13.24.2_all.deb",
        "GPL-2.0-or-later",
        "04ba78ad4363df4f47cac2667dcca7a4bfe520625af5799ec1ede3cb6551f6fc",
    ),
)
_TEST = (
    Archive(
        "libx11-doc",
        "2:1.8.12-1",
        "libx11-doc_2%3a1.8.12-1_all.deb",
        "MIT and X11",
        "b3338ff48a4176ee2387c8158fcb35f4aa83fa59c28ebd3b37e58e799cd46600",
    ),
    Archive(
        "opengl-4-man-doc",
        "1.0~svn33624-3",
        "opengl-4-man-doc_1.0~svn33624-3_all.deb",
        "SGI-B-2.0 and Open Publication License",
        "fb854e750a887598f47e9e8c84ca83f0b7ba7c61fa832cf3470208cf794e59e1",
    ),
)
MANUALS = {"train": _TUNING, "dev": _DEV, "test": _TEST}
"""Packages of manual pages by split; none of them is in two splits."""

_PAGE = re.compile(r"/man/man[0-9][^/]*/[^/]+\.gz$")
_HEADING = re.compile(r'^\.\s*S[Hh]\s+"?NAME"?\s*$', re.IGNORECASE)
_NEXT = re.compile(r"^\.\s*S[HhSs]\b")
_FONTS = frozenset(("B", "I", "R", "BR", "RB", "BI", "IB", "IR", "RI", "SM", "SB"))
_JOINING = frozenset(("BR", "RB", "BI", "IB", "IR", "RI"))
"""Macros of man that set their words in fonts; those of two letters set them without blanks between them."""
_SILENT = frozenset(("", "IX", "PP", "BE", "ad", "br", "ds", "el", "hy", "ie", "if", "nh"))
"""Macros of which nothing is text: indices, paragraphs, hyphenation, strings; .BE ends a frame in pages of Tcl."""
_ESCAPES = (
    (re.compile(r"\\f(?:\[[^]]*\]|\(..|.)|\\s[-+]?\d+|\\[&%/,|^:)]|\\[cp]"), ""),  # fonts, sizes, and what is not seen
    (re.compile(r"\\\*\(Aq|\\\(aq|\\\[aq\]"), "'"),
    (re.compile(r"\\\*\([lr]q|\\\([lr]q|\\\*q|\\\[[lr]q\]|\\\(dq"), '"'),
    (re.compile(r"\\\(em|\\\[em\]|\\\(en|\\\[en\]"), "-"),
    (re.compile(r"\\[ ~0]"), " "),
    (re.compile(r"\\-|\\\(hy|\\\[hy\]"), "-"),
    (re.compile(r"\\e|\\\(rs"), "\x00"),  # a backslash that is meant
)


def questions(archives: Sequence[Archive], files: Mapping[Archive, Path]) -> TaskSplit:
    """A question for the first name of each manual page, with what the page says it is. Pages that say nothing are counted."""
    examples, counts = [], Counter[str]()
    for archive in archives:
        with open_deb(files[archive]) as package:
            pages = list(tar_members(package, _PAGE))
        for name, content in pages:
            found = name_and_description(gzip.decompress(content).decode("utf-8", "replace"))
            if found is None:
                counts["no name and description"] += 1
            else:
                examples.append(Example(f"What is {found[0]}?", found[1], found[1], f"{archive.file}:{name}"))
    return TaskSplit(archives, examples, counts)


def name_and_description(page: str) -> tuple[str, str] | None:
    """The first name of a page and its one-line description; None if it has no such line, or one that is not understood."""
    lines = iter(page.splitlines())
    if not any(_HEADING.match(line) for line in lines):
        return None
    found: list[str] = []
    for line in lines:
        if _NEXT.match(line):
            break
        text = _text_of(line)
        if text is None:
            return None
        found.append(text)
    text = " ".join(" ".join(found).split())
    names, dash, description = text.partition(" - ")
    name = names.split(",")[0].strip()
    if not dash or not name or " " in name or not description.strip():
        return None
    return name.replace("\x00", "\\"), description.strip().replace("\x00", "\\")


def _text_of(line: str) -> str | None:
    """The text of a line of the section NAME, escapes and macros taken out; None for what is not understood."""
    if line.startswith((".", "'")):
        macro, _, rest = line[1:].strip().partition(" ")
        if macro.startswith(('\\"', "\\#")) or macro in _SILENT:
            return ""
        if macro == "Nm":
            rest = rest.replace(" ,", ",")
        elif macro == "Nd":
            rest = f"\\- {rest}"
        elif macro in _FONTS:
            rest = _arguments(rest, "" if macro in _JOINING else " ")
        else:
            return None
        line = rest.strip().strip('"') if macro in ("Nm", "Nd") else rest
    for escape, text in _ESCAPES:
        line = escape.sub(text, line)
    return None if "\\" in line else line


def _arguments(text: str, between: str) -> str:
    """The arguments of a macro: words, or what stands between double quotes."""
    return between.join(quoted or word for quoted, word in re.findall(r'"([^"]*)"|(\S+)', text))
