"""A program of the peers' environment: PanGu-α in PyTorch by `pcl-pangu`'s own code, on the CPU.

python alpha_peer.py <pcl_pangu folder> write <folder> <ranks> <sizes as JSON>
    makes a model, saves it as megatron/checkpointing.py does, cuts it with tools/split_full_model_into_mp_model.py into
    <folder>/of_ranks, and writes the values of the whole one as <folder>/values.npz
python alpha_peer.py <pcl_pangu folder> answer <folder> <ranks> <sizes as JSON>
    joins the ranks of a checkpoint with tools/merge_mp_partitions.py if it has several, loads it into both of its networks, and
    writes what they answer to <folder>/texts.npy [texts, length] as <folder>/megatron.npy and <folder>/onnx.npy
python alpha_peer.py <pcl_pangu folder> answer_as_rank <folder> <rank> <sizes as JSON>
    is one of several processes that compute those texts together, each with its rank of the checkpoint, and writes the logits of
    its rows of the word table as <folder>/megatron_<rank>.npy
python alpha_peer.py <pcl_pangu folder> save_with_deepspeed <folder> <rank> <sizes as JSON>
    is one of several processes that train together with DeepSpeed: it takes its part of <folder>/values.npz, trains a step at the
    rate 0, and DeepSpeed's engine saves it in <folder>/saved
"""

import contextlib
import json
import os
import sys
import types
from argparse import Namespace
from datetime import timedelta
from pathlib import Path

VOCABULARY = 40_000


