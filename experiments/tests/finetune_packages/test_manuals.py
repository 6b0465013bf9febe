"""The section NAME of manual pages, in both of their languages."""

from __future__ import annotations

import gzip

import pytest
from helpers.archives import write_deb

from experiments.finetune_packages.manuals import MANUALS, name_and_description, questions

HEAD = '.\\" a comment\n.TH X 1 2024-05-02 "p 1.0"\n'
PAGES = {
    "plain": (".SH NAME\nstrdup, strndup \\- duplicate a string\n.SH LIBRARY\nC", ("strdup", "duplicate a string")),
    "quoted heading": ('.SH "NAME"\nglFoo \\- it\\*(Aqs a \\(lqbuffer\\(rq\n.SH "C"\n', ("glFoo", 'it\'s a "buffer"')),
    "dashes in the name": (
        ".SH NAME\ndeb\\-src\\-files \\- Debian files\n.IX Header\n.SH X\n",
        ("deb-src-files", "Debian files"),
    ),
    "fonts and lines": (
        ".SH NAME\n\\fB\\%getch\\fP,\n\\fB\\%wgetch\\fP \\-\nget \\fIcurses\\fR characters\n.SH X\n",
        ("getch", "get curses characters"),
    ),
    "macros": ('.SH NAME\n.BR ls ","\n.B dir\n\\- list "a" directory\n.SH X\n', ("ls", 'list "a" directory')),
    "mdoc": (
        ".Sh NAME\n.Nm brk ,\n.Nm sbrk\n.Nd change data segment size\n.Sh X\n",
        ("brk", "change data segment size"),
    ),
    "a backslash": (".SH NAME\necho \\- writes \\en\n.SH X\n", ("echo", "writes \\n")),
    "no section after": (".SH NAME\nx \\- y", ("x", "y")),
    "another page": (".so man7/queue.7\n", None),
    "no description": (".SH NAME\nx\n.SH X\n", None),
    "no name": (".SH NAME\n\\- y\n.SH X\n", None),
    "a name of two words": (".Sh NAME\n.Nm Capability rights\n.Nd x\n.Sh X\n", None),
    "an unknown escape": (".SH NAME\nx \\- \\*(XX y\n.SH X\n", None),
    "an unknown macro": (".Sh NAME\n.Nm x\n.Nd asynchronous\n.Xr mlock 2\n.Sh X\n", None),
    "the text is elsewhere": (".SH SYNOPSIS\nx \\- y\n", None),
}


@pytest.mark.parametrize("case", PAGES)
def test_a_page_says_its_name_and_what_it_is(case):
    page, found = PAGES[case]
    assert name_and_description(HEAD + page) == found


def test_each_page_that_says_so_is_a_question(tmp_path):
    archive = MANUALS["test"][0]
    pages = {"man3/b.3": PAGES["mdoc"][0], "man3/a.3": PAGES["plain"][0], "man3/c.3": PAGES["another page"][0]}
    files = {f"./usr/share/man/{name}.gz": gzip.compress(page.encode()) for name, page in pages.items()}
    path = write_deb(tmp_path / "p.deb", {**files, "./usr/share/doc/p/a.gz": b"no"})
    found = questions([archive], {archive: path})
    assert [(e.prompt, e.response, e.message) for e in found.examples] == [
        ("What is strdup?", "duplicate a string", "duplicate a string"),
        ("What is brk?", "change data segment size", "change data segment size"),
    ]
    assert found.counts == {"no name and description": 1}


def test_no_package_is_in_two_splits():
    names = [archive.name for each in MANUALS.values() for archive in each]
    assert len(set(names)) == len(names)
