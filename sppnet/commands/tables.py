"""Prints and writes tables and plots from finished runs: `sppnet tables --help`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sppnet.commands.arguments import read_words, texts
from sppnet.commands.jobs import one_line_command
from sppnet.commands.settings import bound
from sppnet.commands.startup import interrupt_by_exception
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.files import check_local

if TYPE_CHECKING:
    from sppnet.results.detector_runs import DetectorTest
    from sppnet.results.page import Page
    from sppnet.results.runs import Run
    from sppnet.results.transfers import Transfer

_HELP = """\
Tables and plots from finished runs, made from records and saved scores; no network is run.

{command} WHAT [runs=PATTERN] [out=FOLDER] [combine=A+B]

table2 table3 table4   the paper's classification tables, paper beside ours where the data is ImageNet
table6 table7 table8   VOC 2007 and Caltech-101 by SVMs on features, paper beside ours where trained on ImageNet
table9 table10         VOC 2007, detection by the rows of Table 9, paper beside ours where the detectors compare
table11 table12        the same by class; two networks and their combination
all                    tables 2 to 4; 6 to 8 if there are decisions of transfer; 9 to 11 if there are detections
settings               finished runs, the best first, with the settings in which they differ
sweep                  error against the pyramid, for runs that differ in pooling.levels and seed
scales                 error against the test scale, for runs tested with scales=[...]
views                  how close every protocol's scores come to those of ten_crop, for the same runs
compare                runs on the same images: paired tests against the first, and their combination
power                  how many seeds show which gain over the network without a pyramid
classes                errors by class, confusions and calibration of one run
transfer               all features that were transferred, beside the untrained network and raw pixels
detection              all detectors that were tested: gains, classes, precision-recall curves, pictures

runs=runs              folders of runs, run directories, or patterns of them: runs=[A,B] or runs='runs/demo*'
out=runs/tables        where WHAT.md and WHAT.html are written
combine=pool5+fc7      for transfer: features that are combined as well, by the mean of their SVMs' decision values; a
                       name is the end of the path of the decisions, and may hold *: caltech101-full392-*/fc7
combine=A+B            for table12 and detection: detections that are combined, duplicates suppressed on the union; a
                       name is the end of their path: a/detections/ftfc7+b/detections/ftfc7
"""
_PAPER_TABLES = ("table2", "table3", "table4")
_TRANSFER_TABLES = ("table6", "table7", "table8")
_DETECTION_TABLES = ("table9", "table10", "table11", "table12")
_RUN_PAGES = ("settings", "sweep", "scales", "views", "compare", "power", "classes")
CHOICES = (*_PAPER_TABLES, *_TRANSFER_TABLES, *_DETECTION_TABLES, "all", *_RUN_PAGES, "transfer", "detection")
_COMBINING = ("transfer", "table12", "detection")


def settings(*, runs: Any = "runs", out: str = "runs/tables", combine: Any = None) -> tuple[list[str], Path, list[str]]:
    """Returns the patterns of runs, the folder to write to, and the combinations.

    The signature is the schema of the command line.
    """
    patterns = texts("runs", runs, "a folder, a pattern, or a list of them: runs=[A,B]")
    combinations = [] if combine is None else texts("combine", combine, "A+B, or a list of such: combine=[A+B,A+C]")
    return patterns, Path(out), combinations


def main(arguments: list[str]) -> None:
    """Prints and writes the page of one of CHOICES, or those of all tables of the paper."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_HELP.format(command=shown_command("tables")))
        return
    choice, *words = arguments
    if choice not in CHOICES:
        raise ValueError(f"{choice}: must be one of {', '.join(CHOICES)}")
    config = read_words(words, "runs=PATTERN, out=FOLDER or combine=A+B")
    patterns, out, combine = settings(**bound(config, settings))
    if combine and choice not in _COMBINING:
        raise ValueError(
            f"combine={combine[0]}: is for {', '.join(_COMBINING)}; compare combines classifiers by itself"
        )

    check_local(out)
    found = _find(choice, patterns)
    for name in _pages(choice, found):
        page = _page_of(name, found, combine)
        print(page.markdown())
        print("written: " + ", ".join(str(file) for file in page.write(out, name)) + "\n")


