"""The pages say what is so: their commands are understood and run, their links lead somewhere, and they build as a site.

A comment before a block of commands or Python says what is done with it here: `<!-- run -->`; `<!-- run: slow -->` in slow tests;
`<!-- parsed: WHY NOT RUN -->`. Those of a page run one after another, with a smaller model and fewer steps, in a folder that has
what the quickstart leaves: helpers/shown.py. `<!-- file: NAME.yaml -->` makes YAML a file there: these changes of `sigma_tiny`.
"""

from __future__ import annotations

import ast
import io
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout, suppress
from itertools import dropwhile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from cyclopts import CycloptsError
from helpers.shown import write_config, write_folder

import pangu_sigma as ps
from experiments.chaos.launched import free_port
from pangu_sigma.cli import main, make_app, usage_error

ROOT = Path(__file__).parents[1]
README_FOLDERS = ("src", "ascend_ops", "experiments", "tests")
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", *(f"{folder}/**/README.md" for folder in README_FOLDERS))
    for page in ROOT.glob(pattern)
)
FENCE = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A block: what the comment before it says, its language, and its lines."""
MARK = re.compile(r"run(: slow)?|parsed: .+")
SMALLER = ((r"(train\.steps\W+)(\d+)00\b", r"\1\2"), (r"(dense_layers)=6", r"\1=2"), (r" --port \d+", ""))
"""Changes of a block that is run: a hundredth of the steps, the layers of helpers/shown.py, and a port that is free."""
INLINE = re.compile(r"`([^`\n]+)`")
PROMPT = re.compile(
    r"""(?:--prompt |\\?"prompt\\?": ?|\bprompt=|\.generate\(|data-domain="\w+">)["'\\]*(?P<text>[^"'\\<\n]*)["'\\<]"""
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
OURS = ("pangu_sigma", "ascend_ops", "experiments", "tests")
"""Packages of the repository, whose modules `python -m` may name."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def shown_commands(page: str) -> Iterator[list[str]]:
    """The words of every command in the bash blocks of a page, and of its code in a sentence that begins with a program of ours."""
    for _, language, block in FENCE.findall(page):
        if language == "bash":
            yield from shell_commands(block)
    for code in INLINE.findall(FENCE.sub("", page)):
        if code.startswith(("pangu-sigma ", "python -m ", "bash ")):
            yield from shell_commands(code)


def shell_commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell script; variables that the script sets are replaced by their values."""
    text = text.replace("\\\n", " ")
    values = dict(re.findall(r'^(?:export )?(\w+)="?([^"#\n]*?)"?\s*(?:#.*)?$', text, re.MULTILINE))
    text = re.sub(r"\$(\w+)", lambda found: values.get(found[1], found[0]), text)
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set("|;&<>") or not word:
                words.append(word)
                continue
            yield from one_command(words)
            words = ["a file"] if set(word) <= set("<>") else []


def one_command(words: list[str]) -> Iterator[list[str]]:
    """A command without the variables set before it, and those that are an argument of it, as of `bash -c`."""
    words = list(dropwhile(lambda word: re.match(r"\w+=", word), words))
    if words:
        yield words
    for word in words[1:]:
        if word.startswith("pangu-sigma "):
            yield from shell_commands(word)


def fault(words: list[str]) -> str:
    """The reason why a command cannot be as a page shows it; empty if it can."""
    match words:
        case ["pangu-sigma", *arguments]:
            return refusal(arguments)
        case ["bash" | "source", script, *arguments] if script.endswith(".sh"):
            path = Path("run_scripts", Path(script).name) if "run_scripts/" in script else Path(script)
            if not (ROOT / path).exists():
                return f"{path} does not exist"
            return refusal(["launch", *arguments]) if path.name.startswith("msrun") else ""
        case ["python", "-m", module, *_] if module.split(".")[0] in OURS:
            path = Path(*module.split("."))
            files = (path.with_suffix(".py"), path / "__main__.py", path / "__init__.py")
            there = any((folder / file).exists() for folder in (ROOT, ROOT / "src") for file in files)
            return "" if there else f"{module} does not exist"
        case ["python" | "pytest", *_]:
            gone = [word for word in words if word.endswith(".py") and not (ROOT / word).exists()]
            return f"{gone[0]} does not exist" if gone else ""
    return ""


def refusal(arguments: list[str]) -> str:
    """The message with which the command line refuses arguments; empty if it takes them. A command alone need only be known."""
    try:
        make_app().parse_args(
            arguments if len(arguments) > 1 else [*arguments, "--help"], exit_on_error=False, print_error=False
        )
    except CycloptsError as error:
        return usage_error(error)
    return ""


def dead_links(page: Path) -> list[str]:
    """Links of a page to files that do not exist, or to headings that a page does not have."""
    dead = []
    for link in LINK.findall(INLINE.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        if re.match(r"\w+:", link):
            continue
        if not target.is_file() or (heading and heading not in headings(target.read_text(encoding="utf-8"))):
            dead.append(link)
    return dead


def headings(page: str) -> set[str]:
    """The anchors of a page's headings, as code hosts and MyST make them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_that_a_page_shows_is_understood(page):
    commands = list(shown_commands(page.read_text(encoding="utf-8")))
    faults = [f"{shlex.join(words)}: {why}" for words in commands if (why := fault(words))]
    assert faults == []


def test_commands_are_found_and_faults_are_seen():
    page = (
        "`pangu-sigma completion --shell bash`, or `pangu-sigma completion --shell fishy`; `pangu-sigma train`, "
        "`python -m experiments.none`\n"
        '```bash\nsmall="sigma_tiny --no-such"   # a comment, isn\'t it\npangu-sigma prepare-data $small\n'
        "cat x | srun bash -c 'pangu-sigma nothing > file' && bash run_scripts/none.sh \\\n  --more\n```\n"
        "```text\npangu-sigma what came out\n```\n"
    )
    faults = [why for words in shown_commands(page) if (why := fault(words))]
    assert [why[:32] for why in faults] == [
        "Unknown option: --no-such; see p",
        'Unknown command "nothing". Avail',
        "run_scripts/none.sh does not exi",
        'Invalid value "fishy" for --shel',
        "experiments.none does not exist",
    ]
    found = [words for page in PAGES for words in shown_commands(page.read_text(encoding="utf-8"))]
    assert sum(words[0] == "pangu-sigma" for words in found) > 60


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_of_a_page_leads_somewhere(page):
    assert dead_links(page) == []


def test_dead_links_are_seen(tmp_path):
    (tmp_path / "b.md").write_text("# A title, of `b`\n```\n# none\n```\n")
    links = (
        "[1](b.md) [2](b.md#a-title-of-b) ![3](c.png) [4](b.md#none) `[5](d.md)` [6](https://a.b/c) [7](#here)\n## Here"
    )
    (tmp_path / "a.md").write_text(links)
    assert dead_links(tmp_path / "a.md") == ["c.png", "b.md#none"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_are_marked_and_python_is_python_and_names_what_there_is(page):
    for mark, language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        assert MARK.fullmatch(mark) or language not in ("bash", "python"), block
        if language == "python":
            attributes = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Attribute)]
            names = {node.attr for node in attributes if ast.unparse(node.value) == "ps"}
            assert sorted(names - set(ps.__all__)) == []


