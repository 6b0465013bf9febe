"""Near-duplicates planted in recombined text, and how many are found: `python -m experiments.near_duplicates --mb 1000`.

Sentences of the packaged Chinese and English text are drawn at random into documents of 20 to 60, of which any two have next to
nothing in common; of every 25th a copy is planted later on, with other sentences at its end, so many that the Jaccard similarity of
the two is 0.7, 0.8, 0.9 or 1. Each stage (corpus, signatures, search, held out) is a process of its own, whose memory is measured,
and keeps its files: the same command goes on after a kill.

What is held out is looked up in two preparations of the corpus, without and with `data.near_duplicates`: of how many of its
documents is a planted near-duplicate in the training text?
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pangu_sigma.config_file import config_path, load_config
from pangu_sigma.data.packaged.packages import packaged_documents
from pangu_sigma.data.prepare.near_duplicates import (
    GRAM_WORDS,
    bands_of,
    near_duplicates,
    shingles,
    signature,
)
from pangu_sigma.data.prepare.prepare import Options, prepare
from pangu_sigma.data.prepare.stage import Stage
from pangu_sigma.data.prepared import SPLITS, PreparedData, data_of
from pangu_sigma.domains import domains_of
from pangu_sigma.text.documents import Document

LANGUAGES = ("zh", "en")
SIMILARITIES = (0.7, 0.8, 0.9, 1.0)
_SENTENCE = {"zh": re.compile(r"[^。！？\n]+[。！？]"), "en": re.compile(r"[^.!?]+[.!?](?=\s)")}
_BLOCK_BYTES = 8 << 20
_EVERY = 25
"""A copy is planted of one in so many documents."""
_DELAY = 1_000
"""Documents between an original and its copy, at most."""


def grams(text: str) -> set[int]:
    """Set of a text's n-grams, as the signatures have it."""
    return {number for some in shingles(text, GRAM_WORDS) for number in some.tolist()}


def jaccard(a: set[int], b: set[int]) -> float:
    """Exact Jaccard similarity of two sets."""
    return len(a & b) / len(a | b)


def near_copy(text: str, other: str, similarity: float) -> tuple[str, float]:
    """The beginning of `text` with the rest of `other` behind it: the shortest one that is similar enough, and its similarity."""
    own, low, high = grams(text), 0, len(text)
    while low < high:
        cut = (low + high) // 2
        if jaccard(own, grams(text[:cut] + other[cut : len(text)])) >= similarity:
            high = cut
        else:
            low = cut + 1
    copy = text[:low] + other[low : len(text)]
    return copy, jaccard(own, grams(copy))


def sentences(cache: Path) -> dict[str, list[str]]:
    """Sentences of the packaged text by language, each once."""
    domains = domains_of(load_config(config_path("sigma_tiny")))
    found = {}
    for language in LANGUAGES:
        texts = (str(document.text) for document in packaged_documents(domains.named(language), cache))
        cut = (sentence.strip() for text in texts for sentence in _SENTENCE[language].findall(text))
        found[language] = list(dict.fromkeys(each for each in cut if 20 <= len(each) <= 400))
    return found


def documents(pool: dict[str, list[str]], size: int) -> Iterator[dict[str, Any]]:
    """Documents of `size` bytes together: domain, text, the number of the original, and the wanted and the exact similarity."""
    draw, waiting, number, planted = random.Random(0), dict[int, dict[str, Any]](), 0, 0

    def text(language: str) -> str:
        return ("" if language == "zh" else " ").join(draw.choices(pool[language], k=draw.randint(20, 60)))

    while size > 0 or waiting:
        if number in waiting or size <= 0:  # the last copies follow without a gap
            document = waiting.pop(number if number in waiting else min(waiting))
        else:
            language = draw.choice(LANGUAGES)
            document = {"domain": language, "text": text(language), "original": None}
            if number % _EVERY == 0:
                wanted = SIMILARITIES[planted % len(SIMILARITIES)]
                copy, exact = near_copy(document["text"], text(language), wanted)
                at = draw.choice([later for later in range(number + 1, number + _DELAY) if later not in waiting])
                waiting[at] = document | {"text": copy, "original": number, "wanted": wanted, "exact": exact}
                planted += 1
        size -= len(document["text"].encode())
        number += 1
        yield document


