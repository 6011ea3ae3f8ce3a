"""The paper's numbers are complete: each is in a table and has an experiment."""

import pytest
import torch

from sppnet.backbones import BACKBONES
from sppnet.network import SPPNet
from sppnet.results.paper import PAPER, TABLES, experiment_of
from sppnet.results.paper_transfer import CALTECH101, LENGTHS, TABLE8, TRANSFER_TABLES, VOC2007
from sppnet.results.runs import VARIANTS


def test_every_number_of_the_paper_has_its_table_and_its_experiment():
    assert len({experiment_of(*key) for key in PAPER}) == len(PAPER) == 14
    shown = {
        (key, views)
        for spec in TABLES.values()
        for key, numbers in PAPER.items()
        for views in numbers
        if key[1] in spec.variants and views in spec.views
    }
    assert shown == {(key, views) for key, numbers in PAPER.items() for views in numbers}
    # Gains as the paper prints them in Table 2, top-1.
    gains = {
        key: round(PAPER[key[0], "none"]["ten_crop"][0] - numbers["ten_crop"][0], 2) for key, numbers in PAPER.items()
    }
    assert gains["zf5", "single"] == 1.01
    assert gains["overfeat7", "alternate"] == 2.33


def numbers(table):
    return {(column.letter, layer): value for column in table.columns for layer, value in column.numbers.items()}


def test_every_number_of_tables_6_and_7_has_its_experiment():
    assert [len(table.columns) for table in TRANSFER_TABLES.values()] == [5, 5]
    assert [len(numbers(table)) for table in TRANSFER_TABLES.values()] == [19, 20]
    columns = {name: table.columns for name, table in TRANSFER_TABLES.items()}
    for name, table in columns.items():
        for column in table:
            variant = "_none" if column.variant == "none" else ""
            assert column.experiment == f"{name}_{column.architecture}{variant}_{column.view}{column.scale}"
            assert column.architecture in BACKBONES
            assert column.variant in VARIANTS


@pytest.mark.parametrize(
    ("table", "better", "worse", "gain"),
    [
        (VOC2007, ("(b)", "fc7"), ("(a)", "fc7"), 0.55),
        (VOC2007, ("(c)", "fc7"), ("(b)", "fc7"), 1.94),
        (VOC2007, ("(d)", "fc7"), ("(c)", "fc7"), 1.71),
        (VOC2007, ("(a)", "conv4"), ("(b)", "conv4"), 2.68),
        (CALTECH101, ("(b)", "pool5"), ("(b)", "pool5_6x6"), 1.87),
        (CALTECH101, ("(c)", "pool5"), ("(b)", "pool5"), 1.97),
        (CALTECH101, ("(c)", "pool5"), ("§3.3", "pool5"), 1.53),
        (CALTECH101, ("(d)", "pool5"), ("(c)", "pool5"), 1.98),
        (CALTECH101, ("(b)", "conv4"), ("(a)", "conv4"), 0.91),
    ],
)
def test_differences_within_tables_6_and_7(table, better, worse, gain):
    assert round(numbers(table)[better] - numbers(table)[worse], 2) == gain


def test_table_8_names_the_best_of_tables_6_and_7():
    assert TABLE8["the paper: Overfeat-7, SPP"][0] == f"{max(numbers(VOC2007).values())}"
    assert TABLE8["the paper: Overfeat-7, SPP"][1].startswith(f"{max(numbers(CALTECH101).values())} ")
    assert TABLE8["Zeiler and Fergus (VOC: Table 6 (a))"][0] == f"{numbers(VOC2007)['(a)', 'fc7']:.2f}"
    assert len(TABLE8) == 8


def test_lengths_are_those_of_the_pyramid_on_the_last_convolution():
    for name, channels in {"zf5": 256, "overfeat7": 512}.items():
        lengths = LENGTHS[name]
        assert (lengths["pool5"], lengths["pool5_6x6"]) == (50 * channels, 36 * channels)
    with torch.no_grad():
        outputs = SPPNet("zf5", num_classes=1, hidden=1).layer_outputs(torch.zeros(1, 3, 224, 224), ["conv4", "conv5"])
    assert LENGTHS["zf5, crop"] == {layer: maps.numel() for layer, maps in outputs.items()}