def test_no_prompt_that_is_shown_ends_in_a_blank():
    """A blank at the end is a token of its own, after which a model's first answer looks broken."""
    sources = ("run_scripts/*.sh", "docs/*.ipynb", "src/pangu_sigma/__init__.py", "src/pangu_sigma/loaded.py")
    files = [*PAGES, ROOT / "src/pangu_sigma/serve/page.html", *(file for each in sources for file in ROOT.glob(each))]
    prompts = [
        (name(file), found["text"]) for file in files for found in PROMPT.finditer(file.read_text(encoding="utf-8"))
    ]
    assert len({file for file, _ in prompts}) > 5 and len(prompts) > 15
    assert [shown for shown in prompts if shown[1].endswith(" ")] == []


def pages_with(*marks: str) -> list[Path]:
    return [page for page in PAGES if any(each[0] in marks for each in FENCE.findall(page.read_text(encoding="utf-8")))]


class Reader:
    """Someone who runs the blocks of a page in the current folder. A server runs until the next one is started, or to the end."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.port, self.server = free_port(), None

    def run(self, language: str, block: str) -> None:
        for pattern, smaller in (*SMALLER, ("127.0.0.1:8000", f"127.0.0.1:{self.port}")):
            block = re.sub(pattern, smaller, block)
        if language == "python":
            exec(block, self.names)
            return
        commands = [*shell_commands(block)]
        for words, following in zip(commands, [*commands[1:], []], strict=True):
            match words:
                case ["pangu-sigma", "serve", *_]:
                    self.serve(words[1:])
                case ["pangu-sigma", *arguments]:
                    is_redirected = following[:1] == ["a file"]
                    output = open(following[1], "w") if is_redirected else nullcontext(sys.stdout)  # noqa: SIM115
                    with output as file, redirect_stdout(file):
                        assert main(arguments) in ((0, 1) if "--check" in arguments else (0,)), shlex.join(words)
                case ["a file", _]:
                    pass  # written by the command before
                case ["curl", *_]:
                    subprocess.run([*words, "--fail-with-body", "--no-progress-meter"], check=True)
                case _:
                    raise AssertionError(
                        f"{shlex.join(words)} cannot be run here: mark its block as parsed, and say why"
                    )

    def serve(self, arguments: list[str]) -> None:
        self.stop_server()
        command = [sys.executable, "-m", "pangu_sigma", *arguments, "--port", str(self.port)]
        self.server = subprocess.Popen(command)
        while self.server.poll() is None:
            with suppress(OSError):
                return urlopen(f"http://127.0.0.1:{self.port}/health", timeout=60).close()
            time.sleep(0.1)
        raise AssertionError(f"{shlex.join(arguments)} ended with {self.server.returncode}")

    def stop_server(self) -> None:
        if self.server is not None:
            self.server.terminate()
            assert self.server.wait(60) == 0


@pytest.fixture
def reader(made_once, tmp_path, monkeypatch) -> Iterator[Reader]:
    """A reader in a folder of their own, who types a line to `chat`."""
    monkeypatch.chdir(shutil.copytree(made_once("shown", write_folder), tmp_path / "folder", symlinks=True))
    monkeypatch.setattr("sys.stdin", io.StringIO("今天\n"))
    reader = Reader()
    yield reader
    reader.stop_server()


@pytest.mark.parametrize(
    ("page", "marks"),
    [
        *(pytest.param(page, ["run"], id=name(page)) for page in pages_with("run")),
        *(
            pytest.param(page, ["run", "run: slow"], id=f"slow {name(page)}", marks=pytest.mark.slow)
            for page in pages_with("run: slow")
        ),
    ],
)
def test_what_a_page_shows_runs(page, marks, reader):
    if "run: slow" in marks:
        from helpers.benchmark_files import write_benchmarks  # lm_eval takes seconds to import

        write_benchmarks(Path("benchmarks"))
    for mark, language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if mark in marks:
            reader.run(language, block)
        elif mark.startswith("file: "):
            write_config(Path(), mark.removeprefix("file: "), yaml.safe_load(block))


@pytest.mark.parametrize("block", ["pangu-sigma train nix", "pangu-sigma inspect sigma_tiny\nbash run_scripts/test.sh"])
def test_a_block_that_does_not_run_is_seen(reader, block):
    with pytest.raises(AssertionError, match=block.splitlines()[-1]):
        reader.run("bash", block)


@pytest.mark.slow
def test_every_idea_of_the_first_hour_trains(reader):
    page = (ROOT / "docs/first_hour.md").read_text(encoding="utf-8")
    ideas = re.findall(r"^\|[^|]*\| `(--set [^`]+)`", page, re.MULTILINE)
    assert len(ideas) == 5
    for number, idea in enumerate(ideas):
        reader.run("bash", f"pangu-sigma train sigma_tiny -o runs/{number} {idea}")
        reader.run("bash", f"pangu-sigma report runs/{number} --against runs/sigma_tiny")


def test_the_front_page_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 110
    assert [line for line in lines if len(line) > 160] == []


@pytest.mark.parametrize(
    ("page", "chinese"), [("README.md", "README.zh-CN.md"), ("docs/how_to/cluster.md", "docs/zh/cluster.md")]
)
def test_a_chinese_page_has_the_commands_and_numbers_of_the_english_one(page, chinese):
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in (page, chinese)]
    blocks = [re.findall(r"^```\w*\n.*?^```$", text, re.MULTILINE | re.DOTALL) for text in texts]
    assert blocks[0] == blocks[1] != []
    numbers = [set(re.findall(r"\d+\.\d\d+|\d+,\d{3}", text)) for text in texts]
    assert numbers[0] == numbers[1]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """It needs the extra `docs`, which run_scripts/docs.sh installs."""
    pytest.importorskip("myst_parser", reason="run run_scripts/docs.sh once")
    options = ["--fail-on-warning", "--keep-going", "-q", "-c", "docs"]
    command = [sys.executable, "-m", "sphinx", *options, ".", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "load_config" in (tmp_path / "docs/reference.html").read_text(encoding="utf-8")
