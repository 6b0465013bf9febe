"""Memory and speed of prepare-data on recombined text of any size: `python -m experiments.text_at_size --mb 1000 --near off 0.8`.

Sentences of the packaged text are drawn at random into documents of four domains, of which any two have next to nothing in common.
Each stage (corpus, one measurement each) is a process of its own and keeps its result: the same command goes on after a kill, and
prints one table of all that is done. Memory is the sum over all processes of the preparation, sampled five times a second: *PSS*
counts pages that processes share once, RSS in each.

`--peer MB` adds the preprocessing of PanGu-α's authors (pcl_pangu's preprocess_data_pangu.py, unchanged) and ours on the same
Chinese documents. It runs in the environment of the peers, see `python -m experiments.peers`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.near_duplicates import grams, jaccard, sentences, stage
from experiments.peers import peers_python, script_of
from pangu_sigma.config_file import config_path, load_config
from pangu_sigma.data.packaged.packages import packaged_documents
from pangu_sigma.domains import domains_of

SHARES = {"zh": 40, "en": 30, "bilingual": 10, "code": 20}
"""Domains, and the percentage of the documents that are of each."""
_TOP_LEVEL = re.compile(r"\n(?=\S)")
_PEER_FILES = 512
"""Files of the peer's input. Our choice: it gives 128 files to a process at a time, so that fewer would leave processes idle."""
_RECOMBINED = ("data.max_overlap=1",)
"""Settings for recombined text: every window of a document is in others, too."""
_CHINESE = (
    "domains=[{name: zh, format: text, language: zh, slot: zh}]",
    *("data.domains_per_step=1", "data.domain_sets=1"),
)

Pool = dict[str, list[Any]]
"""What documents are drawn from, by domain: texts, or for `bilingual` a Chinese and an English one."""


def pool_of(cache: Path) -> Pool:
    """Pieces of the packaged text, each once: sentences, pairs of translations, and stretches of code of the top level."""
    domains = domains_of(load_config(config_path("sigma_tiny")))
    pool: Pool = dict(sentences(cache))
    sides = (each.segments for each in packaged_documents(domains.named("bilingual"), cache))
    pairs = (dict(some[n : n + 2]) for some in sides for n in range(0, len(some) - 1, 2))
    pool["bilingual"] = list(dict.fromkeys((pair["zh"], pair["en"]) for pair in pairs if len(pair["zh"]) > 8))
    texts = (str(each.text) for each in packaged_documents(domains.named("code"), cache))
    cut = (part for text in texts for part in _TOP_LEVEL.split(text))
    pool["code"] = list(dict.fromkeys(part for part in cut if 40 <= len(part) <= 4_000))
    return pool


def recombined(pool: Pool, size: int, domains: Sequence[str] = tuple(SHARES)) -> Iterator[dict[str, Any]]:
    """Lines of `size` bytes of text together, of these domains."""
    draw, weights = random.Random(0), [SHARES[domain] for domain in domains]
    while size > 0:
        (domain,) = draw.choices(domains, weights)
        drawn = draw.choices(pool[domain], k=draw.randint(*((8, 24) if domain == "code" else (20, 60))))
        if domain == "bilingual":
            zh, en = zip(*drawn, strict=True)
            text: Any = {"zh": "\n".join(zh), "en": "\n".join(en)}
            size -= len((text["zh"] + text["en"]).encode())
        else:
            text = {"zh": "", "en": " ", "code": "\n"}[domain].join(drawn)
            size -= len(text.encode())
        yield {"domain": domain, "text": text}


def write_corpus(folder: Path, cache: Path, size: int, domains: Sequence[str]) -> dict[str, Any]:
    """Write the lines to corpus.jsonl; return the similarity of pairs of documents of one domain, drawn at random."""
    draw, sample, count = random.Random(1), dict[str, list[set[int]]](), 0
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for document in recombined(pool_of(cache), size, domains):
            count += 1
            file.write(json.dumps(document, ensure_ascii=False) + "\n")
            text, some = document["text"], sample.setdefault(document["domain"], [])
            if len(some) < 200 and draw.random() < 0.2:
                some.append(grams(text if isinstance(text, str) else "\n".join(text.values())))
    pairs = [draw.sample(some, 2) for some in sample.values() if len(some) > 1 for _ in range(1_000)]
    return {"documents": count, "jaccard": max((jaccard(*pair) for pair in pairs), default=0.0)}


def write_peer_files(folder: Path, corpus: Path) -> None:
    """Write the texts of a corpus as the peer reads them: text files with a blank line between documents."""
    texts = [json.loads(line)["text"] for line in corpus.read_text("utf-8").splitlines()]
    for number in range(_PEER_FILES):
        some = [re.sub(r"\n\n+", "\n", text) for text in texts[number::_PEER_FILES]]
        (folder / f"{number:05}.txt").write_text("\n\n".join(some), "utf-8")


def processes(pid: int) -> list[int]:
    """A process with its descendants."""
    try:
        found = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:  # it has ended
        return [pid]
    return [pid, *(each for line in found for child in line.split() for each in processes(int(child)))]


def memory(pids: Sequence[int]) -> tuple[int, int]:
    """PSS and RSS of processes together in KiB."""
    total = {"Pss:": 0, "Rss:": 0}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for key, value, *_ in (line.split() for line in lines[1:]):
            if key in total:
                total[key] += int(value)
    return total["Pss:"], total["Rss:"]


