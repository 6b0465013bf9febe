"""Health of a run: skipped steps, loss spikes, values that are not finite, and the decision to stop.

It depends only on numbers that are equal on all ranks, the summed losses and whether the step was applied, so that all ranks decide
the same. Shape suffixes: N segments of the RRE layers, A active experts, M blocks, D domains.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pangu_sigma.checkpoint.checkpoint import way_on
from pangu_sigma.checkpoint.not_finite import NotFinite, describe, find_not_finite
from pangu_sigma.checkpoint.parts import EXPERTS, Part, SavedArray
from pangu_sigma.errors import UserError
from pangu_sigma.sections import SpikesConfig, TrainConfig
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.log.metrics import MetricsLog, NoLog

if TYPE_CHECKING:
    from pangu_sigma.training.backend import TrainingSetup

logger = logging.getLogger(__name__)

LEAST_DEVIATION = 0.01
"""Minimum standard deviation of a loss in its spike limit, as a fraction of its mean: a loss that hardly varies has no spikes."""


class UnhealthyRun(UserError, RuntimeError):
    """Raised to stop a run that cannot recover. The message names the problem, the last healthy checkpoint and the fix."""


@dataclass(frozen=True)
class Spike:
    """Loss spike: a step in which the loss of a domain is above its limit.

    loss, mean, limit: nats per token; mean is the running mean, and like the limit it is from before the step. samples: hash of the
    batch (`Batch.digest`). skipped: True if the step updated nothing.
    """

    step: int
    domain: str
    loss: float
    mean: float
    limit: float
    samples: str
    skipped: bool


@dataclass
class DomainHealth:
    """Health of a domain: its skipped steps, and the running mean and variance of its loss.

    skipped: number of the domain's steps that were skipped since its last applied one. seen: number of losses in the mean.
    """

    skipped: int = 0
    seen: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def limit(self, options: SpikesConfig) -> float:
        """Return the loss above which a step is a spike; infinity for the first options.window losses, or without detection."""
        if options.factor is None or self.seen < options.window:
            return math.inf
        deviation = max(math.sqrt(self.variance), LEAST_DEVIATION * self.mean)
        return self.mean + options.factor * deviation

    def take(self, loss: float, options: SpikesConfig) -> None:
        """Update mean and variance with a step's loss. The first options.window losses have equal weights, later ones 1 / window. A
        loss above `limit` counts as `limit`: one spike changes little, and a loss that stays high is soon below the limit."""
        loss = min(loss, self.limit(options))
        self.seen += 1
        weight = 1.0 / min(self.seen, options.window)
        difference = loss - self.mean
        self.mean += weight * difference
        self.variance = (1.0 - weight) * (self.variance + weight * difference * difference)


class Health:
    """Health monitor of a training run. `spikes`, `stuck_domain` and `has_nonfinite_loss` are findings about the last step."""

    def __init__(self, options: TrainConfig, domains: list[str], state: dict[str, Any] | None = None):
        """state: earlier result of `state`; None for a new run. A domain that is missing in it begins anew."""
        self.options = options
        states = (state or {}).get("domains", {})
        self.domains = {name: DomainHealth(**states.get(name, {})) for name in domains}
        self.spikes: list[Spike] = []
        self.stuck_domain: str | None = None
        """Domain of which train.max_skipped_steps steps in a row were skipped; None if there is none."""
        self.has_nonfinite_loss = False
        """True if a loss was not finite, which may be due to a weight."""

    @property
    def needs_check(self) -> bool:
        """True if the last step gave a reason to check weights and moments."""
        return self.has_nonfinite_loss or self.stuck_domain is not None

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, as plain data."""
        return {"domains": {name: asdict(domain) for name, domain in self.domains.items()}}

    def limits(self, domains_M: np.ndarray, weight_M: np.ndarray) -> np.ndarray:
        """Return the weighted loss of each domain above which a batch is a spike, float32 [D]; infinity for absent domains.

        domains_M, weight_M: domain of each block of the batch, and weight of the block in the loss.
        """
        weight_D = np.bincount(domains_M, weight_M, minlength=len(self.domains))
        limits = [domain.limit(self.options.spikes) for domain in self.domains.values()]
        pairs = zip(limits, weight_D, strict=True)
        return np.array([limit * weight if weight > 0 else math.inf for limit, weight in pairs], np.float32)

    def observe(
        self, step: int, losses: dict[str, float], samples: str, skipped: bool, has_spike: bool = False
    ) -> None:
        """Update the health after a step.

        losses: loss of each domain in its batch, in nats per token. samples: hash of the batch (`Batch.digest`). skipped: True if
        the step updated nothing. has_spike: True if the step itself found a spike and skipped the batch for it.
        """
        options = self.options.spikes
        self.spikes, self.stuck_domain, self.has_nonfinite_loss = [], None, False
        limits = {name: self.domains[name].limit(options) for name in losses}
        spike_domains = [name for name, loss in losses.items() if loss > limits[name]]
        if has_spike and not spike_domains and limits:
            # the step rounds its losses otherwise: the loss that is nearest to its limit was the spike
            spike_domains = [max(losses, key=lambda name: losses[name] / limits[name])]
        for name, loss in losses.items():
            domain = self.domains[name]
            domain.skipped = domain.skipped + 1 if skipped else 0
            if domain.skipped >= self.options.max_skipped_steps:
                self.stuck_domain = self.stuck_domain or name
            if not math.isfinite(loss):
                self.has_nonfinite_loss = True
                continue
            if name in spike_domains:
                self.spikes.append(Spike(step, name, loss, domain.mean, limits[name], samples, skipped))
            domain.take(loss, options)


