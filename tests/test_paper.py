"""The paper's numbers are complete: each is in a table and has an experiment."""

from sppnet.results.paper import PAPER, TABLES, experiment_of


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
