"""A first success in a minute, without a download: text that is installed → a sparse model of two domains, and what it learned.

    python -m examples.minute [FOLDER]

en is the language reference of Python, code its standard library. The table compares the loss on held-out text with the loss of
counting words (unigram). Below it stand a passage of each domain and the model's own continuation. FOLDER, by default runs/minute,
gets the text, the tokens and the run; a second call finds the run ended.
"""

from __future__ import annotations

import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pangu_sigma as ps

KIB = 2000
"""Most text of a domain, in KiB."""


def documents() -> Iterator[dict[str, str]]:
    """Yield the documents of this machine's own text, as lines of --input."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = {"en": topics.values(), "code": [module.read_text("utf-8") for module in modules]}
    for domain, found in texts.items():
        room = KIB << 10
        for text in found:
            room -= len(text.encode())
            if room < 0:
                break
            yield {"domain": domain, "text": text}


def main(folder: Path) -> None:
    """Write the text, prepare it, train, measure, and continue a passage of each domain."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.jsonl"
    text.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in documents()), "utf-8")
    config = ps.load_config("sigma_minute", {"data.path": str(folder / "data")})
    ps.prepare_data(config, text)
    model = ps.train(config, folder / "run")
    print(model.evaluate(passages=1))


if __name__ == "__main__":
    main(Path(*sys.argv[1:] or ["runs/minute"]))
