"""Processes that SLURM and torchrun have started: which is the first, and whether they are those of the run."""

import os

import pytest
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from sppnet.lightning_processes import process_plugins
from sppnet.runtime.cluster import check_tasks, is_first_process
from sppnet.runtime.hardware import Hardware, run_on_devices

NAMES = ("RANK", "LOCAL_RANK", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@pytest.fixture
def given(monkeypatch):
    """Sets variables, and no others of SLURM, torchrun and Lightning."""

    def give(**variables):
        for name in os.environ:
            if name.startswith("SLURM_") or name in NAMES:
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return give


def step(count, nodes=1, per_node=None, **others):
    """Variables of the first task of an `srun`."""
    return {
        "SLURM_JOB_ID": "71234",
        "SLURM_PROCID": "0",
        "SLURM_NTASKS": str(count),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_TASKS_PER_NODE": per_node or str(count),
        **others,
    }


BATCH_SCRIPT = {"SLURM_JOB_ID": "71234", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none"}


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        (step(2), True),
        (step(2, SLURM_PROCID="1"), False),
        (BATCH_SCRIPT, True),
        (BATCH_SCRIPT | {"LOCAL_RANK": "1"}, False),  # started by Lightning, with the SLURM_PROCID of the first
        (step(1) | TORCHRUN, False),
        (step(2, SLURM_PROCID="1", RANK="0", LOCAL_RANK="0"), True),  # torchrun may count nodes in another order
    ],
)
def test_one_process_is_the_first(given, variables, first):
    given(**variables)
    assert is_first_process() is first


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "kinds"),
    [
        ({}, 2, 1, []),
        (step(2), 2, 1, [SLURMEnvironment]),
        (step(32, 4, "8(x4)"), 8, 4, [SLURMEnvironment]),
        (step(2, SLURM_JOB_NAME="bash"), 2, 1, [SLURMEnvironment]),  # Lightning takes this name for a shell
        # Lightning alone trained with one of two processes in the first case, and waited for the second in the others.
        (step(1), 2, 1, [LightningEnvironment]),
        (BATCH_SCRIPT, 2, 1, [LightningEnvironment]),
        (BATCH_SCRIPT, 1, 1, [LightningEnvironment]),
        (step(4, 4, "1(x4)") | TORCHRUN, 8, 4, []),
    ],
)
def test_lightning_starts_the_processes_that_slurm_has_not_started(given, variables, devices, nodes, kinds):
    given(**variables)
    plugins = process_plugins(devices, nodes)
    assert [kind for plugin, kind in zip(plugins, kinds, strict=True) if not isinstance(plugin, kind)] == []
    for plugin in plugins:
        plugin.validate_settings(num_devices=devices, num_nodes=nodes)


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "message"),
    [
        (
            step(2), 1, 1,
            "SLURM started 2 processes on 1 node, and trainer.devices=1 trainer.num_nodes=1 needs 1: start them by "
            "srun --nodes=1 --ntasks-per-node=1; for those set trainer.devices=2 trainer.num_nodes=1",
        ),
        (step(2), 4, 1, "needs 4: start them by srun --nodes=1 --ntasks-per-node=4; for those set trainer.devices=2"),
        (step(4, 2, "3,1"), 2, 2, "4 processes on 2 nodes, .* needs 4: start .* --nodes=2 --ntasks-per-node=2$"),
        (step(8, 2, "4(x2)"), 8, 1, "8 processes on 2 nodes, .* for those set trainer.devices=4 trainer.num_nodes=2$"),
        (BATCH_SCRIPT, 8, 4, "SLURM started 1 process, .* needs 32: start them by srun --nodes=4 --ntasks-per-node=8$"),
        (step(1), 8, 4, "SLURM started 1 process, "),
    ],
)  # fmt: skip
def test_other_processes_are_refused_in_one_line_of_the_first(given, variables, devices, nodes, message):
    given(**variables)
    with pytest.raises(ValueError, match=message):
        check_tasks(devices, nodes)
    if variables["SLURM_NTASKS"] != "1" and variables is not BATCH_SCRIPT:
        given(**variables | {"SLURM_PROCID": "1"})
        with pytest.raises(SystemExit) as stopped:
            check_tasks(devices, nodes)
        assert stopped.value.code == 2


def test_a_command_that_starts_its_own_processes_is_refused_in_several_tasks(given):
    done = []
    given(**step(1))
    run_on_devices(done.append, (), Hardware(accelerator="cpu"))
    given(**step(2))
    with pytest.raises(ValueError, match=r"^SLURM started 2 processes, each .* srun --ntasks=1, .* hardware\.devices$"):
        run_on_devices(done.append, (), Hardware(accelerator="cpu"))
    given(**step(2, SLURM_PROCID="1"))
    with pytest.raises(SystemExit):
        run_on_devices(done.append, (), Hardware(accelerator="cpu"))
    assert done == [0]


def test_lightning_does_not_requeue_jobs_besides(given):
    given(**step(2))
    assert process_plugins(2, 1)[0].auto_requeue is False


def test_two_runs_of_one_job_meet_at_different_ports(given):
    ports = set()
    for number in ("0", "1"):
        given(**step(2, SLURM_STEP_ID=number))
        ports.add(process_plugins(2, 1)[0].main_port)
    assert len(ports) == 2
    assert all(15000 <= port < 25000 for port in ports)
    given(**step(2, MASTER_PORT="29500"))
    assert process_plugins(2, 1)[0].main_port == 29500
