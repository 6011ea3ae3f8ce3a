"""Shows what a trained network looks at: `sppnet explain --help`."""

from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from sppnet.commands.configs import CONFIGS
from sppnet.commands.evaluated_runs import find_runs
from sppnet.commands.jobs import one_line_job, run_main
from sppnet.commands.photos import check_photo_settings, check_photos_exist, photo_hardware, photo_places
from sppnet.commands.settings import bound, plain, resolved
from sppnet.runtime.rules import SEED

# Keys of one way to explain, which do nothing in the other.
_OF_DATA = ("data", "part", "exclude", "top", "check", "grey", "seed")
_OF_PHOTOS = ("class", "against")

_MOST = {"most_filters": 1000, "top": 100, "check": 1_000_000, "grey": 4096, "scale": 4096}


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="explain")
def main(config: DictConfig) -> None:
    """Runs the command on a configuration that Hydra composed."""
    with one_line_job("no file was written"):
        explain(resolved(config))


def settings(
    *,
    run: Any,
    layer: str | None,
    filters: list[int] | None,
    most_filters: int | None,
    scale: int | None,
    page: str | None,
    data: dict[str, Any] | None,
    part: str,
    exclude: list[str],
    top: int,
    check: int | None,
    grey: int,
    seed: int,
    images: Any,
    class_name: str | None,
    against: str | None,
    hardware: dict[str, Any],
) -> None:
    """The schema of configs/explain.yaml, in which `class_name`, as Python has to write it, is `class`."""


def check(config: DictConfig) -> DictConfig:
    """Checks a resolved configuration, and returns it with values of the types of `settings`.

    Opens no data and loads no network. Raises ValueError if it cannot be run.
    """
    defaults: Any = OmegaConf.load(CONFIGS / "explain.yaml")
    renamed = {("class_name" if key == "class" else key): value for key, value in plain(config).items()}
    typed = bound(OmegaConf.create(renamed), settings)
    config = OmegaConf.create({("class" if key == "class_name" else key): value for key, value in typed.items()})

    unused, place = (_OF_DATA, "data, not images=PLACE") if config.images else (_OF_PHOTOS, "images=PLACE")
    for key in unused:
        if config[key] != defaults[key]:
            raise ValueError(f"{key}={config[key]}: is for {place}")
    _check_numbers(config)
    if len(runs := find_runs(config.run)) > 1:
        raise ValueError(f"run={config.run}: names {len(runs)} runs, and one at a time is explained")
    check_photo_settings(photo_places(config.images) if config.images else ".", None, config.page)
    photo_hardware(config.hardware)
    return config


def _check_numbers(config: DictConfig) -> None:
    for key, most in _MOST.items():
        if config[key] is not None and not 1 <= config[key] <= most:
            raise ValueError(f"{key}={config[key]}: must be from 1 to {most:,}")
    if config.check == 1:
        raise ValueError("check=1: must be from 2, as one image has no interval")
    if not SEED.holds(config.seed):
        raise ValueError(f"seed={config.seed}: must be {SEED.words.removeprefix('a whole number ')}")
    filters = config.filters
    if filters is not None and (not filters or min(filters) < 0 or len(set(filters)) < len(filters)):
        raise ValueError(f"filters={filters}: must be one or more numbers from 0, each once")


def explain(config: DictConfig) -> None:
    """Makes the page that a resolved configuration asks for."""
    check_photos_exist(config.get("images"))
    config = check(config)

    # Imported here because torch takes seconds, and --help and the errors above should not.
    from sppnet.commands.explanations import explain_data, explain_photos

    run = find_runs(config.run)[0]
    if config.images:
        explain_photos(config, run)
    else:
        explain_data(config, run)


def command() -> None:
    """Runs the command with the words in sys.argv[1:]."""
    run_main(main)
