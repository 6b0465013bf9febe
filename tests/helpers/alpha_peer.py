"""A program of the peers' environment: PanGu-α in PyTorch by `pcl-pangu`'s own code, on the CPU.

python alpha_peer.py <pcl_pangu folder> write <folder> <ranks> <sizes as JSON>
    makes a model, saves it as megatron/checkpointing.py does, cuts it with tools/split_full_model_into_mp_model.py into
    <folder>/of_ranks, and writes the values of the whole one as <folder>/values.npz
python alpha_peer.py <pcl_pangu folder> read <folder> <rank> <sizes as JSON>
    loads a rank of a checkpoint with megatron/checkpointing.py, and writes its values as <folder>/values_<rank>.npz
"""

import json
import sys
import types
from argparse import Namespace
from pathlib import Path


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
    sys.path.insert(0, str(folder))
    import split_full_model_into_mp_model as tool

    tool.args = Namespace(num_mp_model=ranks)
    for rank in range(ranks):
        part = model_of(args, rank, ranks)
        tool.load_one_partition_model(part, whole, rank)
        file = folder / "of_ranks" / "iter_0007800" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        file.parent.mkdir(parents=True)
        torch.save({"model": part.state_dict_for_save_checkpoint(), "iteration": "iter_0007800"}, file)
    (folder / "of_ranks" / "latest_checkpointed_iteration.txt").write_text("0007800")
    args.model_parallel_size = 1
    torch.save(
        {"model": whole.state_dict_for_save_checkpoint(), "args": args},
        folder / "older.pt",
        _use_new_zipfile_serialization=False,
    )


def read(folder, rank, args):
    import numpy as np
    import torch
    from megatron import checkpointing

    model = model_of(args, rank, args.model_parallel_size)
    args.rank = rank
    alone(args)
    args.load, args.finetune, args.no_load_optim, args.no_load_rng = str(folder), False, True, True
    whole_load = torch.load
    torch.load = lambda *a, **b: whole_load(*a, **b, weights_only=False)  # as it was when this code was written
    assert checkpointing.load_checkpoint(model, None, None) == 1
    np.savez(folder / f"values_{rank}.npz", **flat(model.state_dict_for_save_checkpoint()))


def main():
    package, what, folder, number, sizes = sys.argv[1:]
    import torch

    args = Namespace(**json.loads(sizes))
    args.params_dtype = torch.half if args.fp16 else torch.float
    import_megatron(Path(package), args)
    sys.path.insert(0, str(Path(package) / "model" / "panguAlpha_pytorch" / "tools"))
    {"write": write, "read": read}[what](Path(folder), int(number), args)


if __name__ == "__main__":
    main()
