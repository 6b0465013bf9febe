"""PanGu-Σ for transformers 5, in torch alone: PanGu-α's decoder, whose upper FFNs are experts chosen by domain and token id.

The tables that say which expert, `tid2eid…`, and which row of the word table, `tid2row`, are tensors of the model; so are rows that
a token finds by its id and the one before it, if the model has some. A text ends with <eot>: what follows in the same sequence is
another text, which begins at position 0 and does not see the first.

Shape suffixes: B batch, S tokens given, K tokens known (cached ones and these), T tokens = B·S, H hidden, V vocabulary, W width of
rows, U rows that were met.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.pytorch_utils import Conv1D

from .configuration_pangu_sigma import PanGuSigmaConfig

ACTIVATIONS = {
    "fast_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "tanh": lambda x: F.gelu(x, approximate="tanh"),
    "erf": F.gelu,
}
PADDING = -1
"""Id of padding among the ids that are known."""
DIGITS = (1, 1 << 8, 1 << 16)
"""Values of the digits by which the cache knows ids: each is below 256, which float16 and bfloat16 hold exactly."""
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""Name of the cache in an output, which transformers 5 changed between its versions."""


class Down(Conv1D):
    """Second matrix of an FFN, [inner, hidden]. Experts of further segments have no bias: the first one's is the layer's."""

    def __init__(self, outputs: int, inputs: int, bias: bool):
        super().__init__(outputs, inputs)
        if not bias:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class FFN(nn.Module):
    """FFN of a dense layer, or one expert. inner: number of its inner units."""

    def __init__(self, config: PanGuSigmaConfig, inner: int, bias: bool = True):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, inner)
        self.down = Down(config.hidden_size, inner, bias)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Segment(nn.Module):
    """Experts of a segment of an RRE layer. kind: `own` or `common`. bias: True for the first segment of a layer."""

    def __init__(self, config: PanGuSigmaConfig, kind: str, bias: bool):
        super().__init__()
        own = len(config.domains) * config.num_experts_per_domain
        inner = config.intermediate_size // len(config.expert_segments)
        count = own if kind == "own" else config.num_common_experts
        self.experts = nn.ModuleList(FFN(config, inner, bias) for _ in range(count))

    def forward(self, x_TH: Tensor, experts_T: Tensor) -> Tensor:
        """Return for each row of x the output of its expert, [T, H]; no gate weights it. experts: number of each row's expert."""
        order_T = experts_T.argsort(stable=True)  # rows of one expert follow each other
        counts = experts_T.bincount(minlength=len(self.experts)).tolist()
        groups = zip(self.experts, x_TH[order_T].split(counts), strict=True)
        return torch.cat([expert(rows) for expert, rows in groups if len(rows)])[order_T.argsort()]  # in x's order


class RoutedFFN(Segment):
    """FFN of an RRE layer: the sum of its segments, of which it is the first itself."""

    def __init__(self, config: PanGuSigmaConfig):
        first, *further = config.expert_segments
        super().__init__(config, first, True)
        self.segments = nn.ModuleDict({str(s): Segment(config, kind, False) for s, kind in enumerate(further, 1)})

    def forward(self, x_BSH: Tensor, experts: list[Tensor]) -> Tensor:
        """Return the FFN of x, [B, S, H]. experts: for each segment the number of each token's expert, [B, S]."""
        x_TH = x_BSH.flatten(0, 1)
        y_TH = super().forward(x_TH, experts[0].flatten())
        for segment, segment_experts in zip(self.segments.values(), experts[1:], strict=True):
            y_TH = y_TH + segment(x_TH, segment_experts.flatten())
        return y_TH.view_as(x_BSH)


class Attention(nn.Module):
    """Multi-head attention. The query layer's queries are of a table of positions, keys and values always of the hidden states."""

    def __init__(self, config: PanGuSigmaConfig, number: int):
        super().__init__()
        hidden = config.hidden_size
        self.query, self.key, self.value, self.output = (Conv1D(hidden, hidden) for _ in range(4))
        self.heads, self.number = config.num_attention_heads, number

    def forward(self, x_BSH: Tensor, query_BSH: Tensor, sees_BSK: Tensor, ids_BS: Tensor, cache: Any) -> Tensor:
        """Attend from query to x and to cached tokens; return [B, S, H]. sees: True where a token attends. ids: for the cache."""
        q, k, v = (
            cell(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for cell, source in ((self.query, query_BSH), (self.key, x_BSH), (self.value, x_BSH))
        )
        if cache is not None:
            # layer 0 also caches the ids, as digits appended to the keys: reordering beams and cropping the cache move them, too
            if self.number == 0:  # less PADDING (-1), so that digits are not negative and padding is 0
                digits = (ids_BS[:, None, :, None] - PADDING) // ids_BS.new_tensor(DIGITS) % 256
                k = torch.cat([k, digits.expand(-1, self.heads, -1, -1).to(k.dtype)], -1)
            k, v = cache.update(k, v, self.number)
            k = k[..., : q.shape[-1]]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=sees_BSK[:, None])
        return self.output(mixed.transpose(1, 2).flatten(2))


