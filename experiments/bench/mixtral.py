"""The script of a peer.Worker, which trains transformers' Mixtral. It is run by path and imports nothing of this project."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, MixtralConfig


class Training:
    """Training of a Mixtral with random weights on drawn ids.

    settings: model (keys of MixtralConfig), experts (the backend that multiplies by them), batch, length, first_id, rate.
    """

    def __init__(self, settings: dict[str, Any]):
        torch.manual_seed(0)
        config = MixtralConfig(**settings["model"])
        self.model = AutoModelForCausalLM.from_config(config, experts_implementation=settings["experts"]).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings["rate"], fused=True)
        self.ids = settings["first_id"], config.vocab_size, (settings["batch"], settings["length"])

    def step(self) -> float:
        """One update on new ids; returns the loss."""
        ids = torch.randint(*self.ids)
        loss = self.model(ids, labels=ids).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def main() -> None:
    """Train as the JSON of the first argument says: a step, and a line of JSON, for each line of standard input."""
    # Libraries print to standard error, so that standard output has answers only.
    answers, sys.stdout = sys.stdout, sys.stderr
    training = Training(json.loads(sys.argv[1]))
    print(json.dumps({"parameters": training.model.num_parameters()}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps({"loss": training.step()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
