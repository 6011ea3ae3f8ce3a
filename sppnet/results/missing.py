"""What a table still lacks: the command for every missing training, test and transfer, with estimates of times."""

import re
import shlex
from collections.abc import Sequence
from typing import Any

from sppnet.data.folders import ILSVRC_2012
from sppnet.results.costs import estimate, training_work
from sppnet.results.paper import (
    PAPER,
    PAPER_EPOCHS,
    PAPER_LEVELS,
    PAPER_SIZES,
    TableSpec,
    experiment_of,
    suits,
    variant_label,
)
from sppnet.results.paper_transfer import TransferColumn
from sppnet.results.runs import VARIANTS, Run, naming_config
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.overrides import hydra_value

_IMAGENET_CLASSES = 1000


def missing_tests(spec: TableSpec, seeds: Sequence[Run]) -> list[str]:
    """Returns a line with a command per unfinished run, and one per set of protocols that finished runs lack.

    Args:
        seeds: runs of one network that differ in seed only.
    """
    label, wanted, lines = variant_label(seeds[0]), spec.views_of(seeds), []
    untested: dict[tuple[str, ...], list[Run]] = {}
    for run in seeds:
        missing = tuple(views for views, _ in wanted if views not in run.scores)
        if run.result is None:
            lines.append(f"{label}, seed {run.config['seed']}, has not finished training: {training_command(run)}")
        elif missing:
            untested.setdefault(missing, []).append(run)

    for missing, runs in untested.items():
        numbers = ", ".join(str(run.config["seed"]) for run in runs)
        paths = [str(run.path) for run in runs]
        value = hydra_value(paths[0] if len(paths) == 1 else paths)
        command = _shell_command("evaluate", f"run={value}", f"views={hydra_value(list(missing))}")
        lines.append(f"{label}, seed{'s' if len(runs) > 1 else ''} {numbers}, by {', '.join(missing)}: {command}")
    return lines


def training_command(run: Run) -> str:
    """Returns the command that resumes the training of a run, or shows its result."""
    words = [f"run={hydra_value(str(run.path))}", *_overrides(run.config), f"seed={run.config['seed']}"]
    return _shell_command("train", *words)


def missing_trainings(spec: TableSpec, block: Sequence[Run], runs: Sequence[Run]) -> list[str]:
    """Returns a line with a command for every variant that the table should have and `block` does not.

    Args:
        block: runs that differ in pyramid, sizes and seed only.
        runs: all runs, to estimate times from.
    """
    present = {run.variant for run in block}
    return [
        _missing_training(block, variant, spec, runs)
        for variant in VARIANTS
        if variant not in present and variant in spec.variants and _belongs(block, variant)
    ]


def _belongs(block: Sequence[Run], variant: str) -> bool:
    """Whether a table of the network of these runs should have this variant."""
    if any(run.on_imagenet for run in block):
        return (block[0].architecture, variant) in PAPER
    return variant in ("none", "single", "alternate")


def _missing_training(block: Sequence[Run], variant: str, spec: TableSpec, runs: Sequence[Run]) -> str:
    sibling = next((run for run in block if run.result is not None), block[0])
    config = _config_of(sibling, variant)
    seeds = sorted({int(run.config["seed"]) for run in block})
    words = [*(["-m"] if len(seeds) > 1 else []), *_name_override(sibling, variant), *_overrides(config)]
    command = _shell_command("train", *words, f"seed={','.join(map(str, seeds))}")

    if sibling.on_imagenet:
        time = paper_estimate(sibling.architecture, variant, runs)
    elif sibling.result is None:
        time = "no finished run to estimate from"
    else:
        with naming_config(sibling):
            work = training_work(config, sibling.result.num_classes, sibling.result.training_images)
        time = estimate(work, runs)

    views = ", ".join(views for views in spec.views if suits(variant, views))
    return f"{VARIANTS[variant]}, by {views} ({time}{', each seed' if len(seeds) > 1 else ''}): {command}"


