"""Kills training at random moments, and compares the outcome bit for bit with undisturbed training."""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

TRAIN = Path(__file__).with_name("train.py")
SMALL = [
    *("data=shapes", "data.train=60", "data.val=20", "trainer=cpu", "trainer.precision=32-true"),
    *("backbone.width=0.05", "hidden=16", "sizes.cycle=[96,72]", "recipe.epochs=8", "recipe.batch_size=6"),
    "recipe.color=true",
]
# What the runs in turn train with; the last with every option that those before do not have.
RECIPES = {
    "cosine": ["recipe=fast", "recipe.warmup_epochs=1", "trainer.validate_every=2"],
    "plateau": [
        *("recipe=paper", "recipe.plateau_patience=1", "recipe.learning_rate=0.01", "recipe.class_weights=true"),
        *("recipe.trivial_augment=true", "recipe.mirror=false"),
    ],
    "everything": [
        *("recipe=fast", "recipe.warmup_epochs=1", "recipe.learning_rate=0.002", "recipe.base_batch_size=24"),
        *("recipe.optimizer=adamw", "recipe.optimizer_options={betas:[0.8,0.9]}", "recipe.schedule=tanh"),
        *("recipe.layer_decay=0.8", "recipe.backbone_rate=0.5", "recipe.frozen_epochs=3", "recipe.ema_decay=0.9"),
        *("recipe.full_rate_inputs=20", "recipe.stop_patience=3", "trainer.accumulate=2"),
        *("sizes.every=batch", "recipe.crop_area=[0.2,1]", "recipe.rand_augment=9", "recipe.erasing=0.3"),
        *("recipe.mixup=0.2", "recipe.cutmix=1", "recipe.balanced=true"),
    ],
}

# Seconds. Training takes half a minute on an idle machine.
LIMIT = 900
LIMIT_OF_WORKERS = 60


class Ending(NamedTuple):
    """How an attempt ended."""

    finished: bool
    resumed: bool
    seconds: float


def main() -> None:
    """Runs the command; exits with 1 if a run ended differently from the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="at least this many (default: 10)")
    parser.add_argument("--kills", type=int, default=30, help="at least this many, over all runs (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: 0)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        differences = stress(Path(folder), arguments.runs, arguments.kills, arguments.seed)
    sys.exit(1 if differences else 0)


def stress(folder: Path, runs: int, kills: int, seed: int) -> int:
    """Prints a line per run and the sums; returns how many runs ended differently from the undisturbed one."""
    moments = random.Random(seed)
    undisturbed: dict[str, tuple[float, Any]] = {}
    run = killed = resumed = differences = 0
    lost = 0.0
    while run < runs or killed < kills:
        run += 1
        name = list(RECIPES)[run % len(RECIPES)]
        if name not in undisturbed:
            ending = attempt(folder, name, [*RECIPES[name], "trainer.workers=0"], None)
            undisturbed[name] = ending.seconds, outcome(folder / name)
        seconds, expected = undisturbed[name]

        endings: list[Ending] = []
        while not (endings and endings[-1].finished):
            # Other workers and intervals every time: neither may matter.
            machine = [
                f"trainer.workers={moments.choice([0, 1, 2])}",
                f"trainer.save_every_steps={moments.choice([1, 2, 5, 'null'])}",
            ]
            # Half of it: late moments come with the later kills.
            kill_after = moments.uniform(0, seconds / 2) if len(endings) < kills / runs else None
            endings.append(attempt(folder, f"run{run}", [*RECIPES[name], *machine], kill_after))

        same = outcome(folder / f"run{run}") == expected
        differences += not same
        killed += len(endings) - 1
        resumed += sum(ending.resumed for ending in endings)
        lost += sum(ending.seconds for ending in endings) - seconds
        print(f"run {run}, {name}: {len(endings) - 1} kills, {'the same' if same else 'DIFFERENT'}", flush=True)
    print(
        f"{run} runs, {killed} kills, {resumed} resumes (the others started again), {differences} differences; "
        f"{lost / max(1, killed):.1f} seconds of training lost per kill"
    )
    return differences


def attempt(folder: Path, run: str, overrides: list[str], kill_after: float | None) -> Ending:
    """Trains until the end, or until SIGKILL `kill_after` seconds after training began.

    Counts seconds of training only. Only the trainer is killed: its loader processes have to end by themselves.

    Raises RuntimeError if they do not, if training takes longer than LIMIT, and if it fails.
    """
    command = [sys.executable, str(TRAIN), *SMALL, *overrides, f"data.root={folder / 'shapes'}", f"run={folder / run}"]
    with tempfile.TemporaryFile() as errors, limited(command, errors) as process:
        assert process.stdout is not None
        while not (line := process.stdout.readline()).startswith("run directory"):
            if line.startswith("already finished"):  # killed between its result and its end
                process.communicate()
                return Ending(finished=True, resumed=False, seconds=0.0)
            if not line:
                raise failure(process, errors)

        began = time.monotonic()
        try:
            output, _ = process.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            output, _ = process.communicate(timeout=LIMIT_OF_WORKERS)  # until the last process that could write ends
        seconds = time.monotonic() - began

        if process.returncode not in (0, -signal.SIGKILL):
            raise failure(process, errors)
        return Ending(process.returncode == 0, "resuming from" in output, seconds)


@contextmanager
def limited(command: list[str], errors: IO[bytes]) -> Iterator["subprocess.Popen[str]"]:
    """Starts a process in a group of its own, and kills the group at the end of the block and after LIMIT seconds.

    Raises RuntimeError after LIMIT seconds, and if loader processes outlive the trainer.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True) as process:
        timer = threading.Timer(LIMIT, kill_group, [process])
        timer.start()
        try:
            yield process
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"loader processes outlived their trainer by {LIMIT_OF_WORKERS} seconds") from error
        finally:
            late = timer.finished.is_set()
            timer.cancel()
            kill_group(process)
    if late:
        raise RuntimeError(f"still running after {LIMIT} seconds: {' '.join(command)}")


def kill_group(process: "subprocess.Popen[str]") -> None:
    """Kills a process and those that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def failure(process: "subprocess.Popen[str]", errors: IO[bytes]) -> RuntimeError:
    """Returns an error with what a process wrote to stderr that failed, or was killed for taking too long."""
    process.wait()
    errors.seek(0)
    return RuntimeError(
        errors.read().decode() or f"ended with code {process.returncode}, perhaps after {LIMIT} seconds"
    )


def outcome(run: Path) -> tuple[Any, ...]:
    """Returns what must not depend on kills: every bit of the weights and of the optimizer, metrics, schedule."""
    import torch  # takes seconds, and --help should not

    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    clocks = ("seconds", "images_per_second")
    history = json.loads((run / "result.json").read_text())["history"]
    metrics = [{key: value for key, value in epoch.items() if key not in clocks} for epoch in history]

    tensors, rest = [], []
    kept = (checkpoint["state_dict"], checkpoint.get("trained_weights"), checkpoint["optimizer_states"])
    for leaf in torch.utils._pytree.tree_leaves(kept):
        if isinstance(leaf, torch.Tensor):
            tensors.append(leaf.numpy().tobytes())
        else:
            rest.append(leaf)
    return tensors, rest, metrics, checkpoint["global_step"]


if __name__ == "__main__":
    main()
