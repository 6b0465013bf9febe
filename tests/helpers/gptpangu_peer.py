"""A program of the peers' environment: PanGu-α by the names of `modeling_gptpangu.py`, saved by Hugging Face's own code.

python gptpangu_peer.py <folder> <form> <bytes of the largest shard> <config as JSON>
    reads <folder>/values.npz and saves them in <folder>/saved. form: "safetensors", by `save_pretrained`; or "bin", by
    `save_pretrained(safe_serialization=False)` of transformers 4. Later ones write safetensors only: there `huggingface_hub` does
    it, whose code cuts the shards and writes the index for transformers, too.
"""

import inspect
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class GPTPanguConfig(PretrainedConfig):
    model_type = "gpt_pangu"


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        length, hidden = config.max_position_embeddings, config.hidden_size
        mask = torch.ones((length, length), dtype=torch.uint8).tril()
        self.register_buffer("bias", mask.view(1, 1, length, length))
        self.register_buffer("masked_bias", torch.tensor(-1e4))
        for name in ("k_proj", "v_proj", "q_proj", "c_proj"):
            self.add_module(name, nn.Linear(hidden, hidden))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden = config.hidden_size
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(hidden), Attention(config), nn.LayerNorm(hidden)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(hidden, 4 * hidden), "c_proj": nn.Linear(4 * hidden, hidden)})


class GPTPanguForCausalLM(PreTrainedModel):
    config_class = GPTPanguConfig
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012 (transformers reads it so)

    def __init__(self, config):
        super().__init__(config)
        hidden = config.hidden_size
        table = {name: nn.Embedding(config.max_position_embeddings, hidden) for name in ("wpe", "wqe")}
        blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        inside = {"wte": nn.Embedding(config.vocab_size, hidden), **table, "h": blocks, "ln_f": nn.LayerNorm(hidden)}
        self.transformer = nn.ModuleDict(inside)
        self.lm_head = nn.Linear(hidden, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight
        self.post_init()

    def get_input_embeddings(self):
        return self.transformer["wte"]

    def get_output_embeddings(self):
        return self.lm_head


def main():
    folder, form, most, given = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
    model = GPTPanguForCausalLM(GPTPanguConfig(**given, architectures=["GPTPanguForCausalLM"]))
    values = np.load(folder / "values.npz")
    loaded = {name: torch.from_numpy(values[name]) for name in values.files}
    missing, unexpected = model.load_state_dict(loaded, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith(("attn.bias", "attn.masked_bias")) or name == "lm_head.weight" for name in missing), (
        missing
    )
    model = model.to(loaded["transformer.wte.weight"].dtype)
    saved = folder / "saved"
    if form == "safetensors":
        model.save_pretrained(saved, max_shard_size=most)
    elif "safe_serialization" in inspect.signature(PreTrainedModel.save_pretrained).parameters:
        model.save_pretrained(saved, max_shard_size=most, safe_serialization=False)
    else:
        from huggingface_hub import save_torch_state_dict

        model.config.save_pretrained(saved)
        names = {"filename_pattern": "pytorch_model{suffix}.bin", "safe_serialization": False}
        save_torch_state_dict(model.state_dict(), saved, max_shard_size=most, **names)


if __name__ == "__main__":
    main()
