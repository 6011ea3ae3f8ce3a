"""Parameters and multiply-adds against sums over the layers."""

import json
import shutil

import pytest

from made_runs import CLASSES, make_run
from sppnet.results.costs import multiply_adds, parameters, training_work
from sppnet.results.runs import read_runs


def test_work_is_counted_from_the_layers(tmp_path):
    backbone = json.dumps({"architecture": "zf5", "width": 1.0, "normalization": "none"}, sort_keys=True)
    assert multiply_adds(backbone, (6, 3, 2, 1), 4096, 1000, 224) == pytest.approx(1.218e9, rel=1e-3)
    shutil.rmtree(make_run(tmp_path, "none"))
    run = read_runs([str(make_run(tmp_path, "none"))])[0]
    filters = [3, 10, 26, 38, 38, 26]  # of widths 0.1
    kernels = [49, 25, 9, 9, 9]
    convolutions = sum((a * k + 1) * b for a, b, k in zip(filters, filters[1:], kernels, strict=False))
    assert parameters(run) == convolutions + (36 * 26 + 1) * 16 + 17 * 16 + 17 * CLASSES
    one, two = (training_work({**run.config, "recipe": {"epochs": e}}, CLASSES, 100) for e in (1, 2))
    assert two == 2 * one > 0
