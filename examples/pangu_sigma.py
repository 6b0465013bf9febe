"""PanGu-Σ in one file: the method in MindSpore and NumPy, without the package. Read it before the code, top to bottom.

A small dense PanGu-α trains for some steps and then becomes sparse. Three ideas, each a section below:

    1 INHERIT  The FFNs of the upper layers become experts, each a copy of its layer's FFN at first, and each domain gets
               a copy of the word table. So at step 0 the sparse model computes what the dense model did, up to rounding.
    2 RRE      Random Routed Experts. The domain of a text picks a group of experts. A table, drawn at random once and
               never learned, maps the token id to one expert of the group. There is no gate: every route is known
               when the batch is read.
    3 ECSS     Expert Computation and Storage Separation. The host stores all experts and their Adam state. A step
               copies the experts of its batch to the device, and the host's CPU updates these experts and no others.

    python examples/pangu_sigma.py    # learns Python's manual, Python's source code, and sums: a minute on two cores

NumPy is the host, MindSpore is the device, and there is one. The package computes the same in the paper's form, with the
same names of weights, on many devices; it does not pad as `plan` does, nor copy and wait as `step` does. Shape suffixes:
B sequences, S tokens of a sequence, Z = S + 1, T = B·S, H hidden, F inner width of an FFN, n heads, d = H/n, V token ids,
D domains, N sparse layers, K stored experts of a layer, A experts for which the device has room, C rows of one of these.
"""

import math
import os
from pathlib import Path
from pydoc_data.topics import topics

import mindspore as ms
import numpy as np
from mindspore import Tensor, mutable, ops

# fmt: off
# here                                                          the paper (docs/paper.md says what it leaves open)
HIDDEN, HEADS, FFN = 64, 4, 256                                 # 5,120, 40, 20,480
DENSE_LAYERS, SPARSE_LAYERS = 2, 2                              # 32, 8
EXPERTS_PER_DOMAIN = 4                                          # 16, in each sparse layer
DOMAINS = ("manual", "code", "sums")                            # 40, such as Chinese, English, code
BATCH, LENGTH, DOMAINS_PER_STEP = 8, 64, 2                      # 512, 1,024, 4
VOCABULARY, EOT = 256, 0                                        # 40,000; here a token is a byte, 0 ends a document
PEAK_LR, END_LR, WARMUP, DECAY = 3e-3, 3e-4, 20, 180            # 5e-5, 2e-5, 5,000 steps, 180,000 steps
BETA1, BETA2, EPS_DENSE, EPS_EXPERTS = 0.8, 0.95, 1e-8, 1e-20   # the same; few tokens reach an expert
WEIGHT_DECAY, CLIP_NORM, INIT_STD = 0.01, 1.0, 0.02             # the same
# fmt: on
LAYERS = DENSE_LAYERS + SPARSE_LAYERS
STORED, ROOM = len(DOMAINS) * EXPERTS_PER_DOMAIN, DOMAINS_PER_STEP * EXPERTS_PER_DOMAIN  # K and A


# --- The network: PanGu-α, a GPT whose last layer takes its queries from a table of positions --------------------------


