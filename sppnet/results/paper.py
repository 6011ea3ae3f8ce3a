"""The paper's classification results as data: its numbers, how its networks are trained, what each table shows."""

from collections.abc import Sequence
from dataclasses import dataclass

from sppnet.results.runs import VARIANTS, Run

# Errors in % on the validation images of ILSVRC 2012, (top-1, top-5): arXiv:1406.4729v4, Tables 2, 3 and 4, §3.1.2 (30
# bins), §3.1.3 (random sizes), §3.1.5 (multi_view). None where the paper prints no number.
PaperErrors = tuple[float | None, float | None]
PAPER: dict[tuple[str, str], dict[str, PaperErrors]] = {
    ("zf5", "none"): {"ten_crop": (35.99, 14.76)},
    ("zf5", "single"): {"ten_crop": (34.98, 14.14), "center": (38.01, None), "full": (37.55, None)},
    ("zf5", "30bins"): {"ten_crop": (35.06, 14.04)},
    ("zf5", "alternate"): {"ten_crop": (34.60, 13.64), "center": (37.57, None), "full": (37.07, None)},
    ("convnet5", "none"): {"ten_crop": (34.93, 13.92)},
    ("convnet5", "single"): {"ten_crop": (34.38, 13.54)},
    ("convnet5", "alternate"): {"ten_crop": (33.94, 13.33)},
    ("overfeat5", "none"): {"ten_crop": (34.13, 13.52)},
    ("overfeat5", "single"): {"ten_crop": (32.87, 12.80)},
    ("overfeat5", "alternate"): {"ten_crop": (32.26, 12.33)},
    ("overfeat7", "none"): {"ten_crop": (32.01, 11.97)},
    ("overfeat7", "single"): {"ten_crop": (30.36, 11.12), "center": (33.18, None), "full": (32.72, None)},
    ("overfeat7", "random"): {"ten_crop": (30.06, 10.96)},
    ("overfeat7", "alternate"): {
        "ten_crop": (29.68, 10.95),
        "center": (32.57, None),
        "full": (31.25, None),
        "multi_view": (None, 9.36),
        "multi_view_full": (27.86, 9.14),
    },
}

# Tables always have rows for these protocols, and rows for others only where they were run.
_NAMED_BY_PAPER = {views for numbers in PAPER.values() for views in numbers}
# Protocols that suit a network without a pyramid, which takes images of one size only.
_VIEWS_WITHOUT_PYRAMID = ("center", "ten_crop")

# How the paper's networks are trained: epochs (§3.1.1); sizes and pyramids by variant.
PAPER_EPOCHS = {"zf5": 70, "convnet5": 90, "overfeat5": 90, "overfeat7": 90}
PAPER_SIZES = {"none": [224], "single": [224], "30bins": [224], "random": [180, 224], "alternate": [224, 180]}
PAPER_LEVELS = {**{variant: [6, 3, 2, 1] for variant in VARIANTS}, "none": None, "30bins": [4, 3, 2, 1]}


@dataclass(frozen=True)
class TableSpec:
    """What one of the paper's tables shows."""

    title: str
    variants: tuple[str, ...]  # keys of VARIANTS
    views: dict[str, str | None]  # protocol -> the protocol that its gain is counted from
    gain_over_no_spp: bool  # gains are counted from the same views of the network without a pyramid

    def was_run(self, run: Run) -> bool:
        """Whether a run was tested by a protocol that this table is for, also if its variant is not in the paper's."""
        compared_views = {views for views, first_views in self.views.items() if first_views is not None}
        return run.variant is not None and not compared_views.isdisjoint(run.scores)

    def views_of(self, seeds: Sequence[Run]) -> list[tuple[str, str | None]]:
        """Returns the protocols to show for a network: those that the paper names, and others where they were run.

        Args:
            seeds: runs of the network that differ in seed only.

        Returns (protocol, protocol that its gain is counted from), in the order of the table.
        """
        return [
            (views, first_views)
            for views, first_views in self.views.items()
            if any(views in run.scores for run in seeds)
            or (views in _NAMED_BY_PAPER and suits(seeds[0].variant or "", views))
        ]

    def paper_rows(self) -> list[tuple[str, str, str]]:
        """Returns (architecture, variant, protocol) of every number that the paper has in this table."""
        return [
            (architecture, variant, views)
            for (architecture, variant), numbers in PAPER.items()
            for views in self.views
            if variant in self.variants and views in numbers
        ]


TABLES = {
    "table2": TableSpec("Table 2: the standard 10 views", tuple(VARIANTS), {"ten_crop": None}, True),
    "table3": TableSpec(
        "Table 3: one view, the centre crop or the whole image",
        tuple(VARIANTS),
        {"center": None, "full": "center", "full_aligned": "center"},
        False,
    ),
    "table4": TableSpec(
        "Table 4: 10 views, 96 views on maps, 96 views and 2 whole images",
        ("alternate",),
        {
            "ten_crop": None,
            "multi_view": "ten_crop",
            "multi_view_full": "ten_crop",
            "multi_view_full_aligned": "ten_crop",
        },
        False,
    ),
}


def experiment_of(architecture: str, variant: str) -> str:
    """Returns the name of the file in configs/experiment that trains a network of PAPER."""
    return f"{'ablation' if variant in ('30bins', 'random') else 'table2'}_{architecture}_{variant}"


def suits(variant: str, views: str) -> bool:
    """Whether a network of this variant can be tested by this protocol."""
    return variant != "none" or views in _VIEWS_WITHOUT_PYRAMID


def variant_label(run: Run) -> str:
    """Names the variant of a run, with the sizes in parentheses unless they are the paper's."""
    variant = run.variant or ""
    paper_sizes = [*(["random"] if variant == "random" else []), *PAPER_SIZES[variant]]
    sizes = "" if run.sizes == paper_sizes else f" ({'/'.join(map(str, run.sizes))})"
    return VARIANTS[variant] + sizes
