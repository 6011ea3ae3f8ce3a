"""Workers end with the process that started them, whenever that is killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import started
from sppnet.processes import exit_with_parent

# A worker that is adopted before it looks for its parent, and would then wait for ever.
ORPHAN = """
import multiprocessing, os, sys, time
from sppnet.classify.datamodule import _start_worker
from sppnet.processes import exit_with_parent

def work(parent, first):
    while os.getppid() == parent:
        time.sleep(0.01)
    first()
    print("running", flush=True)
    time.sleep(3600)

if __name__ == "__main__":
    first = {"any": exit_with_parent, "loader": lambda: _start_worker(0)}[sys.argv[2]]
    multiprocessing.get_context(sys.argv[1]).Process(target=work, args=(os.getpid(), first)).start()
    print("started", flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize(("method", "worker"), [("fork", "any"), ("spawn", "any"), ("fork", "loader")])
def test_a_worker_whose_parent_died_before_it_began_ends(method, worker, tmp_path):
    """Whoever reads the output waits until the last process that could write to it is gone."""
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    with started([sys.executable, script, method, worker], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "started\n"
        process.stdout.read()


TRAINER = """
import os, signal, sys
from test_datamodule import data_module, noise

batches = iter(data_module(noise(40), workers=2).train_dataloader())
next(batches)
print("trains", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_loader_workers_end_with_a_trainer_that_is_killed(tmp_path):
    command = [sys.executable, "-c", TRAINER]
    with started(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE) as process:
        assert process.stdout.read() == "trains\n"


def test_a_process_that_is_no_worker_is_refused():
    with pytest.raises(RuntimeError, match="not a worker"):
        exit_with_parent()
