"""The cost of networks and trainings: parameters, multiply-adds, hours, and estimates of the time of a training."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sppnet.backbones import build_backbone, without_weights
from sppnet.network import SPPNet
from sppnet.results.runs import Run, naming_config
from sppnet.runtime.progress import duration


def training_hours(runs: Sequence[Run]) -> str:
    """Formats the mean hours of training of the finished runs, the hours of all devices added up; "" without any."""
    hours = [run.result.seconds / 3600 * _devices(run.result.hardware) for run in runs if run.result]
    return f"{sum(hours) / len(hours):.2f}" if hours else ""


def _devices(hardware: str) -> int:
    """Returns how many GPUs a hardware line such as "8 x NVIDIA H100" names; 1 for a CPU."""
    count, _, rest = hardware.partition(" x ")
    return int(count) if rest and count.isdigit() else 1


@cache
def multiply_adds(backbone: str, levels: tuple[int, ...] | None, hidden: int | None, classes: int, side: int) -> int:
    """Counts the multiply-adds of one forward pass of one image.

    Args:
        backbone: the section of the configuration as JSON, which `cache` can hash.
        side: of the image in pixels.
    """
    with torch.device("meta"):
        body, input_side = build_backbone(**json.loads(backbone)), side if levels is None else None
        network = SPPNet(body, levels, classes, hidden=hidden, initialization="none", input_side=input_side)
        with FlopCounterMode(display=False) as counter:
            network.eval()(torch.empty(1, 3, side, side))
    return int(counter.get_total_flops()) // 2


def parameters(run: Run) -> int | None:
    """Counts the parameters of the network of a run; None before training is finished."""
    if run.result is None:
        return None
    with naming_config(run), torch.device("meta"):
        backbone = build_backbone(**without_weights(run.config["backbone"]))
        side = int(run.sizes[0]) if run.levels is None else None
        network = SPPNet(
            backbone,
            run.levels,
            run.result.num_classes,
            hidden=run.config["hidden"],
            initialization="none",
            input_side=side,
        )
    return sum(parameter.numel() for parameter in network.parameters())


def training_work(config: dict[str, Any], classes: int, images: int) -> float:
    """Counts the multiply-adds of the forward passes of a whole training.

    Args:
        images: of one epoch.
    """
    backbone = without_weights(config["backbone"])
    sizes = config["sizes"].get("cycle") or config["sizes"]["uniform"]
    levels = tuple(config["pooling"]["levels"] or (6,))  # without a pyramid: one grid of 6 x 6, at any size
    text = json.dumps(backbone, sort_keys=True)
    counts = [multiply_adds(text, levels, config["hidden"], classes, side) for side in sizes]
    return sum(counts) / len(counts) * images * int(config["recipe"]["epochs"])


def estimate(work: float, runs: Sequence[Run]) -> str:
    """Estimates how long a training takes, in proportion to the longest finished run.

    Args:
        work: multiply-adds of the forward passes, from `training_work`.
    """
    finished = [(run, run.result) for run in runs if run.result is not None]
    if not finished:
        return "no finished run to estimate from"

    longest, result = max(finished, key=lambda pair: pair[1].seconds)
    with naming_config(longest):
        known_work = training_work(longest.config, result.num_classes, result.training_images)
    seconds = result.seconds * work / known_work
    return f"roughly {duration(seconds)} on {result.hardware}, by multiply-adds from {longest.path.name}"
