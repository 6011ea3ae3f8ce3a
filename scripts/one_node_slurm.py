"""A SLURM of one node on this machine, for tests, and jobs in it. Its daemons run as this user and end with a block."""

import getpass
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "scontrol", "squeue")
PARTITION = "gpu"  # the name in the documentation
# What SLURM believes the node to have, so that commands of the documentation run as they are.
CORES, GPUS = 32, 8

# Seconds. Each start of a training takes ten seconds on an idle machine, and ten times that on a busy one.
LIMIT = 600
BETWEEN_LOOKS = 0.2
LIMIT_OF_START = 60
LIMIT_OF_END = 30
LIMIT_OF_COMMANDS = 60

# Without cgroups and accounting, which need a service manager and a database. `cred_expire` is also what a requeued
# job waits for, by default two minutes.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
ReturnToService=2
GresTypes=gpu
SlurmdParameters=config_overrides
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cores} CoresPerSocket={cores} Gres=gpu:{gpus}
PartitionName={partition} Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """Returns the programs of SLURM that are not installed. Those in sbin are found without it in PATH."""
    os.environ["PATH"] += f"{os.pathsep}/usr/local/sbin{os.pathsep}/usr/sbin"
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextmanager
def one_node_slurm(folder: Path) -> Iterator[None]:
    """Runs SLURM within the block; commands such as `srun` find it by SLURM_CONF. Jobs are killed at the end.

    Raises RuntimeError, with the end of the daemons' logs, if the node is not ready after LIMIT_OF_START seconds.
    """
    _configure(folder)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    with ExitStack() as stack:
        places = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file")]
        munge = [
            "munged",
            "--foreground",
            "--force",
            f"--key-file={folder}/munge.key",
            f"--seed-file={folder}/munge.seed",
            *places,
        ]
        for command in (munge, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", "localhost"]):
            stack.enter_context(_daemon(command, folder / "logs" / command[0]))
        stack.callback(_kill_jobs)
        _wait_until_ready(folder / "logs")
        yield


def asked(*command: str) -> str:
    """Returns the output of a command of SLURM, also if it fails, as those about jobs that have ended do."""
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_OF_COMMANDS).stdout.strip()


@dataclass(frozen=True)
class Job:
    """A job, or a task of an array, and the file with the output of all its starts."""

    number: str
    output: Path

    def text(self) -> str:
        """Returns the output so far."""
        return self.output.read_text() if self.output.is_file() else ""

    def wait_for(self, pattern: str, times: int = 1) -> None:
        """Waits until the output holds a pattern so many times. Raises TimeoutError if it does not."""
        self._wait(lambda: len(re.findall(pattern, self.text())) >= times, f"has not written {pattern!r}")

    def wait_until_ended(self) -> None:
        """Waits until the job has ended, and is not to start again."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self._wait(lambda: self.shown("JobState") in ends, "has not ended")

    def shown(self, key: str) -> str:
        """Returns what `scontrol` shows of the job."""
        match = re.search(rf"\b{key}=(\S+)", asked("scontrol", "show", "job", self.number))
        return match[1] if match else ""

    def _wait(self, done: Callable[[], bool], complaint: str) -> None:
        end = time.monotonic() + LIMIT
        while not done():
            if time.monotonic() > end:
                raise TimeoutError(f"job {self.number} {complaint} after {LIMIT} seconds: {self.text()[-1000:]}")
            time.sleep(BETWEEN_LOOKS)


def submitted(folder: Path, name: str, command: list[str], *options: str, before: str = "") -> Job:
    """Submits a command to `sbatch`, with files in a folder.

    Args:
        folder: of the batch script NAME.sh and the output NAME.out.
        name: of both.
        command: is the only one of the script.
        options: of sbatch.
        before: text before the command.

    Raises subprocess.CalledProcessError if sbatch fails.
    """
    output = folder / f"{name}.out"
    kept = [f"--output={output}", "--open-mode=append", "--requeue", f"--partition={PARTITION}"]
    script = folder / f"{name}.sh"
    script.write_text(f"#!/bin/bash\n{before}{shlex.join(command)}\n")
    sbatch = ["sbatch", "--parsable", *kept, *options, str(script)]
    done = subprocess.run(sbatch, capture_output=True, text=True, timeout=LIMIT_OF_COMMANDS, check=True)
    return Job(done.stdout.strip(), output)


def _configure(folder: Path) -> None:
    """Writes what the daemons read, and makes their folders."""
    for name in ("state", "spool", "logs"):
        (folder / name).mkdir()
    folder.chmod(0o755)  # munged asks for that

    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)

    controller_port, node_port = _free_ports(2)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=host,
            user=getpass.getuser(),
            folder=folder,
            cores=CORES,
            gpus=GPUS,
            partition=PARTITION,
            controller_port=controller_port,
            node_port=node_port,
        )
    )

    for index in range(GPUS):
        (folder / f"gpu{index}").touch()  # SLURM counts files; that they are no devices is a line in its log
    (folder / "gres.conf").write_text(f"NodeName=localhost Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")


@contextmanager
def _daemon(command: list[str], log: Path) -> Iterator[None]:
    # In a session of its own, where Ctrl-C does not reach it: it is needed for the end.
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(LIMIT_OF_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(logs: Path) -> None:
    end = time.monotonic() + LIMIT_OF_START
    while asked("sinfo", "--noheader", "--format=%T") != "idle":
        if time.monotonic() > end:
            texts = [log.read_text(errors="replace")[-1000:] for log in logs.iterdir()]
            raise RuntimeError("\n".join(["SLURM does not start:", *texts]))
        time.sleep(0.5)


def _kill_jobs() -> None:
    """Kills all jobs, and waits until they have ended: daemons that end before would leave them running."""
    end = time.monotonic() + LIMIT_OF_END
    while jobs := asked("squeue", "--noheader", "--format=%A").split():
        if time.monotonic() > end:
            return
        asked("scancel", *jobs)
        asked("scancel", "--signal=KILL", "--full", *jobs)
        time.sleep(1)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
