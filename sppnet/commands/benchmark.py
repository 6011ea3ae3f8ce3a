"""Measures training and testing on this machine, stage by stage: `sppnet benchmark --help`."""

import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from sppnet.classify.views import ViewProtocol, in_pixels
from sppnet.commands.arguments import texts
from sppnet.commands.configs import CONFIGS
from sppnet.commands.detect import read_proposer
from sppnet.commands.jobs import one_line_job, run_main
from sppnet.commands.recipes import count_training_images, with_recipe
from sppnet.commands.settings import bound, open_source, plain, resolved
from sppnet.commands.train import read_plan
from sppnet.runtime.names import check_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from sppnet.benchmark.detection import DetectionSettings
    from sppnet.benchmark.stages import Stage, TrainingSetup
    from sppnet.results.page import Page

WORDS = ("references", "detection", "--json")  # that Hydra does not know
_REFERENCE_ROUNDS = _DETECTION_ROUNDS = 3
_CLASSES = 1000  # of the network of a detector, as of one that was trained on ImageNet


def main(words: set[str]) -> None:
    """Runs the command with those of WORDS that were given."""

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="benchmark")
    def job(config: DictConfig) -> None:
        with one_line_job("nothing was changed"):
            config = resolved(config)
            check(config)
            if config.only is not None and "references" not in words:
                raise ValueError(f"only={config.only}: must be null: it is for benchmark.py references")
            page, records = _measurement(words)(config)
            print(json.dumps(records, indent=2) if "--json" in words else page.markdown())

    job()


def _measurement(words: set[str]) -> "Callable[[DictConfig], tuple[Page, dict[str, Any]]]":
    """Returns what the words of a command ask for."""
    if {"references", "detection"} <= words:
        raise ValueError("references, detection: must be one of them; they are two commands")
    return references if "references" in words else detection if "detection" in words else stages


def check(config: DictConfig) -> None:
    """Raises ValueError for wrong settings of the measurements."""
    for key, kinds in (("seconds", int | float), ("rounds", int)):
        if config[key] is None and key == "rounds":
            continue
        if not isinstance(config[key], kinds) or not 0 < config[key] <= 1e6:
            kind = "whole number" if kinds is int else "number"
            raise ValueError(f"{key}={config[key]}: must be a {kind} above 0, at most 1000000")
    _detection_settings(config)
    proposer, options = read_proposer(config.proposals)
    proposer(**options)


def references(config: DictConfig) -> tuple["Page", dict[str, Any]]:
    """Compares ours with plain PyTorch, torchvision and timm: the page, and the same as plain values."""
    groups = chosen_groups(config.only)
    # Imported here because torch takes seconds, and --help should not.
    import torch

    from sppnet.benchmark.bench import Bench
    from sppnet.benchmark.loading_parts import loading_parts
    from sppnet.benchmark.references_report import references_page, references_record
    from sppnet.benchmark.side_by_side import measure
    from sppnet.runtime.environment import environment

    report = partial(print, file=sys.stderr, flush=True)
    with Bench("cuda" if torch.cuda.is_available() else "cpu") as bench:
        measured = measure(bench, groups, config.rounds or _REFERENCE_ROUNDS, config.seconds, report)
        parts = loading_parts(bench) if "loading" in groups else []

    machine = environment()
    page = references_page(f"Side by side on {machine['hardware']}", measured, parts)
    return page, {**references_record(measured, parts), **machine}


def chosen_groups(only: Any) -> list[str]:
    """Returns the groups that `only` names, all of them for None. Raises ValueError for other names."""
    from sppnet.benchmark.side_by_side import GROUPS

    if only is None:
        return list(GROUPS)
    given = OmegaConf.to_container(only) if OmegaConf.is_config(only) else only
    groups = texts("only", given, "a group or several, as in only=[loading,views]")
    check_names("only", groups, GROUPS)
    return groups


def detection(config: DictConfig) -> tuple["Page", dict[str, Any]]:
    """Compares SPP-net's way of detection with R-CNN's, and poolings of windows: the page, and the same as values."""
    plan = read_plan(with_recipe(config))
    from sppnet.benchmark.detection import measure_detection, propose, read_image
    from sppnet.benchmark.detection_report import detection_page, detection_record
    from sppnet.classify.training import device_type
    from sppnet.runtime.environment import environment

    settings, device = _detection_settings(config), device_type(plan.machine)
    image = read_image(settings)
    proposer, options = read_proposer(config.proposals)
    windows = propose(image, proposer(**options), settings.image or "image")
    network = plan.build_network([str(i) for i in range(_CLASSES)]).to(device)
    rounds = config.rounds or _DETECTION_ROUNDS
    times = measure_detection(network, image, windows, settings, rounds=rounds, seconds=config.seconds)

    machine = environment()
    page = detection_page(f"Detection on {machine['hardware']}", settings, times)
    return page, {"config": plain(config), **detection_record(settings, times), **machine}


def stages(config: DictConfig) -> tuple["Page", dict[str, Any]]:
    """Measures every stage of the configured training and of testing: the page, and the same as plain values."""
    plan = read_plan(with_recipe(config, partial(count_training_images, config)))
    protocols = _read_protocols(config, plan.crop_side)
    from sppnet.benchmark.report import advice, judge, stages_page
    from sppnet.benchmark.stages import TrainingSetup
    from sppnet.classify.training import device_type
    from sppnet.runtime.environment import environment
    from sppnet.runtime.machine import core_count, worker_count

    setup = TrainingSetup(plan, open_source(plan.source, plan.data_options))
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


def _detection_settings(config: DictConfig) -> "DetectionSettings":
    """Returns the settings of detection. Raises ValueError for wrong ones."""
    from sppnet.benchmark.detection import DetectionSettings  # torch takes seconds, and --help should not

    keys = ["windows", "scales", "precisions", "threads", "image"]
    return DetectionSettings(**bound(OmegaConf.masked_copy(config, keys), DetectionSettings))


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
