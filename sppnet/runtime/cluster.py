"""Runs on clusters: which process is the first, whether SLURM started the processes that a run needs, its queue."""

import os
import re
import subprocess
from dataclasses import dataclass

from sppnet.runtime.names import counted
from sppnet.runtime.signals import write_to_stderr


def is_first_process() -> bool:
    """Whether this is rank zero, the process whose output the user sees. True if there is only one process.

    Reads the environment variables that torchrun, SLURM and Lightning set.
    """
    if rank := os.environ.get("RANK"):  # torchrun's
        return rank == "0"
    # In a SLURM job without srun, all processes that Lightning starts inherit the SLURM_PROCID of the first.
    return all(os.environ.get(name) in (None, "", "0") for name in ("SLURM_PROCID", "LOCAL_RANK"))


@dataclass(frozen=True)
class Tasks:
    """The processes ("tasks") that one `srun` has started."""

    count: int
    nodes: int
    per_node: str  # as SLURM writes it: "8", "8(x4)" for eight on each of four nodes, "3,1"

    def are(self, devices: int, nodes: int) -> bool:
        """Whether these are `devices` processes on each of `nodes` nodes."""
        per_node = f"{devices}" if nodes == 1 else f"{devices}(x{nodes})"
        return self == Tasks(devices * nodes, nodes, per_node)


def slurm_tasks() -> Tasks | None:
    """Returns the tasks that this process is one of.

    None if `srun` has started this process alone or not at all, as in a batch script without `srun`, and under
    torchrun, which starts processes itself.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_JOB_ID" not in os.environ:
        return None
    tasks = Tasks(
        count=int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")),
        nodes=int(os.environ.get("SLURM_STEP_NUM_NODES", "1")),
        per_node=os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""),
    )
    return tasks if tasks.count > 1 else None


def check_tasks(devices: int, nodes: int) -> None:
    """Raises ValueError if SLURM has started other processes than `devices` on each of `nodes` nodes.

    One process on one node is always right, as it starts the others itself. Of several wrong ones, all but the first
    exit with code 2 and no message.
    """
    if "SLURM_JOB_ID" not in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    tasks = slurm_tasks()
    if nodes == 1 if tasks is None else tasks.are(devices, nodes):
        return
    if not is_first_process():
        raise SystemExit(2)

    started = "1 process" if tasks is None else f"{tasks.count} processes on {counted(tasks.nodes, 'node')}"
    fitting = ""
    if tasks is not None and (match := re.fullmatch(r"(\d+)(\(x\d+\))?", tasks.per_node)):
        fitting = f"; for those set trainer.devices={match[1]} trainer.num_nodes={tasks.nodes}"
    raise ValueError(
        f"SLURM started {started}, and trainer.devices={devices} trainer.num_nodes={nodes} needs {devices * nodes}: "
        f"start them by srun --nodes={nodes} --ntasks-per-node={devices}{fitting}"
    )


def check_one_task() -> None:
    """Raises ValueError if SLURM has started a command several times that starts its further processes itself.

    Each would do all of the work, and write the same files. All but the first exit with code 2 and no message.
    """
    tasks = slurm_tasks()
    if tasks is None:
        return
    if not is_first_process():
        raise SystemExit(2)
    raise ValueError(
        f"SLURM started {tasks.count} processes, each of which would do all of the work: start one by srun --ntasks=1, "
        "and let it start the others by hardware.devices"
    )


def requeue_slurm_job() -> None:
    """Puts this SLURM job, or this task of a job array, back into the queue; does nothing outside of SLURM.

    Prints a failure instead of raising.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ and "SLURM_ARRAY_TASK_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        write_to_stderr(f"cannot requeue job {job}: {error}")
