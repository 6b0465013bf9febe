"""A program of the peers' environment: what transformers makes of an exported folder, without our package.

    hf_peer.py answer FOLDER TASK OUT    TASK: {domain: {"texts": […], "prompts": […], "ids": […]}} in JSON
    hf_peer.py full|lora FOLDER TASK OUT one step of training on the ids of TASK, saved to OUT

`answer` writes OUT.json, {domain: {"ids", "decoded", "greedy"}}, and OUT.npz with the logits of each domain's ids.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW = 64


def answer(model: Any, tokenizer: Any, task: dict[str, Any], out: Path) -> None:
    said, logits = {}, {}
    for domain, asked in task.items():
        tokenizer.domain = domain
        ids = [tokenizer(text)["input_ids"] for text in asked["texts"]]
        said[domain] = {"ids": ids, "decoded": tokenizer.batch_decode(ids, skip_special_tokens=True)}
        with torch.no_grad():
            logits[domain] = model(torch.tensor([asked["ids"]]), domain=domain).logits[0].numpy()
        batch = tokenizer(asked["prompts"], return_tensors="pt", padding=True)
        found = model.generate(**batch, domain=domain, max_new_tokens=NEW, do_sample=False)
        said[domain]["greedy"] = found[:, batch["input_ids"].shape[1] :].tolist()
    out.with_suffix(".json").write_text(json.dumps(said))
    np.savez(out.with_suffix(".npz"), **logits)


def train(model: Any, tokenizer: Any, task: dict[str, Any], out: Path, lora: bool) -> None:
    """Take one step in every domain, with gradient checkpointing; the loss must fall."""
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(target_modules=["query", "value", "up", "down"], r=4))
    model.gradient_checkpointing_enable()
    model.train()
    ids, domains = torch.tensor([asked["ids"] for asked in task.values()]), list(task)
    optimizer, losses = torch.optim.SGD((each for each in model.parameters() if each.requires_grad), 0.05), []
    for _ in range(3 if lora else 2):  # B of LoRA begins as zeros: its first step moves little
        loss = model(ids, labels=ids, domain=domains).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses
    model = model.merge_and_unload() if lora else model
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(losses)


def main(verb: str, folder: str, task: str, out: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    asked = json.loads(Path(task).read_text())
    if verb == "answer":
        answer(model, tokenizer, asked, Path(out))
    else:
        train(model, tokenizer, asked, Path(out), verb == "lora")


if __name__ == "__main__":
    main(*sys.argv[1:])
