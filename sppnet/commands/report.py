"""Makes pages about finished runs, with images: `sppnet report --help`."""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from sppnet.commands.arguments import read_words, texts
from sppnet.commands.errors import one_line
from sppnet.commands.jobs import one_line_command
from sppnet.commands.settings import bound, bound_source, open_source
from sppnet.commands.startup import interrupt_by_exception
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.files import check_local

if TYPE_CHECKING:
    from sppnet.results.report import Results
    from sppnet.results.runs import Run
    from sppnet.results.scores import Scores
    from sppnet.results.tested_images import TestedImages

_HELP = """\
Pages about finished runs: an index with learning curves; per run its errors by class, confusions and worst mistakes
with images, calibration, errors against the size of images; and the tables that compare the runs. Made from records,
saved scores and the images; no network is run.

{command} [runs=PATTERN] [out=FOLDER] [views=NAME] [data.root=PATH]

runs=runs              folders of runs, run directories, or patterns of them: runs=[A,B] or runs='runs/demo*'
out=runs/report        where index.html and the other pages are written; each is one file that needs no other
views=full             the protocol of what is shown of one protocol only; by default the one with the lowest error of
                       each run, and for runs that were not tested by it
data.root=PATH         where the images of the runs are now, if they were moved; other keys of data work, too

{command} runs='runs/table2_*' out=table2-report
"""
_FORM = "runs=PATTERN, out=FOLDER, views=NAME or data.root=PATH"


def settings(
    *, runs: Any = "runs", out: str = "runs/report", views: str | None = None, data: dict[str, Any] | None = None
) -> tuple[list[str], Path, str | None, dict[str, Any]]:
    """Returns the patterns of runs, the folder to write to, the protocol, and the changed keys of the data.

    The signature is the schema of the command line.
    """
    return texts("runs", runs, "a folder, a pattern, or a list of them: runs=[A,B]"), Path(out), views, data or {}


def main(arguments: list[str]) -> None:
    """Writes a report."""
    if {"-h", "--help"} & set(arguments):
        print(_HELP.format(command=shown_command("report")))
        return
    patterns, out, views, data = settings(**bound(read_words(arguments, _FORM), settings))
    # Imported here because torch takes a second, and --help should not.
    from sppnet.results.detector_runs import read_detector_runs
    from sppnet.results.index_page import INDEX
    from sppnet.results.report import Results, write_report
    from sppnet.results.runs import read_runs
    from sppnet.results.transfers import read_transfers

    check_local(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out}: found a file, expected a new folder or the one of a report")
    if out.is_dir() and any(out.iterdir()) and not (out / INDEX).is_file():
        raise ValueError(f"out={out}: found a folder with other files, expected a new one or that of a report")

    results = Results(read_runs(patterns), read_transfers(patterns), read_detector_runs(patterns))
    _check_views(results, views)
    files = write_report(results, out, views, _ImageFinder(data))
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"written: {files[-1]} and {len(files) - 1} pages that it leads to, {size:.1f} MB")


def _check_views(results: "Results", views: str | None) -> None:
    """Raises ValueError for a protocol that no run was tested by."""
    known = sorted({name for run in results.runs for name in run.scores})
    if views is not None and views not in known:
        raise ValueError(f"views={views}: no run was tested by it; must be one of {', '.join(known) or 'none'}")


class _ImageFinder:
    """Finds the images of the tests of runs. Runs on the same images share them.

    Args:
        data: keys that differ from the data of the tests, such as root.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.found: dict[str, TestedImages | str] = {}

    def __call__(self, run: "Run") -> "TestedImages | str | None":
        scores = next(iter(run.scores.values()), None)
        if scores is None:
            return None
        tested_on = scores.about.get("data")
        section = {**(tested_on if isinstance(tested_on, dict) else run.config["data"]), **self.data}
        if self.data:
            bound_source(OmegaConf.create(section))  # a misspelt key must stop the command
        key = f"{section} {scores.about.get('images')} {scores.about.get('classes')}"
        if key not in self.found:
            self.found[key] = _find_images(section, scores)
            if isinstance(self.found[key], str):
                print(self.found[key], flush=True)
        return self.found[key]


def _find_images(section: dict[str, Any], scores: "Scores") -> "TestedImages | str":
    """Returns the images of scores, or a line that says why they cannot be shown."""
    from sppnet.results.tested_images import find_tested_images

    try:
        with warnings.catch_warnings(action="ignore"):
            return find_tested_images(open_source(*bound_source(OmegaConf.create(section))), scores)
    except (ValueError, OSError) as error:
        place = section.get("file") or section.get("root") or section.get("name") or ""
        return (
            f"without thumbnails and sizes of the images of {section.get('source')} {place}: {one_line(error)}; if "
            "they were moved, give data.root=PATH"
        )


def command() -> None:
    """Runs the command with the words in sys.argv[1:]."""
    with one_line_command():
        interrupt_by_exception()
        main(sys.argv[1:])
