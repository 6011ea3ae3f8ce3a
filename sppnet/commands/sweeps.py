"""Sweeps (-m): checks all jobs before the first one runs."""

import importlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from sppnet.commands.configs import check_experiments
from sppnet.commands.errors import configuration_errors, one_line, one_line_errors
from sppnet.commands.settings import resolved


def in_sweep() -> bool:
    """Whether this job is one of several (-m)."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


class SweepCheck(Callback):
    """Checks all jobs of a sweep before the first one runs. Configured as a callback of Hydra.

    Only for Hydra's basic sweeper, which lists its jobs. Others, such as Optuna's, choose each job by the results of
    those before.

    Args:
        command: the module whose `check` takes the configuration of a job, and raises what is wrong with it.
    """

    def __init__(self, command: str) -> None:
        self.command = command

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exits with one line if a job is wrong. Hydra calls this before a sweep."""
        if not config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
            return
        try:
            with one_line_errors():
                check_jobs(config, str(kwargs["config_name"]), importlib.import_module(self.command).check)
        except Exception as error:
            traceback.print_exception(error)  # because Hydra only warns of errors in a callback, and continues
            sys.exit(1)


def check_jobs(config: DictConfig, config_name: str, check: Callable[[DictConfig], None]) -> None:
    """Composes and checks every job of a sweep. Raises ValueError naming the overrides of the first wrong one."""
    words = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    words += config.hydra.overrides.task
    overrides = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(words)
    jobs = [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]
    if not jobs:
        raise ValueError(f"{' '.join(words)}: a sweep of no jobs; a pattern or range in it matches nothing")

    for number, job in enumerate(jobs, start=1):
        try:
            with configuration_errors():
                check_experiments(config_name, job)
                check(resolved(compose(config_name, list(job))))
        except Exception as error:
            raise ValueError(f"{one_line(error)} (job {number} of {len(jobs)}: {' '.join(job)})") from error
