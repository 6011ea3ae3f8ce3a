"""What networks and trainings cost: parameters, multiply-adds, hours, estimates."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sppnet.backbones import build_backbone
from sppnet.network import SPPNet
from sppnet.results.runs import Run, naming_config
from sppnet.runtime.progress import duration


def training_hours(runs: Sequence[Run]) -> str:
    """Hours of training of one run, on average, all its devices added up."""
    hours = [run.result.seconds / 3600 * _devices(run.result.hardware) for run in runs if run.result]
    return f"{sum(hours) / len(hours):.2f}" if hours else ""


def _devices(hardware: str) -> int:
    """How many GPUs a hardware line such as "8 x NVIDIA H100" names; 1 for a CPU."""
    count, _, rest = hardware.partition(" x ")
    return int(count) if rest and count.isdigit() else 1


@cache
def multiply_adds(backbone: str, levels: tuple[int, ...] | None, hidden: int, classes: int, side: int) -> int:
    """Of one forward pass of one image. `backbone` is the section of the configuration as JSON."""
    with torch.device("meta"):
        body, input_side = build_backbone(**json.loads(backbone)), side if levels is None else None
        network = SPPNet(body, levels, classes, hidden=hidden, initialization="none", input_side=input_side)
        with FlopCounterMode(display=False) as counter:
            network.eval()(torch.empty(1, 3, side, side))
    return counter.get_total_flops() // 2


def parameters(run: Run) -> int | None:
    """Of the network of a finished run."""
    if run.result is None:
        return None
    with naming_config(run), torch.device("meta"):
        backbone = build_backbone(**{**run.config["backbone"], **_untrained(run)})
        classes, hidden = run.result.num_classes, run.config["hidden"]
        side = int(run.sizes[0]) if run.levels is None else None
        network = SPPNet(backbone, run.levels, classes, hidden=hidden, initialization="none", input_side=side)
    return sum(parameter.numel() for parameter in network.parameters())


def _untrained(run: Run) -> dict[str, Any]:
    """So that counting downloads no weights."""
    return {"pretrained": False} if run.config["backbone"]["architecture"] == "timm" else {}


def training_work(config: dict[str, Any], classes: int, images: int) -> float:
    """Multiply-adds of the forward passes of a whole training."""
    backbone = {key: value for key, value in config["backbone"].items() if key != "pretrained"}
    sizes = config["sizes"].get("cycle") or config["sizes"]["uniform"]
    levels = tuple(config["pooling"]["levels"] or (6,))  # without a pyramid: one grid of 6 x 6, at whatever size
    text = json.dumps(backbone, sort_keys=True)
    each = [multiply_adds(text, levels, config["hidden"], classes, side) for side in sizes]
    return sum(each) / len(each) * images * config["recipe"]["epochs"]


def estimate(work: float, runs: Sequence[Run]) -> str:
    """How long a training of that much work would take, by the rule of three from the longest finished run."""
    finished = [(run, run.result) for run in runs if run.result is not None]
    if not finished:
        return "no finished run to estimate from"

    longest, result = max(finished, key=lambda pair: pair[1].seconds)
    with naming_config(longest):
        known_work = training_work(longest.config, result.num_classes, result.training_images)
    seconds = result.seconds * work / known_work
    return f"roughly {duration(seconds)} on {result.hardware}, by multiply-adds from {longest.path.name}"
