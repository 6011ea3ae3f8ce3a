"""Runs the commands of clusters for real: `slurm` starts a SLURM of one node on this machine, and trains in its jobs.

Jobs are preempted, requeued and killed, and their outcome is compared bit for bit with that of undisturbed training.
"""

import argparse
import importlib.util
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from one_node_slurm import (
    BETWEEN_LOOKS,
    CORES,
    LIMIT,
    PARTITION,
    Job,
    asked,
    missing_programs,
    one_node_slurm,
    submitted,
)
from stress import SMALL, kill_group, outcome

SCRIPTS = Path(__file__).resolve().parent
TINY = [*SMALL, *("recipe=fast", "recipe.warmup_epochs=1", "trainer.workers=1", "trainer.save_every_minutes=null")]
TWO = ["trainer.strategy=ddp", "trainer.devices=2"]
ON_TWO = ["srun", "--ntasks=2"]


class CheckError(Exception):
    """A check saw something else than it should have."""


def main() -> None:
    """Runs the command; exits with 1 if a check failed, with 2 if SLURM is not installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cluster", choices=["slurm"])
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), help="these checks (default: all)")
    arguments = parser.parse_args()
    if missing := missing_programs():
        print(f"error: {', '.join(missing)}: not installed; on Debian: apt-get install slurm-wlm munge")
        sys.exit(2)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the daemons have to be stopped then too
    try:
        with tempfile.TemporaryDirectory() as folder, one_node_slurm(Path(folder)):
            print(f"{asked('sinfo', '--version')}: 1 node, {CORES} cores", flush=True)
            runs = Runs(Path(folder) / "runs")
            failed = sum(not passes(name, runs) for name in arguments.only or CHECKS)
    except KeyboardInterrupt:
        print("interrupted; SLURM is stopped")
        sys.exit(130)
    sys.exit(1 if failed else 0)


def passes(name: str, runs: "Runs") -> bool:
    """Runs a check, prints what it saw, and returns whether that was right."""
    began, right = time.monotonic(), True
    try:
        seen = CHECKS[name](runs)
    except (CheckError, OSError, subprocess.SubprocessError) as error:
        seen, right = f"FAILED: {error}", False
    print(f"{name}: {seen} ({time.monotonic() - began:.0f} s)", flush=True)
    return right


class Runs:
    """Runs of training in a folder, started in many ways.

    Args:
        folder: is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._undisturbed = folder, dict[int, tuple[Any, ...]]()
        folder.mkdir()

    def command(self, run: str, *overrides: str) -> list[str]:
        """Returns the command that trains a run."""
        own = [f"data.root={self.folder / 'shapes'}", f"run={self.folder / run}"]
        return [sys.executable, str(SCRIPTS / "train.py"), *TINY, *overrides, *own]

    def undisturbed(self, processes: int) -> tuple[Any, ...]:
        """Returns the outcome of training without SLURM, on one device or on two."""
        if processes not in self._undisturbed:
            run = f"undisturbed{processes}"
            succeeded(self.command(run, *(TWO if processes == 2 else ["trainer.devices=1"])))
            self._undisturbed[processes] = self.outcome(run)
        return self._undisturbed[processes]

    def outcome(self, run: str) -> tuple[Any, ...]:
        """Returns what must not depend on how a run was started and what disturbed it."""
        if not (self.folder / run / "result.json").is_file():
            raise CheckError(f"{run} has no result")
        return outcome(self.folder / run)

    def expect_same(self, run: str, processes: int) -> None:
        """Raises CheckError if a run ended otherwise than the undisturbed one."""
        if self.outcome(run) != self.undisturbed(processes):
            raise CheckError(f"{run} ended otherwise than the undisturbed run")


def succeeded(command: list[str]) -> str:
    """Returns the output of a command. Raises CheckError if it fails."""
    done = finished(command)
    if done.returncode:
        raise CheckError(
            f"{shlex.join(command[:3])} ended with code {done.returncode}: {(done.stderr or done.stdout)[-1000:]}"
        )
    return done.stdout