def measured_run(command: Sequence[str], log: Path) -> dict[str, Any]:
    """Run a command; its peak memory in MiB with all of its processes, and its wall and processor time in seconds.

    Raises RuntimeError if it fails. log: file of what it says.
    """
    before, begun, pss, rss = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0, 0
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process:
        while process.poll() is None:
            now = memory(processes(process.pid))
            pss, rss = max(pss, now[0]), max(rss, now[1])
            time.sleep(0.2)
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {process.returncode}\n{log.read_text()[-2_000:]}")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "processor": processor, "pss": pss / 1024, "rss": rss / 1024}


def measure_ours(folder: Path, corpus: Path, workers: int, changes: Sequence[str]) -> dict[str, Any]:
    """Measure prepare-data of sigma_tiny with these changes of keys; the result is removed."""
    output = folder / "prepared"
    changes = [f"data.path={output.resolve()}", *_RECOMBINED, *changes]
    command = [sys.executable, "-m", "pangu_sigma", "prepare-data", "sigma_tiny", "--input", str(corpus)]
    command += ["--workers", str(workers), *(part for change in changes for part in ("--set", change))]
    measured = measured_run(command, folder / "log.txt")
    shutil.rmtree(output)
    return measured


def measure_peer(folder: Path, texts: Path, workers: int, python: Path) -> dict[str, Any]:
    """Measure the preprocessing of PanGu-α's authors."""
    package: Any = importlib.util.find_spec("pcl_pangu")
    installed = Path(package.submodule_search_locations[0])
    command = script_of(python, Path(__file__).with_name("pangu_preprocess.py"))
    command += [str(installed / "model/panguAlpha_pytorch/tools/preprocess_data_pangu.py"), "--append-eod"]
    command += ["--input", f"{texts}/*.txt", "--vocab-file", str(installed / "tokenizer/bpe_4w_pcl/vocab")]
    command += ["--output-prefix", str(folder / "ids"), "--workers", str(workers)]
    return measured_run(command, folder / "log.txt")


def row(name: str, workers: int, size: int, measured: dict[str, Any]) -> str:
    """Row of the table. size: MB of text."""
    speeds = (size / measured[key] for key in ("wall", "processor"))
    cells = [f"{measured['wall']:.0f}", f"{measured['processor']:.0f}", *(f"{speed:.2f}" for speed in speeds)]
    cells += [f"{measured[key]:.0f}" for key in ("pss", "rss")]
    return f"| {' | '.join([name, str(workers), str(size), *cells])} |"


HEADER = (
    "| | workers | MB | wall s | CPU s | MB/s | MB/CPU s | PSS MiB | RSS MiB |\n|---|---|---|---|---|---|---|---|---|"
)


def rows_of_ours(options: argparse.Namespace) -> Iterator[str]:
    """Rows of prepare-data in all four domains; the first line says what the corpus is."""
    folder = options.folder / str(options.mb)
    said = stage(folder / "corpus", write_corpus, options.cache, options.mb * 10**6, tuple(SHARES))
    yield f"{said['documents']:,} documents; Jaccard similarity of 1,000 random pairs a domain: at most {said['jaccard']:.3f}"
    yield HEADER
    for near in options.near:
        changes = [] if near == "off" else [f"data.near_duplicates={near}"]
        for workers in options.workers:
            corpus = folder / "corpus" / "corpus.jsonl"
            measured = stage(folder / f"{near}_{workers}", measure_ours, corpus, workers, changes)
            yield row(f"near-duplicates {near}", workers, options.mb, measured)


def rows_of_peer(options: argparse.Namespace, python: Path) -> Iterator[str]:
    """Rows of the peer and of ours on Chinese text alone."""
    folder, size = options.folder / f"zh_{options.peer}", options.peer
    stage(folder / "corpus", write_corpus, options.cache, size * 10**6, ("zh",))
    corpus = folder / "corpus" / "corpus.jsonl"
    stage(folder / "texts", write_peer_files, corpus)
    yield HEADER
    for workers in options.workers:
        measured = stage(folder / f"ours_{workers}", measure_ours, corpus, workers, _CHINESE)
        yield row("ours, zh", workers, size, measured)
        measured = stage(folder / f"peer_{workers}", measure_peer, folder / "texts", workers, python)
        yield row("pcl_pangu's script, zh", workers, size, measured)


def main() -> None:
    """Do what is not done yet, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mb", type=int, default=100, help="MB of text (100); 0: none")
    parser.add_argument("--near", nargs="+", default=["off", "0.8"], help="values of data.near_duplicates (off 0.8)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of processes (1 2)")
    parser.add_argument("--peer", type=int, default=0, help="MB of Chinese text for ours and the peer (0: none)")
    parser.add_argument("--folder", type=Path, default=Path("runs/text_at_size"), help="folder of the stages")
    parser.add_argument(
        "--cache", type=Path, default=Path("data/packages"), help="folder of the packages (data/packages)"
    )
    options = parser.parse_args()
    if options.mb:
        print(*rows_of_ours(options), sep="\n", flush=True)
    if options.peer and (python := peers_python()):
        print(*rows_of_peer(options, python), sep="\n", flush=True)


if __name__ == "__main__":
    main()
