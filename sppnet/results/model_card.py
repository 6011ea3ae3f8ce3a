"""Model cards: what a published network is, how good it is and how it was trained, made from the records of its run."""

from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sppnet.network import SPPNet
from sppnet.results.comparisons import errors_table, protocol_lines, wrong
from sppnet.results.page import markdown_table
from sppnet.results.records import Result, shows_top5
from sppnet.results.runs import Run
from sppnet.results.scores import Scores
from sppnet.results.statistics import wilson_interval
from sppnet.runtime.names import printable
from sppnet.runtime.progress import duration

_VALIDATION = "validation in training"  # protocol of a run that was not tested afterwards
_MOST_CLASSES = 20  # named on a card


class CardAbout(NamedTuple):
    """What a card says that no record holds."""

    name: str  # of the network
    address: str  # by which others load it
    license: str  # as the Hugging Face Hub names it, such as "mit"; "unknown"


def model_card(network: SPPNet, run: Run | None, about: CardAbout) -> str:
    """Returns a card in Markdown, which begins with the metadata that the Hugging Face Hub reads.

    Args:
        network: what is published.
        run: its finished run; None for a checkpoint without one.
        about: more to say.
    """
    folder = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=folder, undefined=StrictUndefined).get_template("model_card.md.jinja")
    result = None if run is None else run.result
    return template.render(
        metadata=_metadata(network, run, about),
        name=about.name,
        address=about.address,
        license=about.license,
        pyramid=network.levels is not None,
        side=network.input_side,
        summary=network.summary(),
        classes=_class_names(network),
        data=None if run is None else run.config["data"]["source"],
        n=None if result is None else f"{result.n:,}",
        **_errors(run),
        training={} if run is None or result is None else _training(run, result),
    )


def _class_names(network: SPPNet) -> str:
    # As code, in which nothing is Markdown or HTML.
    names = [f"`{printable(name).replace('`', '_')}`" for name in network.classes or ()]
    more = f" and {len(names) - _MOST_CLASSES} more, all in config.json" if len(names) > _MOST_CLASSES else ""
    return f"{network.num_classes:,}" + (f": {', '.join(names[:_MOST_CLASSES])}{more}" if names else "")


def _errors(run: Run | None) -> dict[str, Any]:
    """Returns the table of errors by protocol, and what each protocol is."""
    if run is None or run.result is None:
        return {"errors": "", "protocols": []}
    if not run.scores:
        result = run.result
        rows = []
        counts = [result.top1_wrong, result.top5_wrong][: 2 if shows_top5(result.num_classes) else 1]
        for count in counts:
            low, high = wilson_interval(count, result.n)
            rows.append(f"{100 * count / result.n:.2f} ({100 * low:.2f} to {100 * high:.2f})")
        headers = ["views", "images", "top-1 error in % (95 % interval over images)", "top-5 error in %"]
        table = markdown_table(headers[: 2 + len(counts)], [[_VALIDATION, f"{result.n:,}", *rows]])
        return {"errors": table, "protocols": [f"{_VALIDATION}: {result.protocol}"]}

    tested = {views: {run.path.name: scores} for views, scores in run.scores.items()}
    headers, rows_of_runs = errors_table(tested)
    rows_without_run = [[views, *cells] for views, _, *cells in rows_of_runs]
    return {
        "errors": markdown_table([headers[0], *headers[2:]], rows_without_run),
        "protocols": protocol_lines(tested),
    }


def _training(run: Run, result: Result) -> dict[str, str]:
    versions = ", ".join(f"{name} {version}" for name, version in (result.versions or {}).items() if version)
    return {
        "data": f"{result.training_images:,} training images of {run.config['data']['source']}",
        "settings": run.setting_text(),
        "sizes in pixels": ", ".join(map(str, run.sizes)),
        "seed": str(run.config["seed"]),
        "time": f"{duration(result.seconds)} on {result.hardware}, with validation",
        "versions": versions,
        "commit": str(result.commit),
        "checkpoint": f"SHA-256 {result.checkpoint}",
    }


def _metadata(network: SPPNet, run: Run | None, about: CardAbout) -> str:
    """Returns the metadata of the Hugging Face Hub, as YAML."""
    from huggingface_hub import EvalResult, ModelCardData  # takes a second

    results = []
    if run is not None and run.result is not None:
        data = run.config["data"]["source"]
        errors = {views: _error(scores) for views, scores in run.scores.items()}
        for views, error in (errors or {_VALIDATION: run.result.top1_error}).items():
            result = EvalResult(
                task_type="image-classification",
                dataset_type=data,
                dataset_name=data,
                dataset_split="validation",
                metric_type="top-1-error",
                metric_name=f"top-1 error, {views}",
                metric_value=round(error, 6),
            )
            results.append(result)
    card = ModelCardData(
        library_name="sppnet",
        license=about.license,
        pipeline_tag="image-classification",
        tags=["spatial-pyramid-pooling", str(network.backbone.options["architecture"]), "arxiv:1406.4729"],
        model_name=about.name if results else None,
        eval_results=results or None,
    )
    return card.to_yaml()


def _error(scores: Scores) -> float:
    return float(wrong(scores).mean())
