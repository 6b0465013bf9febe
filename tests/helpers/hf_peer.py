"""A program of the peers' environment: what transformers makes of an exported folder, without our package.

    hf_peer.py answer FOLDER TASK OUT    TASK: {domain: {"texts": […], "prompts": […], "ids": […]}} in JSON
    hf_peer.py full|lora FOLDER TASK OUT one step of training on the ids of TASK, saved to OUT
    hf_peer.py follow FOLDER TASK OUT    the ways of a KV cache, on the sequences "drawn" of TASK; OUT.npz: keys of rows by domain
    hf_peer.py judge|refuse FOLDER TASK OUT   Trainer's evaluation; the messages of what is refused

`answer` writes OUT.json, {domain: {"ids", "decoded", "greedy"}}, and OUT.npz with the logits of each domain's ids.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

NEW, MOST = 64, 1e-5


def answer(model: Any, tokenizer: Any, task: dict[str, Any], out: Path) -> None:
    said, logits = {}, {}
    assert model.generation_config.max_new_tokens == min(64, model.config.max_position_embeddings // 2)
    for domain, asked in task.items():
        tokenizer.domain = domain
        ids = [tokenizer(text, split_special_tokens=True)["input_ids"] for text in asked["texts"]]
        ends = tokenizer(asked["texts"][1] + tokenizer.eos_token)["input_ids"]
        assert ends == [*ids[1], tokenizer.eos_token_id], ends
        said[domain] = {"ids": ids, "decoded": tokenizer.batch_decode(ids, skip_special_tokens=True)}
        with torch.no_grad():
            logits[domain] = model(torch.tensor([asked["ids"]]), domain=domain).logits[0].numpy()
        batch = tokenizer(asked["prompts"], return_tensors="pt", padding=True)
        found = model.generate(**batch, domain=domain, max_new_tokens=NEW, do_sample=False)
        said[domain]["greedy"] = found[:, batch["input_ids"].shape[1] :].tolist()
    out.with_suffix(".json").write_text(json.dumps(said))
    np.savez(out.with_suffix(".npz"), **logits)


def follow(model: Any, tokenizer: Any, task: dict[str, Any], out: Path) -> None:
    """Read drawn sequences along all ways of a cache, in three precisions: rows and logits must be those of the whole."""
    keys: list[list[torch.Tensor]] = []
    for entry in model.rows:
        keys.append([])
        entry.register_forward_hook(lambda module, given, _, mine=keys[-1]: mine.append(module.numbers(*given)))

    def read(ids: torch.Tensor, cache: Any = None, mask: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys [E, B, S] and logits [B, S, V] of ids, which are read in pieces if there is a cache."""
        for mine in keys:
            mine.clear()
        known, logits = 0 if cache is None else cache.get_seq_length(), []
        for piece in [ids] if cache is None else ids.split([1, 4, *[1] * (ids.shape[1] - 5)], 1):
            known += piece.shape[1]
            seen = None if mask is None else mask[:, :known]
            options = {"cache": cache} if cache is not None else {"use_cache": False}
            logits.append(model(piece, attention_mask=seen, domain=domain, **options).logits)
        found = [torch.cat(mine, 1) for mine in keys]
        return torch.stack(found) if found else torch.empty(0, *ids.shape), torch.cat(logits, 1)

    def same(way: str, wanted: tuple[torch.Tensor, torch.Tensor], found: tuple[torch.Tensor, torch.Tensor]) -> None:
        assert torch.equal(wanted[0], found[0]), f"keys, {way}, {model.dtype}"
        apart = (wanted[1] - found[1]).abs().max().item()
        assert model.dtype != torch.float32 or apart < MOST, f"logits, {way}: {apart}"

    torch.manual_seed(0)
    first: dict[str, Any] = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model.to(dtype)
        for domain in [*task][1::2]:
            ids = torch.tensor(task[domain]["drawn"])
            count, half = ids.shape[1], ids.shape[1] // 2
            mask = (
                torch.rand(len(ids), count + 20).argsort(1) < count
            )  # padding anywhere, also behind prompts of a batch
            mask[0] = torch.arange(count + 20) >= 20
            padded = torch.full(mask.shape, tokenizer.pad_token_id)
            padded[mask] = ids.flatten()
            with torch.no_grad():
                whole = read(ids)
                first.setdefault(domain, whole[0])
                same("in this precision", (first[domain], whole[1]), whole)
                for way, cache in (("alone", None), ("token by token", DynamicCache(config=model.config))):
                    if cache is not None:
                        same(way, whole, read(ids, cache))
                        cache = DynamicCache(config=model.config)
                    its, logits = read(padded, cache, mask.long())
                    found = its[:, mask].unflatten(1, ids.shape), logits[mask].unflatten(0, ids.shape)
                    same(f"padded, {way}", whole, found)
                cache = DynamicCache(config=model.config)
                read(torch.cat([ids[:, :half], ids[:, 3:13]], 1), cache)
                cache.crop(-10)
                order = torch.arange(len(ids))
                for way in ("behind a crop", "in another order", "some of them, twice"):
                    if way == "in another order":
                        cache.reorder_cache(chosen := torch.tensor([3, 0, 0, 2]))
                        order = order[chosen]
                    elif way == "some of them, twice":
                        cache.batch_select_indices(chosen := torch.tensor([3, 0]))
                        cache.batch_repeat_interleave(2)
                        order = order[chosen].repeat_interleave(2)
                    rest = whole[0][:, order, half:], whole[1][order, half:]
                    same(way, rest, read(ids[order, half:], cache))
                    cache.crop(half - count)
    model.to(torch.float32)
    for domain in first:
        tokenizer.domain = domain
        batch = tokenizer(task[domain]["prompts"], return_tensors="pt", padding=True)
        options = {"domain": domain, "max_new_tokens": 20, "num_beams": 3, "do_sample": False}
        assert torch.equal(*(model.generate(**batch, **options, use_cache=use) for use in (True, False))), "beams"
    np.savez(out.with_suffix(".npz"), **{domain: each.numpy() for domain, each in first.items()})


