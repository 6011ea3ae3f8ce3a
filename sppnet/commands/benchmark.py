"""Measures training and testing on this machine, stage by stage: python scripts/benchmark.py --help."""

import json
import sys
from functools import partial
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from sppnet.commands.errors import CONFIGS
from sppnet.commands.settings import bound, one_line_job, plain, resolved, run_main
from sppnet.commands.train import read_plan

WORDS = ("references", "--json")  # that Hydra does not know


def main(words: set[str]) -> None:
    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="benchmark")
    def job(config: DictConfig) -> None:
        with one_line_job("nothing was changed"):
            config = resolved(config)
            check(config)
            page, records = (references if "references" in words else stages)(config)
            print(json.dumps(records, indent=2) if "--json" in words else page.markdown())

    job()


def check(config: DictConfig) -> None:
    """Raises what is wrong with the settings of the measurements."""
    for key, kinds in (("seconds", int | float), ("rounds", int)):
        if not isinstance(config[key], kinds) or not 0 < config[key] <= 1e6:
            kind = "whole number" if kinds is int else "number"
            raise ValueError(f"{key}={config[key]}: must be a {kind} above 0, at most 1000000")


def references(config: DictConfig) -> tuple[Any, Any]:
    """Compares our implementations with plain PyTorch."""
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
    about = environment()
    records = [
        {"name": comparison.name, "ratio": ratio.median, "goal": getattr(comparison.goal, device), **ratio._asdict()}
        for comparison, ratio in results
    ]
    page = ratios_page(f"Side by side on {about['hardware']}", results, device == "cuda")
    return page, {"comparisons": records, **about}


def stages(config: DictConfig) -> tuple[Any, Any]:
    """Every stage of the configured training and of testing."""
    plan = read_plan(config)
    import torch

    from sppnet.benchmark.report import advice, judge, stages_page
    from sppnet.benchmark.stages import TrainingSetup, device_stages, end_to_end, loading_stages, view_stages
    from sppnet.classify.hardware import Hardware
    from sppnet.classify.training import device_type, is_compiled, precision
    from sppnet.classify.views import ViewProtocol, in_pixels
    from sppnet.runtime.environment import environment
    from sppnet.runtime.machine import core_count, worker_count

    protocols = {}
    for name, section in config.views.items():
        pixels = OmegaConf.create(in_pixels(plain(section), plan.crop_side))
        protocols[name] = ViewProtocol(**bound(pixels, ViewProtocol, f"views.{name}."))
    training = TrainingSetup(plan, plan.open_data())
    device = torch.device(device_type(plan.machine))
    workers = worker_count(plan.machine.workers)
    compiled = is_compiled(plan.machine, set(training.sizes))
    found = loading_stages(training, workers, config.seconds)
    found += device_stages(training, device, precision(plan.machine) == "bf16-mixed", compiled, config.seconds)
    expected = min(stage.images_per_second for stage in found if stage.where != "one core")
    found += end_to_end(training, expected, 3 * config.seconds)
    hardware = Hardware(accelerator=device.type)
    found += view_stages(training.build_network().to(device).eval(), training, protocols, hardware, config.seconds)
    verdict = judge(training, found)
    ideas = advice(
        training,
        verdict,
        prepared=plan.source == "prepared",
        workers=workers,
        cores=core_count(),
        gpu=device.type == "cuda",
    )
    about = environment()
    page = stages_page(f"{training.build_network().summary()}, on {about['hardware']}", training, found, verdict, ideas)
    records = {
        "config": plain(config),
        "stages": [stage._asdict() for stage in found],
        **verdict._asdict(),
        "bottleneck": verdict.bottleneck,
        "advice": ideas,
        **about,
    }
    return page, records


def command() -> None:
    given = set(sys.argv[1:]) & set(WORDS)
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in WORDS]
    run_main(partial(main, given))
