"""Which processes Lightning starts, and how they find each other, where SLURM has started some."""

import os

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from sppnet.runtime.cluster import check_tasks, slurm_tasks


def process_plugins(devices: int, nodes: int) -> list[ClusterEnvironment]:
    """Returns plugins of a Trainer of `devices` processes on each of `nodes` machines; none outside of SLURM jobs.

    By itself Lightning decides by variables that say what a job asked for rather than what was started: it trained
    alone with the batch of one of two devices, or waited for processes that nobody had started.

    Raises ValueError if SLURM has started other processes than these.
    """
    check_tasks(devices, nodes)
    if slurm_tasks() is not None:
        return [_Tasks(auto_requeue=False)]  # SaveCheckpoints does it
    if "SLURM_JOB_ID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        return [LightningEnvironment()]  # which starts the others
    return []


class _Tasks(SLURMEnvironment):
    """The tasks of one `srun`, which `check_tasks` has compared with the devices.

    Lightning would refuse `srun --ntasks=2` because it has no number per node. And it would give all runs of a job the
    same port.
    """

    @staticmethod
    def _validate_srun_used() -> None:
        pass

    @staticmethod
    def _validate_srun_variables() -> None:
        pass

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        pass

    @property
    def main_port(self) -> int:
        step = int(os.environ["SLURM_STEP_ID"])
        port = 15000 + (int(os.environ["SLURM_JOB_ID"]) + 1009 * step) % 10000
        return int(os.environ.setdefault("MASTER_PORT", str(port)))