def make_corpus(folder: Path, cache: Path, size: int) -> None:
    """Write the documents as blocks of lines."""
    lines, block, filled = list[str](), 0, 0
    for document in documents(sentences(cache), size):
        lines.append(json.dumps(document, ensure_ascii=False))
        filled += len(document["text"].encode())
        if filled >= _BLOCK_BYTES:
            (folder / f"{block:05}.jsonl").write_text("\n".join(lines), "utf-8")
            lines, block, filled = [], block + 1, 0
    (folder / f"{block:05}.jsonl").write_text("\n".join(lines), "utf-8")


def documents_of(file: Path) -> list[dict[str, Any]]:
    """The documents of a block."""
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]


def make_signatures(folder: Path, corpus: Path) -> dict[str, float]:
    """Write the signatures of each block; returns bytes and CPU seconds by language."""
    measured: Counter[str] = Counter()
    for file in sorted(corpus.glob("*.jsonl")):
        found = []
        for each in documents_of(file):
            begun = time.process_time()
            found.append(signature(Document(each["domain"], each["text"])))
            measured[f"{each['domain']} seconds"] += time.process_time() - begun  # type: ignore[assignment]
            measured[f"{each['domain']} bytes"] += len(each["text"].encode())
        np.save(folder / f"{file.stem}.npy", np.stack(found))
    return dict(measured)


def search(folder: Path, signatures: Path, threshold: float, memory: int) -> dict[str, Any]:
    """Find the near-duplicates; returns what was counted, and saves which document stays for each."""
    begun, count = time.process_time(), 0
    with Stage(folder).database(memory / (1 << 30)) as database:
        database.execute("CREATE TABLE documents (document BIGINT, domain SMALLINT, signature BLOB)")
        for file in sorted(signatures.glob("*.npy")):
            values = np.load(file)
            columns = {
                "document": np.arange(count, count + len(values)),
                "domain": np.zeros(len(values), np.int16),
                "signature": pa.array([each.tobytes() for each in values], pa.binary()),
            }
            database.register("block", pa.table(columns))
            database.execute("INSERT INTO documents SELECT * FROM block")
            count += len(values)
        found = near_duplicates(database, bands_of(threshold))
    first_N = np.arange(count)
    first_N[found.dropped] = found.first
    np.save(folder / "first.npy", first_N)
    return {
        "documents": count,
        "pairs": found.pairs,
        "groups": found.groups,
        "seconds": time.process_time() - begun,
    }


def hold_out(folder: Path, corpus: Path, threshold: float | None) -> dict[str, int]:
    """Prepare the corpus; return the number of held-out documents, and of those with a near-duplicate in the training text.

    A near-duplicate is a planted copy, or its original, whose exact similarity is 0.8 or more.
    """
    changes = [("data.path", str(folder / "prepared")), ("data.max_overlap", 1.0), ("data.near_duplicates", threshold)]
    domains = [{"name": each, "format": "text", "language": each, "slot": each} for each in LANGUAGES]
    changes += [("domains", domains), ("data.domains_per_step", 1), ("data.domain_sets", 1)]
    config = load_config(config_path("sigma_tiny"), changes)
    prepare(config, sorted(corpus.glob("*.jsonl")), folder / "prepared", Options())
    data = data_of(config)
    tokenizer, every = (
        data.tokenizer(),
        [each for file in sorted(corpus.glob("*.jsonl")) for each in documents_of(file)],
    )
    texts = {language: _contents(data, language, tokenizer.size) for language in LANGUAGES}
    counts = Counter({"held out": sum(len(held_out) for _, held_out in texts.values()), "near-duplicate trained on": 0})
    for each in every:
        if each["original"] is not None and each["exact"] >= 0.8:
            train, held_out = texts[each["domain"]]
            domain = domains_of(config).named(each["domain"])
            pair = [
                np.array(tokenizer.sample(Document("", some["text"]), domain), np.int32).tobytes()
                for some in (each, every[each["original"]])
            ]
            counts["near-duplicate trained on"] += any(a in held_out and b in train for a, b in (pair, pair[::-1]))
    shutil.rmtree(folder / "prepared")
    return dict(counts)


def _contents(data: PreparedData, domain: str, size: int) -> list[set[bytes]]:
    """Ids of the documents of both splits of a domain. size: of the vocabulary."""
    found = []
    for split in SPLITS:
        tokens = data.tokens(domain, split, size)
        ids = np.split(tokens.read(0, tokens.tokens), np.cumsum(tokens.lengths)[:-1])
        found.append({each.tobytes() for each in ids})
    return found


