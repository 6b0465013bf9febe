"""Step time as the stored experts grow and the active ones stay: ECSS promises that nothing else grows with them."""

from __future__ import annotations

from pangu_sigma.bench.harness import Row, compare, take_turns
from pangu_sigma.bench.synthetic import SyntheticRun, config_of
from pangu_sigma.device import use_cpu

STORED = (16, 64, 256, 640)
"""Experts of a layer; one domain of four is active in a step."""
ACTIVE = 4
MODEL = {
    "hidden": 192,
    "ffn": 768,
    "heads": 6,
    "dense_layers": 2,
    "rre_layers": 2,
    "seq_length": 256,
    "slot_rows": 1024,
}
BATCH = 4


def run(peers: bool) -> list[Row]:
    """Rows of the bench: the step at 16 stored experts as the peer of the others. peers: makes no difference."""
    use_cpu()
    model = MODEL | {"experts_per_domain": ACTIVE}
    runs = {k: SyntheticRun(config_of(k // ACTIVE, model, train={"batch_size": BATCH})) for k in STORED}
    for stored, synthetic in runs.items():
        for _ in range(stored // ACTIVE):  # every expert once: its moments are in memory then
            synthetic.advance()
    seconds = take_turns({f"{stored} stored": synthetic.advance for stored, synthetic in runs.items()})
    first = f"{STORED[0]} stored"
    rows = []
    for stored in STORED[1:]:
        case = f"step with {stored} stored experts a layer, {ACTIVE} active"
        pair = {"ours": seconds[f"{stored} stored"], f"{first}, {ACTIVE} active": seconds[first]}
        rows += compare("scale", case, pair)
    return rows
