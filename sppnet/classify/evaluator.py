"""Scores every image exactly once on one or several devices; an interrupted evaluation resumes."""

import builtins
import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from sppnet.classify.scorer import Scorer, score_images
from sppnet.classify.views import ViewProtocol
from sppnet.data.images import UnreadableImage
from sppnet.data.sources import Images, LabelledImages, images_fingerprint
from sppnet.network import SPPNet
from sppnet.results.scores import (
    SCORING_RULES,
    ScorePart,
    Scores,
    add_score_part,
    delete_score_parts,
    read_score_parts,
    read_scores,
    write_scores,
)
from sppnet.runtime.environment import environment
from sppnet.runtime.machine import bf16_is_fast, keep_freed_memory, most_processes, worker_count
from sppnet.runtime.processes import exit_with_parent, explained_loader_failures
from sppnet.runtime.progress import Progress

SECONDS_BETWEEN_PARTS = 20.0
LARGEST_MEGAPIXELS = 10_000


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
        if self.megapixels is not None and not 0 < self.megapixels <= LARGEST_MEGAPIXELS:
            raise ValueError(f"hardware.megapixels={self.megapixels}: must be above 0, at most {LARGEST_MEGAPIXELS:,}")
        if self.workers is not None and not 0 <= self.workers <= most_processes():
            raise ValueError(f"hardware.workers={self.workers}: must be from 0 to {most_processes()} on this machine")

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
    images: Images
    digests: np.ndarray  # uint8 (n, 16): `content_digests` of the images
    protocol: ViewProtocol
    hardware: Hardware
    workers: int  # loader processes per device
    parts: Path  # folder of the scores so far, RUN/scores/NAME.parts
    identity: dict[str, Any]  # all that decides the scores of an image beside its content


def evaluate(job: EvaluationJob, title: str) -> np.ndarray:
    """Scores every image exactly once, except those already saved: float32 (n, classes), by index.

    Raises UnreadableImage for an image that cannot be read, ChildProcessError if a process dies, RuntimeError if an
    image was missed.
    """
    scores = np.zeros((len(job.images), job.network.num_classes), np.float32)
    left = np.flatnonzero(~_collect(job, scores))
    if len(left) < len(scores):
        print(f"{title}: resuming after {len(scores) - len(left):,} of {len(scores):,} images", flush=True)
    if len(left) and job.hardware.processes == 1:
        _score_share(0, job, left, title)
    elif len(left):
        _score_in_processes(job, left, title)
    done = _collect(job, scores)
    if not done.all():
        raise RuntimeError(f"{int((~done).sum())} of {len(scores)} images were not scored")
    return scores


def _collect(job: EvaluationJob, scores: np.ndarray) -> np.ndarray:
    """Fills in the saved scores of images with the same name and content; bool (n,), which images they are of."""
    keys = [(job.images.name(i), digest.tobytes()) for i, digest in enumerate(job.digests)]
    index = {key: i for i, key in enumerate(keys)}
    done = np.zeros(len(scores), bool)
    for part in read_score_parts(job.parts.parent, job.identity):
        if part.scores.shape[1] != scores.shape[1]:
            continue
        for name, digest, values in zip(part.names.tolist(), part.digests, part.scores, strict=True):
            place = index.get((name, digest.tobytes()))
            if place is not None:
                scores[place], done[place] = values, True
    return done


def _score_in_processes(job: EvaluationJob, left: np.ndarray, title: str) -> None:
    """One process for each device. Their errors arrive as the text of a traceback, whose last line is the error."""
    try:
        torch.multiprocessing.spawn(_score_share, (job, left, title), nprocs=job.hardware.processes)
    except ProcessRaisedException as error:
        name, _, reason = str(error).strip().splitlines()[-1].partition(": ")
        kind = UnreadableImage if name.endswith(".UnreadableImage") else getattr(builtins, name, RuntimeError)
        if not issubclass(kind, (OSError, ValueError)):
            raise
        raise kind(reason) from error
    except ProcessExitedException as error:
        raise ChildProcessError(
            f"a process that scores images was killed ({error}), perhaps for lack of memory: give fewer "
            "hardware.devices, hardware.workers or hardware.megapixels"
        ) from error


def _score_share(rank: int, job: EvaluationJob, left: np.ndarray, title: str) -> None:
    """One process: its share of the images left, saved in parts along the way."""
    hardware = job.hardware
    if hardware.processes > 1:  # spawned
        exit_with_parent()
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
        # The shares of all processes are equal, so one of them shows the progress of all.
        progress = stack.enter_context(Progress(title, len(share))) if rank == 0 else None
        stack.enter_context(explained_loader_failures("hardware.workers"))
        scored = stack.enter_context(contextlib.closing(score_images(scorer, job.images, share, workers=job.workers)))
        for some, values in scored:
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
        names = np.array([job.images.name(i) for i in indices])
        add_score_part(job.parts, job.identity, ScorePart(names, job.digests[indices], torch.cat(scores).numpy()))
        indices.clear()
        scores.clear()


def evaluate_to_file(
    path: Path,
    network: SPPNet,
    images: LabelledImages,
    digests: np.ndarray,
    protocol: ViewProtocol,
    hardware: Hardware,
    *,
    title: str,
    checkpoint: str,
    about: dict[str, Any],
) -> Scores:
    """The scores in `path` if they are those of this test; else scores every image, resuming where a test stopped.

    They are if rules, protocol, checkpoint, precision and the fingerprint of the images are the same: names, labels and
    contents, wherever the images are. Scores of single images are also taken from other tests that were interrupted,
    in the same folder, as with other images excluded. Shows a progress bar on a terminal and a line now and then
    elsewhere.

    Args:
        digests: `content_digests` of the images.
        title: what the test is called in messages.
        checkpoint: digest of the network's checkpoint.
        about: more plain values to save beside the scores.

    Raises ValueError without images, and as `evaluate`.
    """
    if not len(images):
        raise ValueError(f"{title}: no images to test on")
    identity = {
        "rules": SCORING_RULES,
        "protocol": vars(protocol),
        "checkpoint": checkpoint,
        "precision": "float32" if hardware.autocast is None else "bf16",
    }
    fingerprint = {"images": images_fingerprint(images, digests)}
    if (there := _saved(path, identity | fingerprint, title)) is not None:
        return there
    parts = path.with_suffix(".parts")
    workers = worker_count(hardware.workers, hardware.processes)
    job = EvaluationJob(network, images, digests, protocol, hardware, workers, parts, identity)
    started = time.perf_counter()
    values = evaluate(job, title)
    seconds = time.perf_counter() - started
    names = np.array([images.name(i) for i in range(len(images))])
    about = {
        **identity,
        **fingerprint,
        **about,
        **environment(),
        "protocol_text": protocol.text(),
        "n": len(images),
        "seconds": seconds,
    }
    scores = Scores(values, np.asarray(images.labels, np.int64), names, about)
    write_scores(path, scores)
    delete_score_parts(parts)
    return scores


def _saved(path: Path, identity: dict[str, Any], title: str) -> Scores | None:
    """The scores in `path` if there are any of this identity. Says so, or why the images are scored again."""
    if not path.is_file():
        return None
    scores = read_scores(path)
    changed = [key for key in identity if scores.about.get(key) != identity[key]]
    if not changed:
        print(f"{title}: scored already ({path})", flush=True)
        return scores
    reason = "they were made by the rules of another version" if changed[0] == "rules" else f"the {changed[0]} changed"
    print(f"{title}: scoring again, as {reason} ({path})", flush=True)
    return None