class Rows(nn.Module):
    """Rows of an entry that tokens find by their id, or by it and the id before. Rows that no token had in training are zeros."""

    def __init__(self, entry: dict[str, Any], met_rows: int, vocabulary: int):
        super().__init__()
        self.rows, self.own = entry["rows"], entry["kind"] == "own"
        self.register_buffer("tid2key", torch.zeros(vocabulary, dtype=torch.int32))
        self.register_buffer("before2key", torch.zeros(vocabulary + 1, dtype=torch.int32))
        self.register_buffer("keys", torch.arange(met_rows))  # placeholders; a folder has the keys, ascending
        self.weight = nn.Parameter(torch.zeros(met_rows, entry["width"]))

    def numbers(self, ids: Tensor, previous: Tensor, domain_B1: Tensor) -> Tensor:
        """Return the key of each token's row, [B, S]. previous: id before each token, V for none."""
        return (self.tid2key[ids].long() + self.before2key[previous]) % self.rows + domain_B1 * self.rows * self.own

    def forward(self, ids: Tensor, previous: Tensor, domain_B1: Tensor) -> Tensor:
        """Return the row of each token, [B, S, W]; zeros if it is not stored. Arguments: as in `numbers`."""
        key = self.numbers(ids, previous, domain_B1)
        position = torch.searchsorted(self.keys, key)
        is_stored = torch.searchsorted(self.keys, key, right=True) > position
        row_BSW = self.weight.new_zeros(*key.shape, self.weight.shape[1])
        row_BSW[is_stored] = self.weight[position[is_stored]]
        return row_BSW


class PanGuSigmaLayer(GradientCheckpointingLayer):
    """Transformer layer: x + row_scale · e, if there are rows e, x + attention(LN(x)), x + FFN(LN(x)). FFN: dense, or experts."""

    def __init__(self, config: PanGuSigmaConfig, number: int):
        super().__init__()
        is_routed = number >= config.num_dense_layers
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention = Attention(config, number)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.ffn = RoutedFFN(config) if is_routed else FFN(config, config.intermediate_size)
        if config.rows:
            self.row_scale = nn.Parameter(torch.full((1,), 0.1))

    def forward(
        self, x: Tensor, e: Any, query: Any, sees: Tensor, ids: Tensor, experts: Any, cache: Any = None
    ) -> Tensor:
        """Return the next hidden states [B, S, H]. e: rows, or None. query: of the query layer, else None. experts: [] if dense."""
        x = x if e is None else x + self.row_scale * e
        normalized = self.attention_norm(x)
        x = x + self.attention(normalized, normalized if query is None else query, sees, ids, cache)
        normalized = self.ffn_norm(x)
        return x + (self.ffn(normalized, experts) if experts else self.ffn(normalized))