def finished(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Runs a command until it ends, for LIMIT seconds at most. Ends every process that it started."""
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            output, errors = process.communicate(timeout=LIMIT)
        finally:
            kill_group(process)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def check_two_tasks(runs: Runs) -> str:
    """Trains in two tasks of srun, and in a batch script without srun, where Lightning starts the second process."""
    succeeded([*ON_TWO, *runs.command("tasks", *TWO)])
    runs.expect_same("tasks", 2)
    job = submitted(runs.folder, "script", runs.command("script", *TWO))
    job.wait_until_ended()
    runs.expect_same("script", 2)
    return "srun --ntasks=2 and a batch script without srun: the same weights as without SLURM, bit for bit"


def check_mistakes(runs: Runs) -> str:
    """Starts two tasks of a run for one device, and one run twice at once."""
    done = finished([*ON_TWO, *runs.command("mistake", "trainer.devices=1")])
    lines = [line for line in done.stderr.splitlines() if not line.startswith("srun:")]
    if done.returncode != 2 or len(lines) != 1 or "SLURM started 2 processes" not in lines[0]:
        raise CheckError(f"two tasks for one device ended with code {done.returncode}: {done.stderr[-1000:]}")
    if (runs.folder / "mistake").exists():
        raise CheckError("two tasks for one device left a run directory")

    command = runs.command("once", "trainer.devices=1", "recipe.epochs=1000")
    job = submitted(runs.folder, "once", ["srun", *command])
    job.wait_for("epoch +1/")
    done = finished(["srun", *command])
    asked("scancel", job.number)
    job.wait_until_ended()
    if done.returncode != 2 or "trains here; wait for it" not in done.stderr:
        raise CheckError(f"the same run twice at once ended with code {done.returncode}: {done.stderr[-1000:]}")
    return "two tasks for one device, and one run in two jobs: one line each, exit code 2"


def check_disturbed(runs: Runs, processes: int) -> str:
    """Sends a job SIGUSR1, requeues it, kills it and submits it again."""
    name = f"disturbed{processes}"
    start = ["srun", f"--ntasks={processes}"]
    command = [*start, *runs.command(name, *(TWO if processes == 2 else ["trainer.devices=1"]))]
    tasks = f"--ntasks={processes}"
    job = submitted(runs.folder, name, command, tasks)
    job.wait_for(r"epoch 2/")
    asked("scancel", "--signal=USR1", job.number)
    job.wait_for(r"resuming from .*(?s:.*)epoch \d+/")
    asked("scontrol", "requeue", job.number)
    job.wait_for(r"resuming from", times=2)
    job.wait_for(r"resuming from (?s:.*)resuming from (?s:.*)epoch \d+/")
    asked("scancel", "--signal=KILL", job.number)
    job.wait_until_ended()
    restarts = job.shown("Restarts")
    again = submitted(runs.folder, name, command, tasks)
    again.wait_until_ended()

    resumed = again.text().count("resuming from")
    if restarts != "2" or resumed != 3:
        raise CheckError(f"{restarts} restarts and {resumed} resumes, expected 2 and 3: {again.text()[-2000:]}")
    runs.expect_same(name, processes)
    return "SIGUSR1, scontrol requeue, SIGKILL and submitted again: resumed 3 times, the same weights bit for bit"


def check_array(runs: Runs) -> str:
    """Sends one task of an array SIGUSR1, for which SLURM has another number than the array's."""
    command = runs.command("array$SLURM_ARRAY_TASK_ID", "trainer.devices=1", "seed=$SLURM_ARRAY_TASK_ID")
    words = shlex.join(command).replace("'", '"')  # for bash to put the number in
    array = submitted(runs.folder, "array%a", ["bash", "-c", f"srun {words}"], "--array=0-1")
    first, second = (Job(f"{array.number}_{index}", runs.folder / f"array{index}.out") for index in range(2))
    first.wait_for("epoch 2/")
    asked("scancel", "--signal=USR1", first.number)
    for one in (first, second):
        one.wait_until_ended()
    restarts = [one.shown("Restarts") for one in (first, second)]
    if restarts != ["1", "0"]:
        raise CheckError(f"{' and '.join(restarts)} restarts of the tasks, expected 1 and 0: {first.text()[-1000:]}")
    runs.expect_same("array0", 1)
    runs.outcome("array1")
    return "SIGUSR1 to one of two tasks: that one was requeued and resumed, the other not; the same weights bit for bit"


def check_time_limit(runs: Runs) -> str:
    """Lets a job come near its time limit, a minute before which SLURM sends the batch script a signal."""
    command = runs.command("limit", "trainer.devices=1", "recipe.epochs=100000")
    job = submitted(runs.folder, "limit", command, "--time=2", "--signal=B:USR1@60", before="exec ")
    job.wait_for("resuming from .*")
    asked("scancel", job.number)
    job.wait_until_ended()
    saved = re.findall(r"stopped by SIGUSR1; .* is of (epoch \d+, step \d+)", job.text())
    restarts = int(job.shown("Restarts"))
    if restarts < 1 or not saved:  # more on a machine that needs more than a minute to start
        raise CheckError(f"{restarts} restarts, saved {saved}: {job.text()[-1000:]}")
    return f"SIGUSR1 a minute before the limit of 2 minutes: saved at {saved[0]}, requeued, resumed"


def check_sweep(runs: Runs) -> str:
    """Trains two seeds by submitit, and preempts the first as submitit asks SLURM to: by SIGUSR2."""
    if importlib.util.find_spec("submitit") is None:
        return "left out: hydra-submitit-launcher is not installed (pip install -e '.[launchers]')"
    launcher = ["hydra/launcher=submitit_slurm", f"hydra.launcher.partition={PARTITION}"]
    limits = ["hydra.launcher.timeout_min=60", "hydra.launcher.mem_gb=null", f"hydra.sweep.dir={runs.folder}/sweep"]

    *command, own = runs.command("unused", "trainer.devices=1", "-m", "seed=0,1", *launcher, *limits)
    sweep = subprocess.Popen(
        [*command, own.replace("unused", "sweep${seed}")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        job = _first_of_array(runs)
        job.wait_for("epoch 2/")
        asked("scancel", "--signal=USR2", job.number)
        output, _ = sweep.communicate(timeout=LIMIT)
    finally:
        sweep.kill()

    if sweep.returncode or "resuming from" not in job.text():
        raise CheckError(f"the sweep ended with code {sweep.returncode}: {output[-1000:]} {job.text()[-1000:]}")
    runs.expect_same("sweep0", 1)
    runs.outcome("sweep1")
    return "two seeds by submitit_slurm, SIGUSR2 to one: requeued and resumed; the same weights bit for bit"


def _first_of_array(runs: Runs) -> Job:
    """Returns the first job that submitit has submitted, once it writes something."""
    folder = runs.folder / "sweep" / ".submitit"
    end = time.monotonic() + LIMIT
    while not (outputs := sorted(folder.glob("*_0/*_0_log.out"))):
        if time.monotonic() > end:
            raise CheckError(f"submitit has submitted no job after {LIMIT} seconds")
        time.sleep(BETWEEN_LOOKS)
    return Job(outputs[0].name.removesuffix("_0_log.out"), outputs[0])


def check_evaluation(runs: Runs) -> str:
    """Tests a network on two devices in a job, in a process without SLURM, and by the mistake of two tasks."""
    import numpy as np

    runs.undisturbed(1)
    scores = []
    test = [sys.executable, str(SCRIPTS / "evaluate.py"), f"run={runs.folder / 'undisturbed1'}", "views=[center]"]
    test += ["hardware.accelerator=cpu", "hardware.precision=float32"]
    done = finished([*ON_TWO, *test, f"scores={runs.folder / 'mistake'}"])
    if done.returncode != 2 or done.stderr.count("error: SLURM started 2 processes") != 1:
        raise CheckError(f"an evaluation in two tasks ended with code {done.returncode}: {done.stderr[-1000:]}")

    for start, devices in (([], 1), (["srun", "--ntasks=1", "--cpus-per-task=2"], 2)):
        folder = runs.folder / f"scores{devices}"
        succeeded([*start, *test, f"scores={folder}", f"hardware.devices={devices}"])
        with np.load(folder / "center.npz") as arrays:
            scores.append({key: arrays[key] for key in ("scores", "labels", "names")})
    one, two = scores
    if any(one[key].tolist() != two[key].tolist() for key in one):
        raise CheckError(f"other scores on two devices: {np.abs(one['scores'] - two['scores']).max():.2g} at most")
    return f"{len(set(one['names'].tolist()))} images, each scored once by two processes, with the scores of one"


CHECKS: dict[str, Callable[[Runs], str]] = {
    "two-tasks": check_two_tasks,
    "mistakes": check_mistakes,
    "disturbed": lambda runs: check_disturbed(runs, 1),
    "disturbed-ddp": lambda runs: check_disturbed(runs, 2),
    "array": check_array,
    "time-limit": check_time_limit,
    "sweep": check_sweep,
    "evaluation": check_evaluation,
}


if __name__ == "__main__":
    main()
