"""A program: PanGu-α in MindSpore by `pcl-pangu`'s own code, compiled as a rank of Ascend on a machine without an NPU.

python alpha_release.py <pcl_pangu folder> <folder> <rank> <sizes as JSON>
    compiles the step of training with the weights of <folder>/values.npz and the tables of <folder>/*_embedding.npy. MindSpore
    writes how it cut them as <folder>/strategy_<rank>.ckpt, and saves the rank's part of the weights as
    <folder>/filerted_<rank>.ckpt, without the tables, as PanGu-α was released.
"""

import json
import os
import sys
from argparse import Namespace
from pathlib import Path


def import_alpha(package):
    """`pangu_alpha.py` of the package, with what MindSpore 1.3 had and 2.9 has under another name or not at all."""
    import mindspore as ms
    import mindspore._checkparam as checks
    from mindspore.ops import operations

    class GELU(ms.nn.Cell):
        def __init__(self):
            super().__init__()
            self.gelu = operations.GeLU()

        def construct(self, x):
            return self.gelu(x)

    passed = staticmethod(lambda *given, **more: None)
    checks.Validator = type("Validator", (), {"check_subclass": passed, "check_value_type": passed})
    operations.TensorAdd, operations.GatherV2 = operations.Add, operations.Gather
    ms.nn.GELU = GELU
    sys.path.insert(0, str(package / "model" / "panguAlpha_mindspore" / "src"))
    import pangu_alpha

    for layer in (pangu_alpha.Decoder, pangu_alpha.QueryLayer):
        layer.key_past = layer.value_past = None  # an attribute that is missing was None
    return pangu_alpha


def join(folder, rank, sizes):
    """This process as a rank of a training, with the options of `train_alpha_ms13.py`."""
    import mindspore as ms
    from mindspore.communication import GlobalComm, init

    ms.set_context(mode=ms.GRAPH_MODE, device_target="Ascend")
    GlobalComm.CHECK_ENVS = False
    init()
    ms.set_auto_parallel_context(
        parallel_mode="semi_auto_parallel",
        device_num=sizes.data * sizes.tensor,
        global_rank=rank,
        gradients_mean=False,
        full_batch=True,
        enable_parallel_optimizer=sizes.stretches > 1,
        # MindSpore 1.3 had no threshold
        parallel_optimizer_config={"parallel_optimizer_threshold": 0, "optimizer_weight_shard_size": sizes.stretches},
        strategy_ckpt_save_file=str(folder / f"strategy_{rank}.ckpt"),
    )


def network(folder, alpha, sizes):
    """The network with the weights of values.npz."""
    import mindspore as ms
    import numpy as np
    from pangu_alpha_config import PANGUALPHAConfig

    config = PANGUALPHAConfig(
        sizes.data,
        sizes.tensor,
        batch_size=sizes.data,
        seq_length=sizes.length,
        vocab_size=sizes.words,
        embedding_size=sizes.hidden,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        dropout_rate=0.0,
        stage_num=1,
        load_ckpt_path=str(folder),
    )
    whole = alpha.PanguAlpha(config)
    values = np.load(folder / "values.npz")
    weights = {p.name: p for p in whole.trainable_params() if "embedding" not in p.name}
    assert set(weights) == set(values), set(weights) ^ set(values)
    for name, parameter in weights.items():
        assert parameter.shape == values[name].shape
        parameter.set_data(ms.Tensor(values[name].astype(np.float32)))
    return whole


def compile_step(whole, sizes):
    """Compile a step of training: MindSpore cuts the parameters to what the rank has."""
    import mindspore as ms
    import numpy as np
    from mindspore import ops

    class Loss(ms.nn.Cell):
        def __init__(self):
            super().__init__(auto_prefix=False)
            self.network, self.sum = whole, ops.ReduceSum().shard(((sizes.data, 1),))

        def construct(self, *given):
            return self.sum(self.network(*given))

    batch, length = sizes.data, sizes.length
    ids, positions = np.zeros((batch, length), np.int32), np.tile(np.arange(length, dtype=np.int32), (batch, 1))
    seen = np.tile(np.tril(np.ones((length, length), np.float16)), (batch, 1, 1))
    step = ms.nn.TrainOneStepCell(Loss(), ms.nn.AdamWeightDecay(whole.trainable_params()))
    step.set_train()
    step.compile(*map(ms.Tensor, (ids, np.ones((batch, length), np.float32), positions, seen)))


def main():
    package, folder, rank, given = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    sizes = Namespace(**json.loads(given))
    import mindspore as ms

    alpha = import_alpha(package)
    join(folder, rank, sizes)
    whole = network(folder, alpha, sizes)
    compile_step(whole, sizes)
    file = folder / f"filerted_{rank}.ckpt"
    ms.save_checkpoint(whole, str(file), integrated_save=False, choice_func=lambda name: "embedding" not in name)
    sys.stdout.flush()
    os._exit(0)  # unloading the stand-ins for CANN would crash


if __name__ == "__main__":
    main()
