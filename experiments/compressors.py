"""A peer that nobody here wrote: bits a byte of a trained run on held-out text, beside compressors that know its training text.

    python -m experiments.compressors runs/sigma_tiny

`zstd --patch-from` and `xz` may copy from all training text of the domain; a model has seen the same text, and reads at most
seq_length tokens before the one that it predicts. Neither the model nor the training text counts. The size of zstd is the patch; xz
has the size of training and held-out text together, less that of training text alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pangu_sigma as ps
from experiments.cases import log_to_terminal
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.errors import exit_status
from pangu_sigma.results import aligned
from pangu_sigma.stored.open import open_model
from pangu_sigma.text.tokenizer import Tokenizer

ZSTD = ("zstd", "--ultra", "-22", "--long=31", "-q", "-c")
XZ = ("xz", "-9e", "--lzma2=preset=9e,dict=256MiB", "-T1", "-c")


def size(command: tuple[str, ...], *files: Path) -> int:
    """Return how many bytes a command writes that compresses these files, one after another."""
    text = b"".join(file.read_bytes() for file in files)
    return len(subprocess.run(command, input=text, capture_output=True, check=True).stdout)


def write_split(data: PreparedData, tokenizer: Tokenizer, domain: str, split: str, folder: Path) -> Path:
    """Write the text of a split of a domain, its documents one after another."""
    tokens = data.tokens(domain, split, tokenizer.size)
    ids_T = tokens.read(0, tokens.tokens)
    path = folder / f"{domain}.{split}.txt"
    path.write_text(tokenizer.decode(ids_T[ids_T != tokenizer.eot].tolist()), "utf-8")
    return path


def compare_compressors(run: Path) -> str:
    """Return a table: bits a byte of the run and of each compressor, by domain, on all held-out text of the run's data."""
    model = open_model(run, "run")
    data, measured = PreparedData(Path(model.config.data.path)), ps.load(run).evaluate(all_samples=True)
    rows = [["bits a byte of held-out text", "the model", "zstd", "xz", "bytes", "bytes of training text"]]
    with tempfile.TemporaryDirectory() as name:
        for domain, figures in measured.items():
            train, held_out = (
                write_split(data, model.tokenizer, domain, split, Path(name)) for split in ("train", "held_out")
            )
            bytes_, known = held_out.stat().st_size, train.stat().st_size
            patch = size((*ZSTD, f"--patch-from={train}", str(held_out)))
            more = size(XZ, train, held_out) - size(XZ, train)
            bits = [figures["bits_per_byte"], *(8 * each / bytes_ for each in (patch, more))]
            rows.append([domain, *(f"{each:.3f}" for each in bits), f"{bytes_:,}", f"{known:,}"])
    return "\n".join(aligned(rows, "<>"))


def main() -> int:
    """Compare the run that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m experiments.compressors", description=__doc__)
    parser.add_argument("run", type=Path)
    print(compare_compressors(parser.parse_args().run))
    return 0


if __name__ == "__main__":
    log_to_terminal()
    sys.exit(exit_status(main))
