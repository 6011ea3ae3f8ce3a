"""Training logs where the user says."""

import csv
import importlib
import sys

import pytest
from lightning_utilities.core.imports import RequirementCache

from conftest import make_image_folder
from sppnet.classify.loggers import LOGGERS, check_package
from test_end_to_end import SMALL


def test_numbers_are_logged_to_a_table(tmp_path, run_here):
    root = make_image_folder(tmp_path / "images", train=5, val=3)
    done = run_here("train", *SMALL, f"data.root={root}", "logger=csv", "run=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tensorboard" not in done.stdout.lower()
    assert not (tmp_path / "run" / "tensorboard").exists()
    metrics = tmp_path / "run" / "csv" / "version_0" / "metrics.csv"
    assert "  metrics        run/csv/version_0/metrics.csv\n" in done.stdout
    with metrics.open() as file:
        rows = list(csv.DictReader(file))
    errors = [float(row["val/top1_error_percent"]) for row in rows if row["val/top1_error_percent"]]
    assert f"top-1 error {errors[-1]:5.2f} %" in done.stdout
    assert {row["epoch"] for row in rows[:-1]} == {str(epoch) for epoch in range(1, len(errors) + 1)}
    assert f"{float(rows[-1]['result/top1_error_percent']):.2f} %" in done.stdout


@pytest.mark.parametrize(("name", "available"), [("wandb", "_WANDB_AVAILABLE"), ("mlflow", "_MLFLOW_AVAILABLE")])
def test_a_missing_package_is_named(name, available, tmp_path, monkeypatch):
    monkeypatch.setattr(f"pytorch_lightning.loggers.{name}.{available}", RequirementCache(f"{name}>=9999"))
    with pytest.raises(ValueError, match=rf'^logger={name}: needs the package {name}: pip install "sppnet\[{name}\]"$'):
        LOGGERS[name](tmp_path)


def test_a_missing_package_is_found_before_the_data_is_opened(monkeypatch, tmp_path):
    """A folder of that name, as wandb makes one, is no package."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ValueError, match=r"^logger=wandb: needs the package wandb"):
        check_package("wandb")
    check_package("csv")
    (tmp_path / "wandb" / "__init__.py").touch()
    importlib.invalidate_caches()
    check_package("wandb")
