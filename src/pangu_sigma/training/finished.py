"""What follows the last step of a run. A run that is there already is not built again, and MindSpore not loaded."""

from __future__ import annotations

import logging
from pathlib import Path

from pangu_sigma.checkpoint.checkpoint import CheckpointError, checkpoints, load_checkpoint, step_of
from pangu_sigma.checkpoint.run_folder import CHECKPOINTS, one_writer
from pangu_sigma.config import Config
from pangu_sigma.training.log.metrics import EmptyLogError, MetricsLog, read_metrics
from pangu_sigma.training.log.report import write_report
from pangu_sigma.training.log.summary import format_divergence
from pangu_sigma.training.start import StartOptions, changes_since_checkpoint, start_run

logger = logging.getLogger(__name__)


def conclude(folder: Path, config: Config) -> None:
    """Draw the report of a run at its last step, and warn if its losses diverged."""
    draw_report(folder)
    if diverged := format_divergence(read_metrics(folder), config.train.optimizer.peak_lr):
        logger.warning("%s", diverged)


def draw_report(folder: Path) -> None:
    """Draw the report of a finished run. A log without lines to draw is logged as a warning, and no error."""
    try:
        write_report(folder)
    except EmptyLogError as lost:
        logger.warning("no report is drawn: %s", lost)


def take_up_finished(folder: Path, config: Config, start_options: StartOptions) -> bool:
    """Take up a run that has no step to do: write what changed in its configuration, and what a crash took of its other files.

    Returns False, and changes nothing, for a run with steps to do, or whose newest checkpoint is damaged. Raises as `start_run`.
    """
    if start_options.start_over or start_options.from_step is not None:
        return False
    newest = next(iter(checkpoints(folder / CHECKPOINTS)), None)
    if newest is None or step_of(newest) < config.train.steps:
        return False
    try:
        checkpoint = load_checkpoint(newest)
    except CheckpointError:
        return False  # training says what is damaged, and goes on from the checkpoint before it
    step, options, names = checkpoint.step, config.train, [domain.name for domain in config.domains]
    with one_writer(folder):
        logger.info("nothing to do: %s is at step %d of %d; raise train.steps to train on", folder, step, options.steps)
        run = start_run(folder, config, options=start_options)
        with MetricsLog(folder, names, options.steps, options.log_interval, step, run.identity) as log:
            log.changed(step, changes_since_checkpoint(checkpoint, run))
        conclude(folder, config)
    return True