class PanGuSigmaForCausalLM(PreTrainedModel, GenerationMixin):
    """PanGu-Σ that predicts the next token within its domain's embedding slot; all other logits are the lowest number.
    forward and generate take `domain`: a name, a number, or, for each sequence, one of them; `config.domain` if it is not given."""

    config_class = PanGuSigmaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("PanGuSigmaLayer",)
    _supports_sdpa = True

    def __init__(self, config: PanGuSigmaConfig):
        super().__init__(config)
        hidden, slots, by_id = config.hidden_size, len(config.embedding_slots), (len(config.domains), config.vocab_size)
        self.embedding = nn.Embedding(slots * config.slot_rows, hidden)
        self.positions = nn.Embedding(config.max_position_embeddings, hidden)
        self.query_positions = nn.Embedding(config.max_position_embeddings, hidden)
        self.layers = nn.ModuleList(PanGuSigmaLayer(config, number) for number in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(hidden, config.layer_norm_eps)
        rre, segments = config.num_hidden_layers - config.num_dense_layers, len(config.expert_segments)
        segment_axis = (segments,) if segments > 1 else ()
        # -1: without the tables of a folder every token is refused
        self.register_buffer("tid2row", torch.full((slots, config.vocab_size), -1, dtype=torch.int32))
        self.register_buffer("tid2eid", torch.zeros((rre, *segment_axis, *by_id), dtype=torch.int32))
        self.register_buffer("tid2eid_spread", torch.ones(by_id, dtype=torch.int32))
        if config.num_common_experts:
            self.register_buffer("tid2eid_common_spread", torch.ones(config.vocab_size, dtype=torch.int32))
        self.rows = nn.ModuleList(map(Rows, config.rows, config.rows_met, [config.vocab_size] * len(config.rows)))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def resize_token_embeddings(self, *_: Any, **__: Any) -> nn.Embedding:
        """Raise NotImplementedError: the rows of the word table belong to embedding slots."""
        raise NotImplementedError("the vocabulary is fixed, in embedding slots; `pangu-sigma inherit` changes it")

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, domain: Any = None, labels: Tensor | None = None,
        cache: Any = None, past_key_values: Any = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None, output_attentions: bool | None = None, return_dict: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple:  # fmt: skip
        """Return the logits of the token after each, [B, S, V], and with `labels` (-100: does not count) the loss.
        attention_mask: 0 for padding. cache, past_key_values: `DynamicCache` of the tokens before. logits_to_keep: last tokens."""
        if unusable := [name for name in ("inputs_embeds", "position_ids") if others.get(name) is not None]:
            raise ValueError(f"{unusable[0]} is not taken: experts and positions follow from input_ids; leave it out")
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise ValueError("output_attentions is not there: fused attention returns no weights; set it to False")
        cache = self._usable_cache(past_key_values if cache is None else cache, use_cache)
        domain_B1 = self._domains(domain, len(input_ids), input_ids.device)[:, None]
        words_BS = self._words(input_ids, domain_B1)  # first: it refuses ids that are in no table
        ids_BS, sees_BSK, positions_BS, previous_BS = self._texts(input_ids, attention_mask, cache)
        experts = self._experts(input_ids, domain_B1, positions_BS)
        entries_BSW = [entry(input_ids, previous_BS, domain_B1) for entry in self.rows]
        e_BSH = torch.cat(entries_BSW, -1) if entries_BSW else None
        x_BSH, query_BSH = self.embedding(words_BS) + self.positions(positions_BS), None
        states = [x_BSH]
        for number, layer in enumerate(self.layers):
            if number == len(self.layers) - 1:
                x_BSH, query_BSH = self.norm(x_BSH), self.query_positions(positions_BS)
            x_BSH = layer(x_BSH, e_BSH, query_BSH, sees_BSK, ids_BS, experts[number], cache=cache)
            states.append(x_BSH)
        predicting = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self._logits(x_BSH[:, predicting], domain_B1)
        loss = None if labels is None else self._loss(logits, labels, ids_BS, domain_B1, others)
        with_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        fields = {"loss": loss, "logits": logits, CACHE: cache, "hidden_states": tuple(states) if with_states else None}
        output = CausalLMOutputWithPast(**fields)
        return output.to_tuple() if return_dict is False else output

    def _usable_cache(self, cache: Any, use_cache: bool | None) -> Any:
        """Return the cache, or a new one if `use_cache`, by default in evaluation. Raises ValueError for another kind of cache."""
        if cache is not None and not isinstance(cache, DynamicCache):
            kind = type(cache).__name__
            raise ValueError(f"{kind} is not taken: this model takes a DynamicCache; leave cache_implementation out")
        is_checkpointed = self.training and self.layers[0].gradient_checkpointing
        if cache is None and not is_checkpointed and (not self.training if use_cache is None else use_cache):
            return DynamicCache(config=self.config)
        return cache

    def _loss(
        self, logits: Tensor, labels: Tensor, ids_BS: Tensor, domain_B1: Tensor, others: dict[str, Any]
    ) -> Tensor:
        """Return the mean loss. ids: PADDING where padded. Raises ValueError for a label that the domain's slot has no row for."""
        self._words(labels.masked_fill(labels < 0, self.config.eos_token_id), domain_B1)
        labels = labels.masked_fill(F.pad(ids_BS[:, :-1] == PADDING, (1, 0)), -100)  # padding predicts nothing
        count = {"num_items_in_batch": others["num_items_in_batch"]} if "num_items_in_batch" in others else {}
        return self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **count)

    def _domains(self, domain: Any, batch: int, device: torch.device) -> Tensor:
        """Return the domain numbers of all sequences, [B]. domain: as in `forward`. batch: B."""
        domain = self.config.domain if domain is None else domain
        items = domain.tolist() if isinstance(domain, Tensor) else domain
        items = items if isinstance(items, list | tuple) else [items] * batch
        if len(items) != batch:
            raise ValueError(f"domain has {len(items)} entries for {batch} sequences; give one for each or one for all")
        return torch.tensor([self.config.domain_number(item) for item in items], device=device)

    def _texts(self, ids_BS: Tensor, mask: Tensor | None, cache: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (ids, PADDING where padded [B, S]; True where a token sees another [B, S, K]; position of each token in its text
        [B, S]; id before each token in its text, V for none [B, S]). A text ends with <eot>. K: cached and new tokens."""
        new_BS, count = ids_BS, ids_BS.shape[1]
        if mask is not None:
            if mask.dim() != 2:
                raise ValueError(f"attention_mask has {mask.dim()} dimensions; give [batch, tokens], 0 for padding")
            new_BS = ids_BS.masked_fill(mask[:, -count:] == 0, PADDING)
        all_BK = new_BS
        if cache is not None and cache.get_seq_length():  # layer 0's keys end with the digits of ids
            digits = cache.layers[0].keys[:, 0, :, -len(DIGITS) :].to(new_BS)
            all_BK = torch.cat([(digits * new_BS.new_tensor(DIGITS)).sum(-1) + PADDING, new_BS], 1)
        ends = (all_BK == self.config.eos_token_id).long()
        text_BK = (ends.cumsum(1) - ends).masked_fill(all_BK == PADDING, -1)  # number of each token's text
        sees = (text_BK[:, -count:, None] == text_BK[:, None]).tril(all_BK.shape[1] - count)
        positions = (sees.sum(-1) - 1).masked_fill(new_BS == PADDING, 0)
        limit, longest = self.config.max_position_embeddings, positions.max() + 1
        if all_BK.shape[1] > limit and longest > limit:
            raise ValueError(f"a text has {longest} tokens, this model reads {limit}; cut it, or lower max_new_tokens")
        index_BK = torch.arange(all_BK.shape[1], device=all_BK.device).expand_as(all_BK)
        last_BK = index_BK.masked_fill(all_BK == PADDING, 0).cummax(1).values  # last one not padding
        previous = all_BK.gather(1, F.pad(last_BK, (1, -1)))[:, -count:]  # one to the right: up to the token before
        return new_BS, sees, positions, previous.masked_fill(positions == 0, self.config.vocab_size)

    def _words(self, ids: Tensor, domain_B1: Tensor) -> Tensor:
        """Return the index of each id in the word table. Raises ValueError for an id that the domain's slot has no row for."""
        if ((ids < 0) | (ids >= self.config.vocab_size)).any():
            wrong_id = int(ids[(ids < 0) | (ids >= self.config.vocab_size)][0])
            raise ValueError(f"token id {wrong_id} is not in the vocabulary, 0 … {self.config.vocab_size - 1}")
        slot_B1 = torch.tensor([entry["slot"] for entry in self.config.domains], device=ids.device)[domain_B1]
        rows = self.tid2row[slot_B1, ids]
        if (rows < 0).any():
            if (self.tid2row < 0).all():
                raise ValueError(
                    "this model has no tables, which from_config does not make; load a folder with from_pretrained"
                )
            name, wrong_id = self.config.domains[int(domain_B1[(rows < 0).any(1)][0])]["name"], int(ids[rows < 0][0])
            raise ValueError(
                f"token id {wrong_id} has no row in domain {name}: tokenizer and model are in different domains; set both "
                "tokenizer.domain and model.config.domain to that of the text"
            )
        return slot_B1 * self.config.slot_rows + rows

    def _experts(self, ids: Tensor, domain_B1: Tensor, positions: Tensor) -> list[list[Tensor]]:
        """Return for each layer, and each of its segments, the number of each token's expert, [B, S]; [] for dense layers."""
        kinds, common = self.config.expert_segments, self.config.num_common_experts
        own = self.config.num_experts_per_domain
        first, step = domain_B1 * own, positions % self.tid2eid_spread[domain_B1, ids]
        common_step = positions % self.tid2eid_common_spread[ids] if common else None

        def experts_of(kind: str, table_DV: Tensor) -> Tensor:
            expert = table_DV[domain_B1, ids]  # numbered over all domains
            return first + (expert - first + step) % own if kind == "own" else (expert + common_step) % common

        layers = self.tid2eid.flatten(0, -3).split(max(len(kinds), 1))  # of each layer a table [D, V] for each segment
        dense: list[list[Tensor]] = [[] for _ in range(self.config.num_dense_layers)]
        return dense + [[experts_of(kind, table) for kind, table in zip(kinds, layer, strict=True)] for layer in layers]

    def _logits(self, x_BSH: Tensor, domain_B1: Tensor) -> Tensor:
        """Return the logits [B, S, V] of all ids: those that a slot has no row for get the lowest number."""
        slots = [self.config.domains[number]["slot"] for number in domain_B1[:, 0].tolist()]
        if len(set(slots)) > 1:
            return torch.cat([self._logits(x_BSH[i : i + 1], domain_B1[i : i + 1]) for i in range(len(slots))])
        rows_V, first = self.tid2row[slots[0]], slots[0] * self.config.slot_rows
        logits = F.linear(x_BSH, self.embedding.weight[first : first + self.config.slot_rows])
        return logits.index_select(-1, rows_V.clamp(0)).masked_fill(rows_V < 0, torch.finfo(logits.dtype).min)