class _Found(NamedTuple):
    """What the patterns of runs match, as far as the choice needs it."""

    runs: "list[Run]"
    transfers: "list[Transfer]"
    detectors: "list[DetectorTest]"


def _find(choice: str, patterns: list[str]) -> _Found:
    """Reads what the patterns of runs match, as far as one of CHOICES needs it."""
    # Imported here because torch takes two seconds, and --help should not.
    from sppnet.results.detector_runs import read_detector_runs
    from sppnet.results.runs import read_runs
    from sppnet.results.transfers import read_transfers

    return _Found(
        read_runs(patterns),
        read_transfers(patterns) if choice in (*_TRANSFER_TABLES, "transfer", "all") else [],
        read_detector_runs(patterns) if choice in (*_DETECTION_TABLES, "detection", "all") else [],
    )


def _pages(choice: str, found: _Found) -> tuple[str, ...]:
    """Returns the pages that a choice is for: with "all", the tables of transfer and detection where they were run."""
    if choice != "all":
        return (choice,)
    # Table 12 needs two networks, which few have.
    return (
        _PAPER_TABLES
        + (_TRANSFER_TABLES if found.transfers else ())
        + (_DETECTION_TABLES[:3] if found.detectors else ())
    )


def _page_of(name: str, found: _Found, combine: list[str]) -> "Page":
    """Returns the page of one of CHOICES but "all"."""
    # Imported here because they import torch, as above.
    from sppnet.commands.naming import neutral_settings
    from sppnet.results.comparisons import comparison_page
    from sppnet.results.power_page import power_page
    from sppnet.results.run_page import classes_page
    from sppnet.results.scales import scales_page
    from sppnet.results.settings_page import settings_page
    from sppnet.results.sweeps import pyramid_page, views_page
    from sppnet.results.tables import table_page
    from sppnet.results.transfer_page import transfer_page
    from sppnet.results.transfer_tables import table8_page, transfer_table_page

    runs, transfers, detectors = found
    if name in _PAPER_TABLES:
        return table_page(name, runs)
    if name == "transfer":
        return transfer_page(transfers, combine)
    if name in _TRANSFER_TABLES:
        return table8_page(transfers) if name == "table8" else transfer_table_page(name, transfers, runs)
    if name in _DETECTION_TABLES or name == "detection":
        return _detection_page(name, detectors, runs, combine)

    if not runs:
        raise ValueError(f"runs: {name} is for trained runs, and only decisions of transfer or detections are there")
    if name == "classes":
        if len(runs) != 1:
            raise ValueError(f"runs: classes is for one run, and these are {len(runs)}")
        return classes_page(runs[0])
    if name == "settings":
        return settings_page(runs, neutral_settings())
    pages = {
        "sweep": pyramid_page,
        "scales": scales_page,
        "views": views_page,
        "compare": comparison_page,
        "power": power_page,
    }
    return pages[name](runs)


def _detection_page(name: str, detectors: "list[DetectorTest]", runs: "list[Run]", combine: list[str]) -> "Page":
    """Returns a table of detection, or the page of all detectors."""
    from sppnet.results.detection_page import detection_page
    from sppnet.results.detection_tables import detection_table_page, table11_page, table12_page

    if name == "detection":
        return detection_page(detectors, combine)
    if name == "table12":
        return table12_page(detectors, runs, combine)
    return table11_page(detectors, runs) if name == "table11" else detection_table_page(name, detectors, runs)


def command() -> None:
    """Runs the command with the words in sys.argv[1:]."""
    with one_line_command():
        interrupt_by_exception()
        main(sys.argv[1:])