def _config_of(sibling: Run, variant: str) -> dict[str, Any]:
    """Returns the configuration of `sibling` with the pyramid and the sizes of another variant.

    The largest size stays that of `sibling`; the others keep the ratio that the paper's have to 224.
    """
    largest = max(size for size in sibling.sizes if isinstance(size, int))
    sizes = [round(size * largest / 224) for size in PAPER_SIZES[variant]]
    return {
        **sibling.config,
        "pooling": {"levels": PAPER_LEVELS[variant]},
        "sizes": {"uniform" if variant == "random" else "cycle": sizes},
    }


def _name_override(sibling: Run, variant: str) -> list[str]:
    """Returns [name=NAME] for another variant of `sibling`; [] unless its name ends in its variant."""
    if sibling.on_imagenet:
        return [f"name={experiment_of(sibling.architecture, variant)}"]
    match = re.fullmatch(rf"(.+)_{sibling.variant}-seed\d+-[0-9a-f]+", sibling.path.name)
    return [f"name={hydra_value(f'{match[1]}_{variant}')}"] if match else []


def _overrides(config: dict[str, Any]) -> list[str]:
    """Returns the overrides of `train` that give this configuration without its seed, whatever the defaults."""
    recipe, sizes = config["recipe"], config["sizes"]
    words = [
        f"backbone={config['backbone']['architecture']}",
        f"data={config['data']['source']}",
        f"recipe={'paper' if recipe.get('warmup_epochs') is None else 'fast'}",
        f"sizes={'random' if 'uniform' in sizes else 'single'}",
    ]
    for section, value in config.items():
        if isinstance(value, dict):
            keys = [key for key in value if key not in ("architecture", "source")]
            words += [f"{section}.{key}={hydra_value(value[key])}" for key in keys]
        elif section != "seed":
            words.append(f"{section}={hydra_value(value)}")
    return words


def paper_command(architecture: str, variant: str, runs: Sequence[Run]) -> str:
    """Returns the command that trains a network of PAPER, on the data of the first of `runs` on ImageNet, if any."""
    data = next((run.config["data"] for run in runs if run.on_imagenet), {"source": "imagenet"})
    words = [f"experiment={experiment_of(architecture, variant)}"]
    words += [f"data={data['source']}"] * (data["source"] != "imagenet")
    words.append(f"data.root={hydra_value(data['root']) if data.get('root') else 'PATH'}")
    return _shell_command("train", *words)


def paper_estimate(architecture: str, variant: str, runs: Sequence[Run]) -> str:
    """Estimates the time that training a network of PAPER takes, from the finished runs."""
    normalization = "within_channel" if architecture == "zf5" else "across_channels"
    config = {
        "backbone": {"architecture": architecture, "width": 1.0, "normalization": normalization},
        "pooling": {"levels": PAPER_LEVELS[variant]},
        "sizes": {"cycle": PAPER_SIZES[variant]},
        "hidden": 4096,
        "recipe": {"epochs": PAPER_EPOCHS[architecture]},
    }
    return estimate(training_work(config, _IMAGENET_CLASSES, ILSVRC_2012[0]), runs)


def transfer_command(column: TransferColumn, runs: Sequence[Run]) -> str:
    """Returns the command that measures a column of Table 6 or 7, by the finished run of its network if there is one.

    Args:
        runs: to look for the network in.
    """
    network = (column.architecture, column.variant)
    return _command_with_network("transfer", column.experiment, network, runs)


def detection_command(experiment: str, runs: Sequence[Run]) -> str:
    """Returns the command that measures rows of Table 9, by the finished run of ZF-5 if there is one.

    Args:
        experiment: the file in configs/experiment.
        runs: to look for the network in.
    """
    return _command_with_network("detect", experiment, ("zf5", "single"), runs)


def _command_with_network(name: str, experiment: str, network: tuple[str, str], runs: Sequence[Run]) -> str:
    """Returns a command that takes a network trained on ImageNet, given by its architecture and variant."""
    trained = [run for run in runs if run.on_imagenet and run.result and (run.architecture, run.variant) == network]
    path = hydra_value(str(trained[0].path)) if trained else "RUN"
    command = _shell_command(name, f"experiment={experiment}", f"run={path}", "data.root=PATH")
    return command if trained else f"{command} with RUN from {paper_command(*network, runs)}"


def _shell_command(name: str, *words: str) -> str:
    """Returns a command of this package that a shell splits into these words, between backticks."""
    return f"`{shown_command(name)} {shlex.join(words)}`"