def judge(corpus: Path, first_N: np.ndarray) -> dict[str, str]:
    """Recall by language and similarity, precision, and the similarity of documents that are no copies of each other."""
    draw = random.Random(1)
    pairs = [draw.sample(range(len(first_N)), 2) for _ in range(4_000)]
    sampled, sets = {number for pair in pairs for number in pair}, dict[int, set[int]]()
    planted, found = Counter[tuple[str, float]](), Counter[tuple[str, float]]()
    exact, originals, wrong = dict[float, list[float]](), dict[int, int](), 0
    every = (each for file in sorted(corpus.glob("*.jsonl")) for each in documents_of(file))
    for number, each in enumerate(every):
        first, original = int(first_N[number]), each["original"]
        if original is not None:
            originals[number] = original
            planted[each["domain"], each["wanted"]] += 1
            found[each["domain"], each["wanted"]] += first == original
            exact.setdefault(each["wanted"], []).append(each["exact"])
        wrong += first not in (number, original)
        if number in sampled:
            sets[number] = grams(each["text"])
    unrelated = [jaccard(sets[a], sets[b]) for a, b in pairs if a != originals.get(b) and b != originals.get(a)]
    dropped = int(np.sum(first_N != np.arange(len(first_N))))
    return {
        **{
            f"found of {language} at {wanted:.0%}": f"{found[language, wanted] / count:.4f} of {count:,}"
            for (language, wanted), count in sorted(planted.items())
        },
        **{f"exact similarity at {wanted:.0%}": f"{min(v):.3f} … {max(v):.3f}" for wanted, v in sorted(exact.items())},
        "precision": f"{1 - wrong / max(dropped, 1):.5f}: {wrong} of {dropped:,} dropped are no copies of the one that stays",
        "unrelated pairs": f"{len(unrelated):,} tried, similarity at most {max(unrelated):.3f}",
    }


def stage(folder: Path, make: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Call `make` in a process of its own unless it is done, and return what it said and the peak of its memory in MiB."""
    done = folder / "done.json"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            said = pool.submit(make, folder, *arguments).result() or {}
            said["peak MiB"] = pool.submit(peak).result()
        done.write_text(json.dumps(said), "utf-8")
    return json.loads(done.read_text("utf-8"))


def peak() -> float:
    """Peak resident memory of this process in MiB, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run the stages that are not done, and print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mb", type=int, default=20, help="MB of text (20)")
    parser.add_argument("--threshold", type=float, default=0.8, help="data.near_duplicates (0.8)")
    parser.add_argument("--memory", type=int, default=256, help="MiB for the search (256)")
    parser.add_argument("--folder", type=Path, help="folder of the stages (runs/near_duplicates/MB)")
    parser.add_argument(
        "--cache", type=Path, default=Path("data/packages"), help="folder of the packages (data/packages)"
    )
    options = parser.parse_args()
    folder = options.folder or Path("runs/near_duplicates") / str(options.mb)
    corpus, signatures = folder / "corpus", folder / "signatures"
    stage(corpus, make_corpus, options.cache, options.mb * 10**6)
    signed = stage(signatures, make_signatures, corpus)
    searched = folder / f"search_{options.threshold}_{options.memory}"
    found = stage(searched, search, signatures, options.threshold, options.memory << 20)
    for language in LANGUAGES:
        speed = signed[f"{language} bytes"] / 1e6 / signed[f"{language} seconds"]
        print(f"{f'signatures of {language}':<28} {speed:.1f} MB/s of a core")
    print(f"{'peak of signatures':<28} {signed['peak MiB']:.0f} MiB")
    print(f"{'peak of the search':<28} {found.pop('peak MiB'):.0f} MiB")
    text = sum(signed[f"{language} bytes"] for language in LANGUAGES)
    print(f"{'speed of the search':<28} {text / 1e6 / found['seconds']:.0f} MB/s of a core")
    for name, changed in (("off", None), (str(options.threshold), options.threshold)):
        counts = stage(folder / f"held_out_{name}", hold_out, corpus, changed)
        where = f"held out with data.near_duplicates {name}"
        print(
            f"{where:<28}: {counts['held out']:,}, near-duplicate trained on: {counts['near-duplicate trained on']:,}"
        )
    for name, value in (found | judge(corpus, np.load(searched / "first.npy"))).items():
        print(f"{name:<28} {value if isinstance(value, str) else format(value, ',.6g')}")


if __name__ == "__main__":
    main()