def unhealthy_arrays(setup: TrainingSetup, active_A: Sequence[np.ndarray] | None = None) -> list[NotFinite]:
    """Find values that are not finite in this rank's dense parameters, experts and Adam moments; on rank 0 also in the rows of
    `model.rows` that tokens met, which all ranks have. active_A: store rows of the experts to check, as in `Batch.active_A`; None
    checks all experts of the rank."""
    from pangu_sigma.checkpoint.state import row_files  # with MindSpore, which a setup has loaded

    setup.store.settle()
    dense_files = {
        shard: {name: SavedArray.whole(parameter.asnumpy()) for name, parameter in parameters.items()}
        for shard, parameters in setup.shards.items()
        if not shard.startswith(EXPERTS)
    }
    not_finite = find_not_finite(dense_files)
    for experts in setup.store.segments:
        segment, arrays = experts.segment, dict[str, SavedArray]()
        for name, parameter in experts.named.items():
            values, ids = parameter.asnumpy(), segment.held
            if active_A is not None:
                rows = active_A[segment.number]
                rows = np.unique(rows[rows < len(values)])  # an unused entry is one past the last row
                values, ids = values[rows], ids[rows]
            if len(ids):
                arrays[name] = SavedArray(Part.of_rows((segment.experts, *values.shape[1:]), ids), values)
        not_finite += find_not_finite({f"{EXPERTS}{segment.number}": arrays})
        setup.store.tier.release()  # experts may be in files
    return not_finite + find_not_finite(row_files(setup.store.rows, setup.ranks))


def check_health(
    health: Health,
    setup: TrainingSetup,
    run: StoredRun,
    step: int,
    active_A: Sequence[np.ndarray],
    log: MetricsLog | NoLog,
) -> None:
    """Check the health after a step: log its spikes, look for values that are not finite, and stop an unhealthy run.

    After a loss that is not finite, the dense parameters, the experts of the step (active_A, as `Batch.active_A`) and all rows are
    checked, with their Adam moments. If a domain is stuck, which is too many skipped steps in a row, all experts are checked. The
    results are logged. Raises UnhealthyRun, on all ranks, if any rank has values that are not finite, or a domain is stuck.
    """
    for spike in health.spikes:
        log.write("spike", **asdict(spike))
        if setup.ranks.first:
            logger.warning("%s", _warning_of(spike))
    if not health.needs_check:
        return
    not_finite = unhealthy_arrays(setup, active_A if health.stuck_domain is None else None)
    log.write("unhealthy", step=step, tensors=[asdict(array) for array in not_finite])
    rank_texts = setup.ranks.texts("\n".join(describe(not_finite, run.identity.config)))
    # replicas have the same lines
    lines = dict.fromkeys(line for text in rank_texts for line in text.splitlines())
    if lines:
        texts = "\n  ".join(lines)
        raise UnhealthyRun(
            f"step {step}: values that are not finite in\n  {texts}\nNo step that uses them can change anything, so the run stops. "
            f"{way_on(run.checkpoints, setup.ranks)} If it comes back, lower train.optimizer.peak_lr, or leave such batches out "
            "with train.spikes.skip=true."
        )
    if (domain := health.stuck_domain) is not None:
        scale = float(setup.step.scale.value.asnumpy())
        raise UnhealthyRun(
            f"step {step}: the last {health.domains[domain].skipped} steps with domain {domain} were skipped, which is "
            f"train.max_skipped_steps; all weights and moments are finite, the loss scale is {scale:g}. "
            f"{way_on(run.checkpoints, setup.ranks)} Lower train.optimizer.peak_lr, or in float16 train.loss_scale.initial if "
            "the run has just begun, or raise train.spikes.factor if they were spikes that train.spikes.skip left out."
        )


def _warning_of(spike: Spike) -> str:
    """Return the text of the warning of a spike: the domain, its loss and limit, the batch, and whether the batch was skipped."""
    outcome = "skipped, it changed nothing"
    if not spike.skipped:
        outcome = "trained on all the same; train.spikes.skip=true leaves such batches out"
    return (
        f"step {spike.step}: the loss of domain {spike.domain} is {spike.loss:.3f}, above {spike.limit:.3f}, its limit at a "
        f"running mean of {spike.mean:.3f} (train.spikes.factor); samples {spike.samples}; {outcome}"
    )
