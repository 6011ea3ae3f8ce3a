"""The search for a learning rate: what it proposes, and that it leaves no run behind."""

import re

import pytest

from conftest import make_image_folder
from sppnet.classify.rate_search import RateSearch, rate_plot

RATES = [10 ** (-6 + i / 10) for i in range(60)]


def test_the_proposal_is_a_tenth_of_the_rate_of_the_lowest_mean():
    """Of a loss that falls from the 20th rate to the 41st, and rises again; the mean follows a little later."""
    losses = [2.0 - 0.08 * min(max(0, i - 20), 21) + 0.3 * max(0, i - 41) for i in range(60)]
    search = RateSearch(RATES, losses)
    lowest = search.means.index(min(search.means))
    assert 41 <= lowest <= 47
    assert search.suggestion == pytest.approx(RATES[lowest] / 10)


def test_the_mean_is_that_of_the_definition():
    losses = [3.0, 1.0, 2.0]
    weights = [[1], [0.9, 1], [0.81, 0.9, 1]]
    expected = [sum(w * x for w, x in zip(ws, losses, strict=False)) / sum(ws) for ws in weights]
    assert RateSearch(RATES[:3], losses).means == pytest.approx(expected)


@pytest.mark.parametrize("losses", [[], [2.0], [2.0 + i for i in range(60)]])
def test_a_loss_that_never_falls_gives_no_proposal(losses):
    assert RateSearch(RATES[: len(losses)], losses).suggestion is None


def test_the_plot_names_the_rates_as_numbers():
    figure = rate_plot(RateSearch(RATES, [2.0 - i / 50 for i in range(60)]))
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert "0.001" in labels
    assert not any("$" in label for label in labels)


def test_the_command_prints_a_setting_and_makes_a_plot_and_no_run(tmp_path, run_here):
    make_image_folder(tmp_path / "images", train=4, val=1)
    words = "data=folder data.root=images trainer=cpu trainer.workers=0 trainer.precision=32-true backbone.width=0.05"
    recipe = "hidden=8 sizes.cycle=[48] recipe=fast recipe.batch_size=4 recipe.dropout=0 recipe.base_batch_size=16"
    done = run_here("train", *words.split(), *recipe.split(), "find_rates=plots/rates.svg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"\d+ steps at rates from 1e-06 to \S+, plotted in plots/rates\.svg\n"
        r"(recipe\.learning_rate=\S+|the loss never .*)\n",
        done.stdout,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "plots"]
    assert (tmp_path / "plots" / "rates.svg").read_text().startswith("<?xml")
