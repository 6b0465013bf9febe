"""Check that a configuration can train on CPUs (step.py). Pure Python, so that an error comes before MindSpore is loaded."""

from __future__ import annotations

from pangu_sigma.config import Config, ConfigError


def check_cpu(config: Config) -> None:
    """Raise ConfigError for the first key that needs Ascend."""
    parallel = config.parallel
    for key, value, allowed, what in (
        ("train.compute_dtype", config.train.compute_dtype, ("float32", "float16"), "multiplies no bfloat16"),
        ("parallel.tensor", parallel.tensor, (1,), "shares no matrices"),
        ("parallel.stages", parallel.stages, (1,), "cuts no network into stages"),
    ):
        if value not in allowed:
            raise ConfigError(f"{key}={value} needs Ascend: MindSpore {what} on the CPU; set it to {allowed[0]}")