def train(model: Any, tokenizer: Any, task: dict[str, Any], out: Path, lora: bool = False) -> None:
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


def judge(model: Any, tokenizer: Any, task: dict[str, Any], out: Path) -> None:
    """Print the loss that Trainer evaluates and the model's own, of one domain in sequences of one length; then the losses of the
    prompts, padded on the left and on the right."""
    from transformers import Trainer, TrainingArguments

    domain, asked = next(iter(task.items()))
    model.config.domain = domain
    data = [{"input_ids": asked["ids"], "labels": asked["ids"]}] * 3
    options = TrainingArguments(str(out), per_device_eval_batch_size=2, report_to=[], use_cpu=True)
    found = Trainer(model, options, eval_dataset=data).evaluate()
    ids = torch.tensor([asked["ids"]])
    tokenizer.domain = domain
    padded = []
    for side in ("left", "right"):
        batch = tokenizer(asked["prompts"], return_tensors="pt", padding=True, padding_side=side)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        padded.append(model(**batch, labels=labels).loss.item())
    print(json.dumps([found["eval_loss"], model(ids, labels=ids).loss.item(), *padded]))


def refuse(model: Any, tokenizer: Any, task: dict[str, Any], out: Path) -> None:
    """Print the messages of mistakes, by name."""
    domain, other = list(task)[:2]
    model.config.domain = tokenizer.domain = domain
    ids = torch.tensor([task[domain]["ids"][:8]])
    bare = AutoModelForCausalLM.from_config(model.config, trust_remote_code=True)
    mistakes: dict[str, Callable[[], Any]] = {
        "other domain": lambda: model(torch.tensor([task[other]["ids"]])),
        "id -1": lambda: model(torch.where(ids == ids[0, 0], -1, ids)),
        "id too large": lambda: model(torch.where(ids == ids[0, 0], len(tokenizer), ids)),
        "label too large": lambda: model(ids, labels=torch.where(ids == ids[0, 0], len(tokenizer), ids)),
        "no tables": lambda: bare(ids),
        "attentions": lambda: model(ids, output_attentions=True),
        "static cache": lambda: model.generate(ids, max_new_tokens=2, cache_implementation="static"),
        "positions": lambda: model(ids, position_ids=ids),
        "embeddings": lambda: model(None, inputs_embeds=torch.zeros(1, 2, 4)),
        "more rows": lambda: model.resize_token_embeddings(len(tokenizer) + 1),
        "more tokens": lambda: tokenizer.add_tokens(["<new>"]),
        "more special tokens": lambda: tokenizer.add_special_tokens({"cls_token": "<CLS>"}),
        "two texts": lambda: tokenizer("a", "b"),
        "decoded -100": lambda: tokenizer.decode([9, -100]),
        "decoded too large": lambda: tokenizer.decode([len(tokenizer)]),
        "piece -1": lambda: tokenizer.convert_ids_to_tokens([-1]),
        "too long": lambda: model.generate(ids, max_new_tokens=model.config.max_position_embeddings),
        "chat": lambda: tokenizer.apply_chat_template([{"role": "user", "content": "a"}]),
        "attentions by config": lambda: with_attentions(model.name_or_path)(ids),
    }
    said = {}
    for name, mistake in mistakes.items():
        try:
            mistake()
            said[name] = ""
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(said))


def with_attentions(folder: str) -> Any:
    """The model with the key in its configuration, which transformers itself refuses with "sdpa"."""
    keys = {"attn_implementation": "eager", "output_attentions": True}
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **keys)


def main(verb: str, folder: str, task: str, out: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    asked = json.loads(Path(task).read_text())
    verbs = {"full": train, "lora": partial(train, lora=True)} | {
        each.__name__: each for each in (answer, follow, judge, refuse)
    }
    verbs[verb](model, tokenizer, asked, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
