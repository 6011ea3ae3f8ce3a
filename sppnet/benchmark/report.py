"""Reports of a benchmark: the bottleneck of a run, advice and its expected time."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from sppnet.benchmark.stages import FORWARD, LOADER, Stage, TrainingSetup, input_name, step_name, total_name
from sppnet.results.page import Page
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.progress import duration


class Verdict(NamedTuple):
    """What the rates of the stages mean for a run, in images/s and seconds."""

    loading: float
    computing: float  # of input and step, over the sizes of a cycle
    total: float
    epoch_seconds: float
    run_seconds: float

    @property
    def bottleneck(self) -> str:
        """The slower side: "loading" or "computing"."""
        return "loading" if self.loading < self.computing else "computing"

    @property
    def efficiency(self) -> float:
        """The end-to-end rate as a share of the rate of the slower side by itself."""
        return self.total / min(self.loading, self.computing)


def judge(setup: TrainingSetup, stages: Sequence[Stage]) -> Verdict:
    """Computes the verdict from all stages but those of testing by views.

    The input and the step of a size run one after the other, and sizes alternate. Validation runs at the rate of the
    loader or of the forward pass, whichever is lower.
    """
    rates = {stage.name: stage.images_per_second for stage in stages}
    sizes, recipe = setup.sizes, setup.plan.recipe
    computing = [1 / (1 / rates[input_name(size)] + 1 / rates[step_name(size)]) for size in sizes]
    total = statistics.harmonic_mean([rates[total_name(size)] for size in sizes])

    train = len(setup.data.train) / total
    validate = len(setup.data.val) / min(rates[FORWARD], rates[LOADER])
    run = recipe.epochs * (train + validate / setup.plan.machine.validate_every)
    return Verdict(rates[LOADER], statistics.harmonic_mean(computing), total, train + validate, run)


def advice(setup: TrainingSetup, verdict: Verdict, *, prepared: bool, workers: int, cores: int, gpu: bool) -> list[str]:
    """Returns what to change, the most effective first."""
    ideas = []
    if verdict.bottleneck == "loading":
        if not prepared:
            ideas.append(f"prepare the data: {shown_command('prepare_data')}, then data=prepared")
        if workers < cores:
            ideas.append(f"trainer.workers={cores}: {workers} workers leave {cores - workers} cores idle")
        return ideas or ["more cores; loading has no cheaper setting left"]

    if not gpu:
        ideas.append("a GPU; on a CPU backbone.width=0.25 and recipe.epochs make runs shorter")
    elif setup.plan.recipe.batch_size < 256:
        ideas.append(f"recipe.batch_size=256: a batch of {setup.plan.recipe.batch_size} may not fill the GPU")
    return ideas or ["more devices: trainer=ddp"]


def stages_page(
    title: str, setup: TrainingSetup, stages: Sequence[Stage], verdict: Verdict, ideas: Sequence[str]
) -> Page:
    """Makes the page of stages, bottleneck, advice and expected time of a run."""
    page = Page(title)
    table = [
        [
            stage.name,
            f"{stage.images_per_second:,.0f}" if stage.images_per_second >= 10 else f"{stage.images_per_second:.1f}",
            "" if stage.testing else f"{verdict.total / stage.images_per_second:.0%}",
            stage.where,
            stage.remark,
        ]
        for stage in stages
    ]
    page.table(["stage", "images/s", "share of the time", "on", "remark"], table)
    page.text(
        "Share: how much of the time of a training image the stage would take by itself. Stages that run side by side "
        "add up to more than 100 %."
    )

    slower = "the loader" if verdict.bottleneck == "loading" else "the device"
    page.text(
        f"Bottleneck: {slower} (loader {verdict.loading:,.0f} images/s, device {verdict.computing:,.0f}); end to end "
        f"{verdict.total:,.0f} images/s, {verdict.efficiency:.0%} of the slower one by itself."
    )
    page.text("What helps: " + "; ".join(ideas) + ".")
    page.text(
        f"An epoch of {len(setup.data.train):,} images with its validation will take about "
        f"{duration(verdict.epoch_seconds)}, all {setup.plan.recipe.epochs} epochs about "
        f"{duration(verdict.run_seconds)}."
    )
    return page
