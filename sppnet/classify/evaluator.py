"""Evaluations: every image scored exactly once on one or several devices, saved, and gone on with after a stop."""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sppnet.classify.machine import bf16_is_fast, keep_freed_memory, worker_count
from sppnet.classify.scorer import Scorer, score_images
from sppnet.classify.views import ViewProtocol
from sppnet.datasets import EncodedImages
from sppnet.network import SPPNet
from sppnet.progress import Progress
from sppnet.records import (
    Scores,
    add_score_part,
    delete_score_parts,
    environment,
    read_score_parts,
    read_scores,
    write_scores,
)

SECONDS_BETWEEN_PARTS = 20.0


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What an evaluation runs on. None chooses what suits the machine. ValueError for values out of range."""

    accelerator: str = "auto"  # "auto", "cpu", "gpu"
    devices: int | None = None  # processes that share the images; None: every GPU, or one process on the CPU
    workers: int | None = None  # loader processes per device; None: one per core, at most 16
    precision: str | None = None  # "bf16" or "float32"; None: bf16 where the hardware is made for it
    megapixels: float | None = None  # of one forward pass; None: 32 on a GPU, 2 on the CPU

    def __post_init__(self) -> None:
        gpus = torch.cuda.device_count()
        if self.accelerator not in ("auto", "cpu", "gpu"):
            raise ValueError(f"hardware.accelerator={self.accelerator}: must be one of auto, cpu, gpu")
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError("hardware.accelerator=gpu: torch finds no GPU on this machine")
        most = gpus if self.device == "cuda" else os.cpu_count() or 1
        if self.devices is not None and not 1 <= self.devices <= most:
            raise ValueError(f"hardware.devices={self.devices}: must be 1 to {most} on this machine ({self.device})")
        if self.precision not in (None, "bf16", "float32"):
            raise ValueError(f"hardware.precision={self.precision}: must be bf16, float32 or null")
        if self.megapixels is not None and not self.megapixels > 0:
            raise ValueError(f"hardware.megapixels={self.megapixels}: must be above 0")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"hardware.workers={self.workers}: must be at least 0")

    @property
    def device(self) -> str:
        """ "cuda" or "cpu"."""
        return "cuda" if self.accelerator != "cpu" and torch.cuda.is_available() else "cpu"

    @property
    def processes(self) -> int:
        return self.devices or (torch.cuda.device_count() if self.device == "cuda" else 1)

    @property
    def autocast(self) -> torch.dtype | None:
        bf16 = self.precision == "bf16" if self.precision else bf16_is_fast(self.device)
        return torch.bfloat16 if bf16 else None

    @property
    def pixels(self) -> int:
        return round(1e6 * (self.megapixels or (32 if self.device == "cuda" else 2)))


class EvaluationJob(NamedTuple):
    """What every process of an evaluation is given."""

    network: SPPNet
    images: EncodedImages
    protocol: ViewProtocol
    hardware: Hardware
    workers: int  # loader processes per device
    parts: Path  # folder of the scores so far
    identity: dict[str, Any]  # of what is scored: parts of anything else do not count


def evaluate(job: EvaluationJob, title: str) -> np.ndarray:
    """Scores every image exactly once, going on from what `job.parts` holds: float32 (n, classes), by index.

    Raises RuntimeError if an image was missed.
    """
    scores = np.zeros((len(job.images), job.network.num_classes), np.float32)
    left = np.flatnonzero(~_collect(job, scores))
    if len(left) < len(scores):
        print(f"{title}: going on after {len(scores) - len(left):,} of {len(scores):,} images", flush=True)
    processes = job.hardware.processes
    if len(left) and processes == 1:
        _score_share(0, job, left, title)
    elif len(left):
        torch.multiprocessing.spawn(_score_share, (job, left, title), nprocs=processes)
    done = _collect(job, scores)
    if not done.all():
        raise RuntimeError(f"{int((~done).sum())} of {len(scores)} images were not scored")
    return scores


def _collect(job: EvaluationJob, scores: np.ndarray) -> np.ndarray:
    """Fills in the saved scores; bool (n,), which images they are of."""
    done = np.zeros(len(scores), bool)
    for indices, values in read_score_parts(job.parts, job.identity):
        if len(indices) and indices.max() < len(scores) and values.shape[1] == scores.shape[1]:
            scores[indices], done[indices] = values, True
    return done


def _score_share(rank: int, job: EvaluationJob, left: np.ndarray, title: str) -> None:
    """One process: its share of the images left, saved in parts along the way."""
    hardware = job.hardware
    device = torch.device("cuda", rank) if hardware.device == "cuda" else torch.device("cpu")
    if device.type == "cpu":
        keep_freed_memory()
        torch.set_num_threads(max(1, torch.get_num_threads() // hardware.processes))
    scorer = Scorer(job.network.to(device), job.protocol, pixels=hardware.pixels, autocast=hardware.autocast)
    share = left[rank :: hardware.processes].tolist()
    indices: list[int] = []
    scores: list[Tensor] = []
    saved = time.perf_counter()
    with contextlib.ExitStack() as stack:
        # After an unreadable image or Ctrl-C, too: what has been scored is not scored again.
        stack.callback(lambda: _save_part(job, indices, scores))
        # Around the whole loop, autocast converts each weight once instead of once per batch.
        stack.enter_context(torch.autocast(device.type, scorer.autocast, enabled=scorer.autocast is not None))
        # The processes go at one pace, so one of them speaks for all.
        progress = stack.enter_context(Progress(title, len(share))) if rank == 0 else None
        for some, values in score_images(scorer, job.images, share, workers=job.workers):
            indices += some
            scores.append(values)
            if progress is not None:
                progress.add(len(some))
            if time.perf_counter() - saved > SECONDS_BETWEEN_PARTS:
                _save_part(job, indices, scores)
                saved = time.perf_counter()


def _save_part(job: EvaluationJob, indices: list[int], scores: list[Tensor]) -> None:
    """Saves and empties the lists."""
    if indices:
        add_score_part(job.parts, job.identity, np.array(indices), torch.cat(scores).numpy())
        indices.clear()
        scores.clear()


def evaluate_to_file(
    path: Path,
    network: SPPNet,
    images: EncodedImages,
    protocol: ViewProtocol,
    hardware: Hardware,
    *,
    identity: dict[str, Any],
    about: dict[str, Any],
) -> Scores:
    """The scores in `path` if they are of `identity`; else scores every image, goes on where a last call stopped.

    Shows a progress bar on a terminal and a line now and then elsewhere.

    Args:
        identity: plain values: with the precision, which is added, they decide whether scores are still right.
        about: more plain values to save beside them.
    """
    identity = {**identity, "precision": "float32" if hardware.autocast is None else "bf16"}
    n, title = len(images), path.stem
    if path.is_file():
        scores = read_scores(path)
        changed = [key for key in identity if scores.about.get(key) != identity[key]]
        if not changed and len(scores.labels) == n:
            print(f"{title}: scored already ({path})", flush=True)
            return scores
        print(f"{title}: scoring anew, as {changed[0] if changed else 'the number of images'} changed", flush=True)
    parts = path.with_suffix(".parts")
    job = EvaluationJob(
        network, images, protocol, hardware, worker_count(hardware.workers, hardware.processes), parts, identity
    )
    started = time.perf_counter()
    values = evaluate(job, title)
    seconds = time.perf_counter() - started
    names = np.array([images.name(i) for i in range(n)])
    about = {**identity, **about, **environment(), "protocol_text": protocol.text(), "n": n, "seconds": seconds}
    scores = Scores(values, np.asarray(images.labels, np.int64), names, about)
    write_scores(path, scores)
    delete_score_parts(parts)
    return scores
