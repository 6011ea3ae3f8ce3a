"""Measures training and testing on this machine, stage by stage: `sppnet benchmark --help`."""

import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from sppnet.classify.views import ViewProtocol, in_pixels
from sppnet.commands.configs import CONFIGS
from sppnet.commands.jobs import one_line_job, run_main
from sppnet.commands.settings import bound, plain, resolved
from sppnet.commands.train import read_plan

if TYPE_CHECKING:
    from sppnet.benchmark.stages import Stage, TrainingSetup
    from sppnet.results.page import Page

WORDS = ("references", "--json")  # that Hydra does not know


def main(words: set[str]) -> None:
    """Runs the command with those of WORDS that were given."""

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="benchmark")
    def job(config: DictConfig) -> None:
        with one_line_job("nothing was changed"):
            config = resolved(config)
            check(config)
            page, records = (references if "references" in words else stages)(config)
            print(json.dumps(records, indent=2) if "--json" in words else page.markdown())

    job()


def check(config: DictConfig) -> None:
    """Raises ValueError for wrong settings of the measurements."""
    for key, kinds in (("seconds", int | float), ("rounds", int)):
        if not isinstance(config[key], kinds) or not 0 < config[key] <= 1e6:
            kind = "whole number" if kinds is int else "number"
            raise ValueError(f"{key}={config[key]}: must be a {kind} above 0, at most 1000000")


def references(config: DictConfig) -> tuple["Page", dict[str, Any]]:
    """Compares our implementations with plain PyTorch: the page, and the same as plain values."""
    # Imported here because torch takes seconds, and --help should not.
    import torch

    from sppnet.benchmark.report import ratios_page
    from sppnet.benchmark.side_by_side import SideBySide
    from sppnet.benchmark.timing import compare
    from sppnet.runtime.environment import environment

    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = []
    with SideBySide(device) as side_by_side:
        for comparison in side_by_side.comparisons():
            ratio = compare(*comparison.works(), rounds=config.rounds, seconds=config.seconds)
            print(f"{comparison.name}: {ratio.median:.2f}", file=sys.stderr, flush=True)
            results.append((comparison, ratio))

    machine = environment()
    page = ratios_page(f"Side by side on {machine['hardware']}", results, device == "cuda")
    records = [
        {"name": comparison.name, "ratio": ratio.median, "goal": getattr(comparison.goal, device), **ratio._asdict()}
        for comparison, ratio in results
    ]
    return page, {"comparisons": records, **machine}


def stages(config: DictConfig) -> tuple["Page", dict[str, Any]]:
    """Measures every stage of the configured training and of testing: the page, and the same as plain values."""
    plan = read_plan(config)
    protocols = _read_protocols(config, plan.crop_side)
    from sppnet.benchmark.report import advice, judge, stages_page
    from sppnet.benchmark.stages import TrainingSetup
    from sppnet.classify.training import device_type
    from sppnet.runtime.environment import environment
    from sppnet.runtime.machine import core_count, worker_count

    setup = TrainingSetup(plan, plan.open_data())
    measured = _measure(setup, protocols, config.seconds)

    verdict = judge(setup, measured)
    suggestions = advice(
        setup,
        verdict,
        prepared=plan.source == "prepared",
        workers=worker_count(plan.machine.workers),
        cores=core_count(),
        gpu=device_type(plan.machine) == "cuda",
    )

    machine = environment()
    title = f"{setup.build_network().summary()}, on {machine['hardware']}"
    page = stages_page(title, setup, measured, verdict, suggestions)
    records = {
        "config": plain(config),
        "stages": [stage._asdict() for stage in measured],
        **verdict._asdict(),
        "bottleneck": verdict.bottleneck,
        "advice": suggestions,
        **machine,
    }
    return page, records


def _read_protocols(config: DictConfig, crop_side: int) -> dict[str, ViewProtocol]:
    """Returns the protocols of a configuration by name, in pixels for crops of `crop_side`."""
    protocols = {}
    for name, section in config.views.items():
        pixels = OmegaConf.create(in_pixels(plain(section), crop_side))
        protocols[name] = ViewProtocol(**bound(pixels, ViewProtocol, f"views.{name}."))
    return protocols


def _measure(setup: "TrainingSetup", protocols: dict[str, ViewProtocol], seconds: float) -> "list[Stage]":
    """Measures all stages, each for `seconds`."""
    import torch

    from sppnet.benchmark.stages import device_stages, end_to_end, loading_stages, view_stages
    from sppnet.classify.training import device_type, is_compiled, precision
    from sppnet.runtime.hardware import Hardware
    from sppnet.runtime.machine import worker_count

    machine = setup.plan.machine
    device = torch.device(device_type(machine))
    compiled = is_compiled(machine, set(setup.sizes))
    measured = loading_stages(setup, worker_count(machine.workers), seconds)
    measured += device_stages(setup, device, precision(machine) == "bf16-mixed", compiled, seconds)

    # The slowest stage tells about how many images a whole training processes.
    expected = min(stage.images_per_second for stage in measured if stage.where != "one core")
    measured += end_to_end(setup, expected, 3 * seconds)

    network = setup.build_network().to(device).eval()
    return measured + view_stages(network, setup, protocols, Hardware(accelerator=device.type), seconds)


def command() -> None:
    """Runs the command with the words in sys.argv[1:]."""
    given = set(sys.argv[1:]) & set(WORDS)
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in WORDS]
    run_main(partial(main, given))
