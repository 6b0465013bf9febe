"""The script of a peer.Worker, which decodes with transformers' GPT-2. It is run by path and imports nothing of this project."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel


class Decoding:
    """Texts of drawn ids that grow by greedy tokens, with random weights, eager, and a DynamicCache.

    settings: model (keys of GPT2Config), batch, read (tokens of a text that are read before the first step), tokens (that a step
    adds to each text), prompt (True: a step reads that many tokens of new texts instead, and nothing is read before).
    """

    def __init__(self, settings: dict[str, Any]):
        torch.manual_seed(0)
        self.model = GPT2LMHeadModel(GPT2Config(**settings["model"])).eval()
        self.batch, self.tokens, self.prompt = settings["batch"], settings["tokens"], settings["prompt"]
        if not self.prompt:
            self.cache, self.next = self.start(settings["read"])

    @torch.inference_mode()
    def start(self, tokens: int) -> tuple[DynamicCache, torch.Tensor]:
        """A cache of new texts of so many tokens, and the token after each. [batch, 1]"""
        cache = DynamicCache()
        ids = torch.randint(10, self.model.config.vocab_size, (self.batch, tokens))
        return cache, self._after(ids, cache)

    def _after(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        return self.model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)

    @torch.inference_mode()
    def step(self) -> None:
        """One step."""
        if self.prompt:
            self.start(self.tokens)
            return
        for _ in range(self.tokens):
            self.next = self._after(self.next, self.cache)


def main() -> None:
    """Decode as the JSON of the first argument says: a step, and a line of JSON, for each line of standard input."""
    # Libraries print to standard error, so that standard output has answers only.
    answers, sys.stdout = sys.stdout, sys.stderr
    decoding = Decoding(json.loads(sys.argv[1]))
    threads = torch.get_num_threads()
    print(json.dumps({"parameters": decoding.model.num_parameters(), "threads": threads}), file=answers, flush=True)
    for _ in sys.stdin:
        decoding.step()
        print("{}", file=answers, flush=True)


if __name__ == "__main__":
    main()