def import_megatron(folder, args):
    """The package, with stand-ins for what needs CUDA or is of training only, and with these arguments."""
    import torch

    for name in ("apex", "apex.multi_tensor_apply", "apex.optimizers", "amp_C", "apex.normalization"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["apex.multi_tensor_apply"].multi_tensor_applier = None
    sys.modules["apex.optimizers"].FusedAdam = None
    sys.modules["torch._six"] = types.SimpleNamespace(inf=float("inf"))
    sys.path.insert(0, str(folder / "model" / "panguAlpha_pytorch"))
    for name in ("megatron.tokenizer", "megatron.tokenizer.tokenizer"):  # jieba and sentencepiece are not there
        sys.modules[name] = types.ModuleType(name)
    sys.modules["megatron.tokenizer"].tokenizer = sys.modules["megatron.tokenizer.tokenizer"]
    sys.modules["megatron.tokenizer"].build_tokenizer = None
    import megatron.global_vars as global_vars

    global_vars._GLOBAL_ARGS = args
    torch.cuda.get_rng_state = torch.get_rng_state


def model_of(args, rank, ranks):
    """A model as a rank has it."""
    from megatron import mpu
    from megatron.model.gpt2_model import GPT2Model

    args.model_parallel_size = ranks
    mpu.initialize.set_model_parallel_world_size(ranks)
    mpu.initialize.set_model_parallel_rank(rank)
    return GPT2Model().half() if args.fp16 else GPT2Model()


def flat(state, prefix=""):
    """Values by dotted names."""
    import torch

    found = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            found[prefix + name] = value.detach().float().numpy()
        else:
            found |= flat(value, f"{prefix}{name}.")
    return found


def alone(args):
    """This process as the only one of Megatron's world."""
    import torch
    from megatron import mpu

    mpu.get_data_parallel_rank = lambda: 0
    mpu.get_model_parallel_rank = lambda: args.rank
    torch.distributed.get_rank = lambda: 0
    torch.distributed.barrier = lambda: None


def write(folder, ranks, args):
    import numpy as np
    import torch
    from megatron import checkpointing

    torch.manual_seed(0)
    whole = model_of(args, 0, 1)
    for parameter in whole.parameters():
        parameter.data.normal_()
    np.savez(folder / "values.npz", **flat(whole.state_dict_for_save_checkpoint()))
    alone(args)
    args.save, args.no_save_optim, args.no_save_rng = str(folder / "whole"), False, False
    optimizer = torch.optim.Adam(whole.parameters())
    sum(parameter.float().sum() for parameter in whole.parameters()).backward()
    optimizer.step()
    np.savez(folder / "values.npz", **flat(whole.state_dict_for_save_checkpoint()))
    checkpointing.save_checkpoint(3, whole, optimizer, None)
    for rank in range(ranks):
        part = part_of(whole, rank, ranks, args)
        file = folder / "of_ranks" / "iter_0007800" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        file.parent.mkdir(parents=True)
        torch.save({"model": part.state_dict_for_save_checkpoint(), "iteration": "iter_0007800"}, file)
    (folder / "of_ranks" / "latest_checkpointed_iteration.txt").write_text("0007800")


def part_of(whole, rank, ranks, args):
    """What a rank has of a model, cut by tools/split_full_model_into_mp_model.py."""
    import split_full_model_into_mp_model as tool

    tool.args = Namespace(num_mp_model=ranks)
    part = model_of(args, rank, ranks)
    tool.load_one_partition_model(part, whole, rank)
    return part


def loaded(folder, rank, args):
    """A rank of a checkpoint in Megatron's network."""
    import torch
    from megatron import checkpointing

    model = unset(model_of(args, rank, args.model_parallel_size))
    args.rank = rank
    alone(args)
    args.load, args.finetune, args.no_load_optim, args.no_load_rng = str(folder), False, True, True
    as_pickles_were_read(torch)
    assert checkpointing.load_checkpoint(model, None, None) == 1
    return model


def as_pickles_were_read(torch):
    """`torch.load` as it was when this code was written."""
    whole_load = torch.load
    torch.load = lambda *a, **b: whole_load(*a, **{**b, "weights_only": False})


def unset(network):
    """The network without values: what its loader passes over is not a number, and shows in the logits."""
    for parameter in network.parameters():
        parameter.data.fill_(float("nan"))
    return network.requires_grad_(False)


def answer(folder, ranks, args):
    import numpy as np

    texts = np.load(folder / "texts.npy")
    said = take_activation(folder, args)
    whole = joined(folder, ranks, args) if ranks > 1 else folder
    model = loaded(whole, 0, args)
    np.save(folder / "megatron.npy", megatron_logits(model, texts)[..., :VOCABULARY])
    np.save(folder / "onnx.npy", onnx_logits(model, said, args, texts))


def answer_as_rank(folder, rank, args):
    import numpy as np

    meet(folder, rank, args.model_parallel_size)
    take_activation(folder, args)
    np.save(folder / f"megatron_{rank}.npy", megatron_logits(loaded(folder, rank, args), np.load(folder / "texts.npy")))


def meet(folder, rank, ranks):
    """Become one of Megatron's tensor ranks, each a process."""
    import torch
    from megatron import mpu

    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", timedelta(minutes=5), ranks, rank)
    mpu.initialize.initialize_model_parallel(ranks)


def save_with_deepspeed(folder, rank, args):
    import numpy as np
    import torch
    from megatron import mpu

    ranks = args.model_parallel_size
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    import deepspeed

    whole, values = model_of(args, 0, 1), np.load(folder / "values.npz")
    torch.nn.Module.load_state_dict(whole, {name: torch.from_numpy(values[name]) for name in values.files})
    meet(folder, rank, ranks)
    # It refuses CPUs without products of float16; a sum of parameters is all that is computed here, which every CPU can do.
    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    engine, *_ = deepspeed.initialize(
        model=part_of(whole, rank, ranks, args),
        mpu=mpu,
        config={
            "train_batch_size": 1,
            "optimizer": {"type": "Adam", "params": {"lr": 0.0, "torch_adam": True}},
            "fp16": {"enabled": args.fp16},
            "zero_optimization": {"stage": args.zero_stage},
        },
        dist_init_required=False,
    )
    engine.backward(sum(parameter.float().sum() for parameter in engine.module.parameters()))
    engine.step()
    if args.nested:  # as Megatron-DeepSpeed does
        engine.module.state_dict = engine.module.state_dict_for_save_checkpoint
    engine.save_checkpoint(str(folder / "saved"), tag="global_step1")


def take_activation(folder, args):
    """The arguments that the checkpoint has. Its GELU becomes that of `args`; megatron/checkpointing.py compares the sizes."""
    import torch

    file = folder / "iter_0000001" / "mp_rank_00" / "model_optim_rng.pt"
    said = torch.load(file, map_location="cpu", weights_only=False)["args"]
    args.openai_gelu = said.openai_gelu
    return said


def joined(folder, ranks, args):
    """The checkpoint that tools/merge_mp_partitions.py makes of the ranks'. Its own values of half precision are not wanted."""
    import merge_mp_partitions as tool
    import torch
    from megatron.model.gpt2_model import GPT2Model

    def rebuild_tokenizer(args):
        multiple = args.make_vocab_size_divisible_by * args.model_parallel_size
        args.padded_vocab_size = -(-VOCABULARY // multiple) * multiple
        return Namespace(vocab_size=VOCABULARY)

    tool._parse_args, tool.rebuild_tokenizer = lambda extra_args_provider: args, rebuild_tokenizer
    tool.get_model = lambda model_type: unset(GPT2Model())
    args.model_type, args.mp_model_parallel_size, args.load = "Pangu", ranks, str(folder)
    as_pickles_were_read(torch)
    tool.main()
    args.model_parallel_size = 1
    rebuild_tokenizer(args)
    return folder / "merged"


def megatron_logits(model, texts):
    import torch
    from megatron import mpu

    torch.cuda.current_device = lambda: "cpu"
    mpu.get_cuda_rng_tracker = lambda: Namespace(fork=contextlib.nullcontext)
    length = texts.shape[1]
    unseen = torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)
    positions = torch.arange(length).expand(texts.shape)
    return model.eval()(torch.from_numpy(texts), positions, unseen).detach().numpy()


def onnx_logits(model, said, args, texts):
    """Logits of onnx_inference/pangu/model.py. Its loader knows the query layer's table by the name of PanGu-α Evolution, a later
    model, and passes it over without a word by that of PanGu-α; so that model's own code renames it."""
    import torch
    from megatron.model.alpha_enhanced_model import EnhancedModel
    from pangu.config import PanguConfig
    from pangu.model import Pangu
    from pangu.utils import load_weight

    evolution = unset(EnhancedModel())
    evolution.load_state_dict(model.state_dict_for_save_checkpoint())
    sizes = {**vars(said), "num_layers": said.num_layers + 1}
    network = unset(Pangu(PanguConfig(Namespace(model_config=sizes))))
    load_weight(network, {"model": evolution.state_dict_for_save_checkpoint()})
    with torch.no_grad():
        return network(torch.from_numpy(texts), None, None, None, None)[0].numpy()


def main():
    package, what, folder, number, sizes = sys.argv[1:]
    import torch

    args = Namespace(**json.loads(sizes))
    args.params_dtype = torch.half if args.fp16 else torch.float
    import_megatron(Path(package), args)
    sys.path.insert(0, str(Path(package) / "model" / "panguAlpha_pytorch" / "tools"))
    sys.path.insert(0, str(Path(package) / "onnx_inference"))
    for name in ("pcl_pangu", "pcl_pangu.model", "pcl_pangu.model.alpha"):  # they import what is of training only
        sys.modules[name] = types.ModuleType(name)
    sys.modules["pcl_pangu.model.alpha"].MODEL_CONFIG = None
    programs = (write, answer, answer_as_rank, save_with_deepspeed)
    {program.__name__: program for program in programs}[what](Path(folder), int(number), args)


if __name__ == "__main__":
    main()
