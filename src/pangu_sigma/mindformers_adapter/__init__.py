"""PanGu-Σ under MindFormers: everything that `mindformers.Trainer` needs to train it from a YAML in MindFormers' style.

    words.py       the YAML's keys, in the project's words (no MindSpore)
    trainer.py     the task: gives each object what it needs
    model.py       configuration and network
    tokenizer.py   text to ids
    dataset.py     the project's batches, as columns
    step.py        optimizer and one-step cell: the project's own `TrainStep`
    checkpoint.py  a callback that writes the project's own checkpoints

The folder that a YAML names as output_dir is a run folder of this project: `pangu-sigma evaluate`, `generate` and `export` read it,
and a training goes on from its newest checkpoint, whichever of the two trainers wrote it.

    import mindformers, pangu_sigma.mindformers_adapter as adapter
    adapter.register()
    config = mindformers.MindFormerConfig("model_configs/mindformers/sigma_tiny.yaml")
    mindformers.build_context(config)
    mindformers.Trainer(args=config).train()

is what `python -m pangu_sigma.mindformers_adapter CONFIG` does; registration.py is for MindFormers' own run entry.
"""

from __future__ import annotations

from pangu_sigma.mindformers_import import quiet_mindformers


def register() -> None:
    """Put the classes into MindFormers' registry under their names, which are the YAML's `type`s."""
    with quiet_mindformers():
        from pangu_sigma.mindformers_adapter import checkpoint, dataset, model, step, tokenizer, trainer  # noqa: F401
