"""Tests trained networks by the paper's protocols: `sppnet evaluate --help`."""

from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from sppnet.commands.configs import CONFIGS
from sppnet.commands.evaluated_runs import find_runs, read_tested_run
from sppnet.commands.jobs import one_line_job, run_main
from sppnet.commands.settings import bound, resolved, typed
from sppnet.results.page import markdown_table

if TYPE_CHECKING:
    from sppnet.commands.scoring import OpenData
    from sppnet.results.scores import Scores


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="evaluate")
def main(config: DictConfig) -> None:
    """Runs the command on a configuration that Hydra composed."""
    with one_line_job("the same command resumes with the images that are left"):
        evaluate(resolved(config))


def check(config: DictConfig) -> None:
    """Raises ValueError for a resolved configuration that cannot be tested. Opens no data."""
    from sppnet.runtime.hardware import Hardware  # torch takes seconds, and --help should not

    config = typed(config, settings)
    Hardware(**bound(config.hardware, Hardware, "hardware."))
    for path in find_runs(config.run):
        read_tested_run(config, path)


def settings(
    *,
    run: Any,
    views: dict[str, Any],
    scales: list[int] | None,
    crop_side: int | None,
    data: dict[str, Any] | None,
    part: str,
    exclude: list[str],
    scores: str | None,
    hardware: dict[str, Any],
) -> None:
    """The schema of configs/evaluate.yaml; sections are checked against the functions that take them."""


def evaluate(config: DictConfig) -> None:
    """Tests every run that a resolved configuration names, and prints their errors and comparisons."""
    config = typed(config, settings)
    paths = find_runs(config.run)
    if config.scores and len(paths) > 1:
        raise ValueError(f"scores={config.scores}: is for one run, and run={config.run} names {len(paths)}")
    runs = [read_tested_run(config, path) for path in paths]

    # Imported here because torch takes seconds, and --help and the errors above should not.
    from sppnet.commands.scoring import score_run
    from sppnet.runtime.hardware import Hardware

    hardware = Hardware(**bound(config.hardware, Hardware, "hardware."))
    tested: dict[str, dict[str, Scores]] = {}
    opened: dict[str, OpenData] = {}
    for run in runs:
        for title, scores in score_run(config, run, hardware, opened):
            tested.setdefault(title, {})[str(run.path)] = scores
    if not tested:
        raise ValueError(f"views={list(config.views)}: none of them suits the networks")
    _print_errors(tested, several=len(runs) > 1)


def _print_errors(tested: dict[str, dict[str, "Scores"]], several: bool) -> None:
    """Prints the tables of title -> run -> scores."""
    from sppnet.results.comparisons import comparisons_table, errors_table, protocol_lines  # they load torch too

    print("\n".join(protocol_lines(tested)) + "\n")
    print(markdown_table(*errors_table(tested)))
    if several:
        print(markdown_table(*comparisons_table(tested)))


def command() -> None:
    """Runs the command with the words in sys.argv[1:]."""
    run_main(main)
