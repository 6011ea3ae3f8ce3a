"""The search for a learning rate: what it proposes, and that it leaves no run behind."""

import re
import types

import pytest

from conftest import make_image_folder
from sppnet.classify.rate_search import RateSearch, rate_plot, suggested_setting
from sppnet.classify.recipe import Recipe

RATES = [10 ** (-5 + i / 20) for i in range(120)]


def test_the_proposal_is_a_tenth_of_the_rate_of_the_lowest_mean():
    """Of a loss that falls from the 40th rate to the 82nd, and rises again; the mean follows a little later."""
    losses = [2.0 - 0.04 * min(max(0, i - 40), 42) + 0.15 * max(0, i - 82) for i in range(120)]
    search = RateSearch(RATES, losses)
    lowest = search.means.index(min(search.means))
    assert 82 <= lowest <= 94
    assert search.suggestion == pytest.approx(RATES[lowest] / 10)


def test_the_mean_is_that_of_the_definition():
    losses = [3.0, 1.0, 2.0]
    weights = [[1], [0.95, 1], [0.9025, 0.95, 1]]
    expected = [sum(w * x for w, x in zip(ws, losses, strict=False)) / sum(ws) for ws in weights]
    assert RateSearch(RATES[:3], losses).means == pytest.approx(expected)


@pytest.mark.parametrize("losses", [[], [2.0], [2.0 + i for i in range(120)]])
def test_a_loss_that_never_falls_gives_no_proposal(losses):
    assert RateSearch(RATES[: len(losses)], losses).suggestion is None


@pytest.mark.parametrize(("optimizer", "factor"), [("sgd", 4), ("adamw", 2)])
def test_the_setting_is_the_rate_before_it_follows_the_batch(optimizer, factor):
    """So that with the setting the highest rate is the proposed one."""
    search = RateSearch(RATES, [2.5 - i / 50 for i in range(120)])
    recipe = Recipe(
        epochs=2,
        batch_size=32,
        base_batch_size=128,
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=0,
        warmup_epochs=0,
        optimizer=optimizer,
    )
    plan = types.SimpleNamespace(recipe=recipe)
    assert suggested_setting(search, plan) == f"recipe.learning_rate={factor * RATES[-1] / 10:.2g}"
    assert suggested_setting(RateSearch([], []), plan) is None


def test_the_plot_names_the_rates_as_numbers():
    figure = rate_plot(RateSearch(RATES, [2.5 - i / 50 for i in range(120)]), 0.02)
    figure.canvas.draw()
    assert [line.get_xdata()[0] for line in figure.axes[0].lines[2:]] == [pytest.approx(RATES[-1] / 10), 0.02]
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert "0.001" in labels
    assert not any("$" in label for label in labels)


def test_the_command_prints_a_setting_and_makes_a_plot_and_no_run(tmp_path, run_here):
    make_image_folder(tmp_path / "images", train=4, val=1)
    words = "data=folder data.root=images trainer=cpu trainer.workers=0 trainer.precision=32-true backbone.width=0.05"
    recipe = "hidden=8 sizes.cycle=[48] recipe=fast recipe.batch_size=4 recipe.dropout=0 recipe.base_batch_size=16"
    done = run_here("train", *words.split(), *recipe.split(), "find_rates=plots/rates.svg", cwd=tmp_path)
    assert re.fullmatch(
        r"\d+ steps at rates from 1e-05 to \S+, plotted in plots/rates\.svg\n(recipe\.learning_rate=\S+\n)?",
        done.stdout,
    )
    proposed = "recipe.learning_rate" in done.stdout
    assert (done.returncode, done.stderr == "") == ((0, True) if proposed else (2, False)), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "plots"]
    assert (tmp_path / "plots" / "rates.svg").read_text().startswith("<?xml")
