"""The notebook of docs/ runs from its first cell to its last, and shows what it computed.

Its cells are run in order in one namespace, as a kernel does: that needs no Jupyter, of which this project needs nothing else.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from experiments.tiny import tiny_tree
from pangu_sigma import config_file

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "routing.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


def test_it_is_kept_with_what_it_printed_and_its_picture():
    outputs = [output for cell in cells("code") for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells("code")] == [*range(1, len(cells("code")) + 1)], "run in order"
    (picture,) = (output["data"]["image/png"] for output in outputs if "data" in output)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    printed = "".join("".join(output.get("text", [])) for output in outputs)
    assert not re.search(r"/(home|root|work|tmp)/", printed)
    assert "random" in printed and "first letter" in printed
    last = "".join(cells("markdown")[-1]["source"])
    said = re.findall(r"[+-]\d\.\d{3}", last)
    assert said and all(number in printed for number in said), "the answer's numbers are those that were printed"


@pytest.mark.slow
@pytest.mark.usefixtures("graph_mode")
def test_it_runs(tiny_data, tmp_path, monkeypatch):
    """In an empty folder, with the tiny configuration for the shipped one."""
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: None)
    (tmp_path / "sigma_tiny.yaml").write_text(yaml.safe_dump(tiny_tree(tiny_data), allow_unicode=True), "utf-8")
    monkeypatch.setattr(config_file, "shipped_configs", lambda folder="": {"sigma_tiny": tmp_path / "sigma_tiny.yaml"})
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in cells("code"):
        source = "".join(cell["source"])
        if source.startswith("import"):  # the tiny run has sizes of its own
            source, found = re.subn(r"^small = .*$", "small = {}", source, flags=re.MULTILINE)
            source, steps = re.subn("150", "12", source)
            assert found == 1 and steps
        exec(compile(source, "a cell", "exec"), names)
    left, right = plt.gcf().axes
    assert len(left.get_lines()) == 4 and len(right.containers) >= 2, (
        "three tables and a line for the mean; two comparisons"
    )
    load_NK = names["ps"].metrics("runs/routing_random", "load")["tokens_NK"].sum(axis=0)
    by_hand = load_NK[0, 2:4].max() / load_NK[0, 2:4].mean()  # English has the experts 2 and 3
    assert names["loads"]["random"][0, 1].max() == pytest.approx(by_hand)
    assert names["loads"]["balanced"].max() < names["loads"]["random"].max()
    letters = names["models"]["first letter"]
    ids = letters.ids("the cat", "en")
    firsts = [ord(letters.tokenizer.decode([token]).strip()[:1] or " ") % 2 for token in ids]
    assert np.array_equal(letters.experts("the cat", "en"), np.tile(firsts, (2, 1)) + 2)