def init_dense(rng):
    """Return the weights of a dense model by name. It has one word table, [1, V, H]."""
    vector, square = (HIDDEN,), (HIDDEN, HIDDEN)
    layer = {"ffn.w1": (FFN, HIDDEN), "ffn.b1": (FFN,), "ffn.w2": (FFN, HIDDEN), "ffn.b2": vector}
    layer |= {f"{norm}.{part}": vector for norm in ("attention_norm", "ffn_norm") for part in ("gain", "bias")}
    for part in ("query", "key", "value", "output"):
        layer |= {f"attention.{part}.weight": square, f"attention.{part}.bias": vector}
    shapes = {"embedding": (1, VOCABULARY, HIDDEN), "positions": (LENGTH, HIDDEN), "query_positions": (LENGTH, HIDDEN)}
    shapes |= {"norm.gain": vector, "norm.bias": vector}
    shapes |= {f"layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in layer.items()}
    w = {}
    for name, shape in shapes.items():
        std = INIT_STD / (math.sqrt(2 * LAYERS) if name.endswith(("output.weight", "w2")) else 1)
        gain_or_bias = np.full(shape, name.endswith("gain"))  # gains are 1, biases 0
        w[name] = (gain_or_bias if len(shape) == 1 else rng.normal(0.0, std, shape)).astype(np.float32)
    return w


def layer_norm(w, name, x):
    """Return LayerNorm over the last axis, with gain and bias."""
    x = x - x.mean(-1, keep_dims=True)
    return x * ops.rsqrt((x * x).mean(-1, keep_dims=True) + 1e-5) * w[f"{name}.gain"] + w[f"{name}.bias"]


def attention(w, name, query_TH, x_TH, mask_B1SS):
    """Return multi-head attention [T, H]: queries are made of query_TH, keys and values of x_TH."""

    def linear(part, x):
        return ops.matmul(x, w[f"{name}.{part}.weight"]) + w[f"{name}.{part}.bias"]

    def heads(part, x):
        return linear(part, x).reshape(mask_B1SS.shape[0], -1, HEADS, HIDDEN // HEADS).transpose(0, 2, 1, 3)

    q_BnSd, k_BnSd, v_BnSd = heads("query", query_TH), heads("key", x_TH), heads("value", x_TH)
    scores_BnSS = ops.matmul(q_BnSd, k_BnSd.swapaxes(2, 3)) * (HIDDEN // HEADS) ** -0.5 + mask_B1SS
    mixed_BnSd = ops.matmul(ops.softmax(scores_BnSS, -1), v_BnSd)
    return linear("output", mixed_BnSd.transpose(0, 2, 1, 3).reshape(x_TH.shape))


def ffn(w, name, x):
    """Return the FFN of x: [T, H] with weights [F, H], or [A, C, H] A experts' weights [A, F, H]; ranks may cut F."""
    inner = ops.matmul(x, w[f"{name}.w1"].swapaxes(-1, -2)) + w[f"{name}.b1"].expand_dims(-2)
    inner = inner * ops.sigmoid(1.702 * inner)  # fast GELU
    return ops.matmul(inner, w[f"{name}.w2"]) + w[f"{name}.b2"].expand_dims(-2)


def loss(w, batch):
    """Return the mean loss of the next token, and each sequence's part of the mean, [B].

    The network is a function of its weights w, wherever they come from. If those of an FFN have an axis for experts, its
    layer is sparse.
    """
    ids_BS, positions_T = batch["ids_BS"], batch["positions_BS"].reshape(-1)
    words_BVH = ops.gather(w["embedding"], batch["slots_B"], 0)  # the dense model has one word table
    words_BSH = ops.gather(words_BVH, ids_BS, axis=1, batch_dims=1)
    x_TH = words_BSH.reshape(-1, HIDDEN) + ops.gather(w["positions"], positions_T, 0)
    for i in range(LAYERS):
        layer = f"layers.{i}"
        if i == LAYERS - 1:  # the query layer, with the final norm before it and a table of positions for queries
            x_TH = layer_norm(w, "norm", x_TH)
        normed_TH = layer_norm(w, f"{layer}.attention_norm", x_TH)
        query_TH = ops.gather(w["query_positions"], positions_T, 0) if i == LAYERS - 1 else normed_TH
        x_TH = x_TH + attention(w, f"{layer}.attention", query_TH, normed_TH, batch["mask_B1SS"])
        normed_TH = layer_norm(w, f"{layer}.ffn_norm", x_TH)
        if w[f"{layer}.ffn.w1"].ndim == 2:
            x_TH = x_TH + ffn(w, f"{layer}.ffn", normed_TH)
        else:  # the device has no top-k and no sort: it gathers rows as the loader has planned
            n = i - DENSE_LAYERS
            rows_ACH = ffn(w, f"{layer}.ffn", ops.gather(normed_TH, batch["order_NAC"][n], 0))
            x_TH = x_TH + ops.gather(rows_ACH.reshape(-1, HIDDEN), batch["inverse_NT"][n], 0)
    logits_BSV = ops.matmul(x_TH.reshape(words_BSH.shape), words_BVH.swapaxes(1, 2))
    log_p_BS1 = ops.gather_elements(ops.log_softmax(logits_BSV, -1), 2, batch["labels_BS"].expand_dims(2))
    losses_B = -(log_p_BS1.squeeze(2) * batch["weights_BS"]).sum(1)
    return losses_B.sum(), losses_B


# --- 1 INHERIT: FFNs become experts -----------------------------------------------------------------------------------

EXPERT_TENSORS = [[f"layers.{i}.ffn.{part}" for part in ("w1", "b1", "w2", "b2")] for i in range(DENSE_LAYERS, LAYERS)]


def inherit(parent):
    """Return the dense weights and the experts [K, …] of a sparse model, made of the weights of a dense model.

    No gate weighs an expert's output, and all experts of a layer are equal at first. So a token meets the same FFN as in
    the parent, whichever expert its table names. Experts grow apart because they see other tokens.
    """
    experts = {name: np.repeat(parent[name][None], STORED, axis=0) for names in EXPERT_TENSORS for name in names}
    dense = {name: array.copy() for name, array in parent.items() if name not in experts}
    dense["embedding"] = np.repeat(parent["embedding"], len(DOMAINS), axis=0)  # a copy for each domain
    return dense, experts


# --- 2 RRE: routing is data, made by the loader -----------------------------------------------------------------------


def draw_tables(rng):
    """Return the expert of each token id within its domain's group, [N, D, V]: as many ids for each, however frequent."""
    return np.array([[rng.permutation(VOCABULARY) % EXPERTS_PER_DOMAIN for _ in DOMAINS] for _ in range(SPARSE_LAYERS)])


def route(tables_NDV, ids_BS, domains_B):
    """Return the expert of each token in each sparse layer, 0 … K − 1, [N, B, S]. The next line decides it."""
    return domains_B[:, None] * EXPERTS_PER_DOMAIN + tables_NDV[:, domains_B[:, None], ids_BS]


def plan(tables_NDV, ids_BS, domains_B):
    """Return the active experts of each sparse layer, and the indices by which the device moves rows to them and back.

    order_NAC: token of each row of an expert; unused rows repeat token 0. inverse_NT: row of each token. A graph has fixed
    shapes, so each expert has rows for all tokens of a domain: none is dropped, and batches have equally many of each.
    """
    capacity = np.bincount(domains_B).max() * ids_BS.shape[1]
    experts_NT = route(tables_NDV, ids_BS, domains_B).reshape(len(tables_NDV), -1)
    order_NAC, inverse_NT = np.zeros((len(tables_NDV), ROOM, capacity), int), np.empty_like(experts_NT)
    active_N = [np.unique(experts_T) for experts_T in experts_NT]
    for n, active in enumerate(active_N):
        for a, expert in enumerate(active):
            tokens = np.flatnonzero(experts_NT[n] == expert)
            order_NAC[n, a, : len(tokens)] = tokens
            inverse_NT[n, tokens] = a * capacity + np.arange(len(tokens))
    return active_N, {"order_NAC": order_NAC, "inverse_NT": inverse_NT}


def make_batch(ids_BZ, domains_B, slots_D, tables_NDV=None):
    """Return the arrays of a batch by name, and the active experts of each sparse layer (none without tables).

    ids_BZ: S tokens of each sequence, and the next one. slots_D: number of each domain's word table, its slot.
    """
    ids_BS, index_S = ids_BZ[:, :-1], np.arange(ids_BZ.shape[1] - 1)
    after_eot_BS = np.pad(ids_BS[:, :-1] == EOT, ((0, 0), (1, 0)))
    documents_BS = after_eot_BS.cumsum(axis=1)
    masked_BSS = (documents_BS[:, :, None] != documents_BS[:, None, :]) | (index_S > index_S[:, None])
    counted_BS = (ids_BS != EOT).astype(np.float32)  # no loss for the first token of a document
    batch = {"ids_BS": ids_BS, "labels_BS": ids_BZ[:, 1:], "weights_BS": counted_BS / counted_BS.sum()}
    batch["positions_BS"] = index_S - np.maximum.accumulate(np.where(after_eot_BS, index_S, 0), axis=1)
    batch |= {"mask_B1SS": np.float32(-10_000) * masked_BSS[:, None], "slots_B": slots_D[domains_B]}
    if tables_NDV is None:
        return batch, []
    active_N, routes = plan(tables_NDV, ids_BS, domains_B)
    return batch | routes, active_N


# --- 3 ECSS: experts on the host, the active ones on the device -------------------------------------------------------

forward_backward = ms.jit(ms.value_and_grad(loss, has_aux=True))  # all that the device computes, as one compiled graph


def adam_state(weights, updates):
    """Return weights w, Adam's moments m and v, and t, the number of updates: an int of all dense weights, [N, K] of experts."""
    moments = {part: {name: np.zeros_like(array) for name, array in weights.items()} for part in "mv"}
    return {"w": weights, "t": updates} | moments


def fetch(stored, active_N):
    """Copy the active experts, [K, …] → [A, …]: the traffic does not grow with K. Places that stay zero have no gradient."""
    fetched = {}
    for n, active in enumerate(active_N):
        for name in EXPERT_TENSORS[n]:
            fetched[name] = np.zeros((ROOM, *stored[name].shape[1:]), np.float32)
            fetched[name][: len(active)] = stored[name][active]
    return fetched


def on_device(arrays):
    """Copy arrays to the device. `mutable` makes them inputs of a graph, not constants."""
    return mutable({name: Tensor(array) for name, array in arrays.items()})


def adamw(state, name, rows, g, t, lr, eps, decay):
    """Update rows of a weight and of its moments in place, by gradient g. rows: ... for all. t: updates, with this one."""
    w, m, v = (state[part][name] for part in "wmv")
    t = np.reshape(t, (-1, *[1] * (g.ndim - 1)))
    m[rows] = BETA1 * m[rows] + (1 - BETA1) * g
    v[rows] = BETA2 * v[rows] + (1 - BETA2) * g * g
    move = m[rows] / (1 - BETA1**t) / (np.sqrt(v[rows] / (1 - BETA2**t)) + eps)
    w[rows] -= lr * (move + decay * w[rows])


def learning_rate(t):
    """Return the rate of update t, counted from 1: a linear warm-up, half a cosine down, then constant."""
    cosine = (1 + math.cos(math.pi * min(max(t - WARMUP, 0) / DECAY, 1.0))) / 2
    return min(t / WARMUP, 1.0) * (END_LR + (PEAK_LR - END_LR) * cosine)


def step(dense, experts, batch, active_N):
    """Train on a batch in place, and return its losses [B] before the update. dense, experts: Adam states.

    An expert without a token in the batch is not active. Nothing of it is copied, and its weights, moments and number of
    updates keep their bits (lazy Adam).
    """
    fetched = fetch(experts["w"], active_N)  # host → device; it could be done ahead, because the routes are known
    (_, losses_B), grads = forward_backward(on_device(dense["w"] | fetched), on_device(batch))
    grads = {name: g.asnumpy() for name, g in grads.items()}  # device → host
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))  # of dense weights and active experts together
    clip = min(1.0, CLIP_NORM / (norm + 1e-12))
    dense["t"] += 1
    lr = learning_rate(dense["t"])
    for name, w in dense["w"].items():  # all of them, word tables of absent domains too; vectors do not decay
        adamw(dense, name, ..., clip * grads[name], dense["t"], lr, EPS_DENSE, WEIGHT_DECAY * (w.ndim > 1))
    for n, active in enumerate(active_N):
        experts["t"][n, active] += 1
        for name in EXPERT_TENSORS[n]:
            g = clip * grads[name][: len(active)]
            adamw(experts, name, active, g, experts["t"][n, active], lr, EPS_EXPERTS, WEIGHT_DECAY * (g.ndim > 2))
    return losses_B.asnumpy()


# --- Run: dense, inherit, sparse --------------------------------------------------------------------------------------


def main(steps=200):
    """Train a dense model, inherit, train the sparse model. Print losses by domain, and what ECSS moved."""
    rng = np.random.default_rng(0)
    code = [file.read_text("utf-8") for file in sorted(Path(os.__file__).parent.glob("*.py"))]
    sums = ["".join(f"{a} + {b} = {a + b}\n" for a, b in rng.integers(0, 100, (20, 2))) for _ in range(1_000)]
    ids_D = [np.frombuffer("\0".join(text).encode(), np.uint8).astype(int) for text in (topics.values(), code, sums)]
    samples_D = [ids[: len(ids) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1) for ids in ids_D]

    def draw():  # a step has as many samples of each of its domains
        domains, each = rng.permutation(len(DOMAINS))[:DOMAINS_PER_STEP], BATCH // DOMAINS_PER_STEP
        return np.concatenate([rng.choice(samples_D[d], each) for d in domains]), domains.repeat(each)

    def train(model, dense, experts, slots_D, tables_NDV=None):
        loss_D, weight_D = np.zeros((2, len(DOMAINS)))
        for t in range(1, steps + 1):
            ids_BZ, domains_B = draw()
            batch, active_N = make_batch(ids_BZ, domains_B, slots_D, tables_NDV)
            losses_B = step(dense, experts, batch, active_N)
            loss_D += np.bincount(domains_B, losses_B, len(DOMAINS))
            weight_D += np.bincount(domains_B, batch["weights_BS"].sum(axis=1), len(DOMAINS))
            if t % 50 == 0:  # of manual and code samples hardly repeat, so this is the loss of unseen text
                means = dict(zip(DOMAINS, (loss_D / weight_D).round(3).tolist(), strict=True))
                print(f"{model} model, loss of steps {t - 49} to {t}: {means}")
                loss_D[:], weight_D[:] = 0, 0

    parent, no_experts, one_slot = adam_state(init_dense(rng), 0), adam_state({}, None), np.zeros(len(DOMAINS), int)
    train("dense", parent, no_experts, one_slot)
    weights, stored = inherit(parent["w"])
    dense, experts = adam_state(weights, 0), adam_state(stored, np.zeros((SPARSE_LAYERS, STORED), int))
    (ids_BZ, domains_B), routing = draw(), (np.arange(len(DOMAINS)), draw_tables(rng))  # slots_D, tables_NDV
    print("the parent's loss on one batch:", step(parent, no_experts, *make_batch(ids_BZ, domains_B, one_slot)).sum())
    print("the sparse model's at step 0:  ", step(dense, experts, *make_batch(ids_BZ, domains_B, *routing)).sum())
    train("sparse", dense, experts, *routing)
    stored_mb = sum(array.nbytes for array in stored.values()) / 1e6
    moved_mb = stored_mb * experts["t"].mean() / (steps + 1)  # a step updates what it fetched
    print(f"the host stores {stored_mb:.1f} MB of experts and {2 * stored_mb:.1f} MB of their moments;")
    print(f"a step moves {moved_mb:.1f} MB of experts to the device, and as much of gradients to the host")


if __name__ == "__main__":
    main()
