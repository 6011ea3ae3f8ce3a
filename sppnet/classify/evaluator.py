"""Scores every image exactly once on one or several devices; an interrupted evaluation resumes."""

import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sppnet.classify.scorer import Scorer, score_images
from sppnet.classify.views import ViewProtocol
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
from sppnet.runtime.hardware import Hardware, prepare_device, run_on_devices
from sppnet.runtime.processes import explained_loader_failures
from sppnet.runtime.progress import Progress

SECONDS_BETWEEN_PARTS = 20.0


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
    """Returns the scores in `path` if they are those of this evaluation; otherwise scores the images and writes it.

    Saved scores count if scoring rules, protocol, checkpoint, precision and the fingerprint of the images (names,
    labels and contents, wherever the images are) are the same. Scores of single images also count if an interrupted
    evaluation saved them in the same folder, perhaps with other images excluded.

    Shows a progress bar on a terminal, and a line now and then elsewhere.

    Args:
        path: the scores file.
        network: in eval mode.
        images: the images to test on.
        digests: `content_digests` of the images.
        protocol: the views.
        hardware: what to run on.
        title: the name of the evaluation in messages.
        checkpoint: digest of the network's checkpoint.
        about: more plain values to save with the scores.

    Raises ValueError if there are no images, and what `evaluate` raises.
    """
    if not len(images):
        raise ValueError(f"{title}: no images to test on")

    # What has to be the same for saved scores to count: of a single image, and of all images together.
    identity = {
        "rules": SCORING_RULES,
        "protocol": vars(protocol),
        "checkpoint": checkpoint,
        "precision": "float32" if hardware.autocast is None else "bf16",
    }
    fingerprint = {"images": images_fingerprint(images, digests)}
    if (saved := _saved_scores(path, identity | fingerprint, title)) is not None:
        return saved

    parts = path.with_suffix(".parts")
    started = time.perf_counter()
    values = evaluate(Evaluation(network, images, digests, protocol, hardware, parts, identity), title)
    seconds = time.perf_counter() - started

    names = np.array([images.name(i) for i in range(len(images))])
    about = {
        **identity,
        **fingerprint,
        **about,
        **environment(gpus=hardware.processes),
        "protocol_text": protocol.text(),
        "n": len(images),
        "seconds": seconds,
    }
    scores = Scores(values, np.asarray(images.labels, np.int64), names, about)
    write_scores(path, scores)
    delete_score_parts(parts)
    return scores


def _saved_scores(path: Path, identity: dict[str, Any], title: str) -> Scores | None:
    """Returns the scores in `path` if they have this identity. Prints that they are reused, or why not."""
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


class Evaluation(NamedTuple):
    """An evaluation of a network: everything that its processes need to score their shares of the images."""

    network: SPPNet
    images: Images
    digests: np.ndarray  # uint8 (n, 16): `content_digests` of the images
    protocol: ViewProtocol
    hardware: Hardware
    parts: Path  # folder of the scores so far, RUN/scores/NAME.parts
    identity: dict[str, Any]  # everything that decides the scores of an image besides its content


def evaluate(evaluation: Evaluation, title: str) -> np.ndarray:
    """Scores every image exactly once, except those whose scores are saved: float32 (n, classes), by index.

    Raises UnreadableImage for an image that cannot be read, ChildProcessError if a process dies, RuntimeError if an
    image was missed.
    """
    scores = np.zeros((len(evaluation.images), evaluation.network.num_classes), np.float32)
    left = np.flatnonzero(~_fill_in_saved(evaluation, scores))
    if len(left) < len(scores):
        print(f"{title}: resuming after {len(scores) - len(left):,} of {len(scores):,} images", flush=True)

    if len(left):
        run_on_devices(_score_share, (evaluation, left, title), evaluation.hardware)

    # All processes have saved their scores in parts.
    done = _fill_in_saved(evaluation, scores)
    if not done.all():
        raise RuntimeError(f"{int((~done).sum())} of {len(scores)} images were not scored")
    return scores


def _fill_in_saved(evaluation: Evaluation, scores: np.ndarray) -> np.ndarray:
    """Fills in the saved scores of images with the same name and content. Returns which images have any: bool (n,)."""
    keys = [(evaluation.images.name(i), digest.tobytes()) for i, digest in enumerate(evaluation.digests)]
    index_of = {key: i for i, key in enumerate(keys)}
    done = np.zeros(len(scores), bool)
    for part in read_score_parts(evaluation.parts.parent, evaluation.identity):
        if part.scores.shape[1] != scores.shape[1]:
            continue
        for name, digest, values in zip(part.names.tolist(), part.digests, part.scores, strict=True):
            index = index_of.get((name, digest.tobytes()))
            if index is not None:
                scores[index], done[index] = values, True
    return done


def _score_share(rank: int, evaluation: Evaluation, left: np.ndarray, title: str) -> None:
    """Scores this process's share of the images `left`, and saves the scores in parts along the way."""
    hardware = evaluation.hardware
    network = evaluation.network.to(prepare_device(rank, hardware))
    scorer = Scorer(network, evaluation.protocol, pixels=hardware.pixels, autocast=hardware.autocast)
    share = left[rank :: hardware.processes].tolist()
    indices: list[int] = []
    scores: list[Tensor] = []
    saved_at = time.perf_counter()

    with contextlib.ExitStack() as stack:
        # Runs after an unreadable image and after Ctrl-C as well, so that no image is scored twice.
        stack.callback(lambda: _save_part(evaluation, indices, scores))
        # Around the whole loop, autocast converts each weight once instead of once per batch.
        stack.enter_context(torch.autocast(scorer.device.type, scorer.autocast, enabled=scorer.autocast is not None))
        # The shares of all processes differ by at most one image, so one of them shows the progress of all.
        progress = stack.enter_context(Progress(title, len(share))) if rank == 0 else None
        stack.enter_context(explained_loader_failures("hardware.workers"))
        scored = score_images(scorer, evaluation.images, share, workers=evaluation.hardware.loaders)
        stack.enter_context(contextlib.closing(scored))

        for batch_indices, batch_scores in scored:
            indices += batch_indices
            scores.append(batch_scores)
            if progress is not None:
                progress.add(len(batch_indices))
            if time.perf_counter() - saved_at > SECONDS_BETWEEN_PARTS:
                _save_part(evaluation, indices, scores)
                saved_at = time.perf_counter()


def _save_part(evaluation: Evaluation, indices: list[int], scores: list[Tensor]) -> None:
    """Saves the scores of these images, and empties both lists."""
    if indices:
        names = np.array([evaluation.images.name(i) for i in indices])
        part = ScorePart(names, evaluation.digests[indices], torch.cat(scores).numpy())
        add_score_part(evaluation.parts, evaluation.identity, part)
        indices.clear()
        scores.clear()
