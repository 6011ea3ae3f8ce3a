import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from sppnet.results.page import Link, Page, markdown_table
from sppnet.results.plots import (
    Errors,
    Estimate,
    LayerCurve,
    confusion_plot,
    error_curves,
    error_dots,
    layer_curves,
    percent_limits,
)

SOME = Estimate(40.0, 38.0, 43.0)


def page():
    result = Page("Errors <of> `all`")
    result.heading("A & B")
    result.text("run `x < y`")
    result.table(["name", "error"], [["a|b", "1.00"], ["<script>alert(1)</script>", "12.50"]])
    result.figure(error_dots([Errors("one", [1.0, 2.0], SOME, 1.5)], "top-1 error"), 'dots of "one"')
    return result


def test_markdown_columns_are_aligned():
    assert markdown_table(["name", "error"], [["a|b", "1.00"], ["c", "12.50 ± 0.10"]]).splitlines() == [
        "| name |        error |",
        "|------|-------------:|",
        "| a\\|b |         1.00 |",
        "| c    | 12.50 ± 0.10 |",
    ]


def test_html_is_one_file_and_escapes_what_comes_from_data():
    html = page().html()
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<code>x &lt; y</code>" in html
    assert "<svg" in html
    assert "http" not in html.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")  # the names of XML, which no browser loads


def test_the_same_page_is_the_same_bytes():
    assert page().html() == page().html()


def test_markdown_html_and_plots_are_written(tmp_path):
    files = page().write(tmp_path / "tables", "table2")
    assert sorted(path.name for path in files) == ["table2-1.svg", "table2.html", "table2.md"]
    assert sorted(files) == sorted((tmp_path / "tables").iterdir())
    assert '![dots of "one"](table2-1.svg)' in (tmp_path / "tables" / "table2.md").read_text()


def test_a_grid_has_several_pictures_above_each_other_and_lines_of_text():
    result = Page("Grid")
    result.grid([([b"\xff\xd8\xff", b"\x89PNG"], "<a>\nb"), ([b"\xff"], "c")], columns=4)
    html = result.html()
    assert '<div class="grid" style="--columns: 4">' in html
    assert (
        '<figure><img src="data:image/jpeg;base64,/9j/" alt="&lt;a&gt;\nb"><img src="data:image/png;base64,iVBORw==" '
        'alt=""><figcaption>&lt;a&gt;\nb</figcaption></figure>'
    ) in html
    assert result.markdown() == "# Grid\n\n(2 pictures, in the HTML file)\n"


def test_pictures_are_inside_the_html_and_counted_in_markdown(tmp_path):
    result = Page("Pictures")
    result.pictures([(b"\xff\xd8\xff", 'a "<cat>"'), (b"\xff\xd8", "b")])
    result.pictures([(b"\xff", "c")])
    html = result.html()
    assert '<img src="data:image/jpeg;base64,/9j/" alt="a &#34;&lt;cat&gt;&#34;">' in html
    assert "<figcaption>a &#34;&lt;cat&gt;&#34;</figcaption>" in html
    assert html.count("<img") == 3
    assert result.markdown() == "# Pictures\n\n(2 pictures, in the HTML file)\n\n(1 picture, in the HTML file)\n"
    assert [path.name for path in result.write(tmp_path, "page")] == ["page.md", "page.html"]


def test_png_pictures_are_named_as_such():
    result = Page("Pictures")
    result.pictures([(b"\x89PNG\r\n", "map")])
    assert '<img src="data:image/png;base64,iVBORw0K" alt="map">' in result.html()


def test_links_lead_to_other_pages():
    result = Page("Index")
    result.links([("A & B", "a b.html"), ("classes", "classes.html")])
    assert '<nav><a href="a b.html">A &amp; B</a><a href="classes.html">classes</a></nav>' in result.html()
    assert "[A & B](a b.html), [classes](classes.html)" in result.markdown()


def test_a_cell_of_a_table_can_lead_to_another_page():
    result = Page("Index")
    result.table(["run", "error"], [[Link("a|b <c>", "runs/a%23.html"), "1.00"]])
    assert '<td><a href="runs/a%23.html">a|b &lt;c&gt;</a></td><td class="number">1.00</td>' in result.html()
    assert "| [a\\|b <c>](runs/a%23.html) |  1.00 |" in result.markdown()


def test_tables_and_code_can_be_folded():
    result = Page("Run")
    result.table(["a"], [["1"]], folded="all <classes>")
    result.code("key: <value>\n", "Configuration")
    html = result.html()
    assert "<details><summary>all &lt;classes&gt;</summary>" in html
    assert "<details><summary>Configuration</summary><pre>key: &lt;value&gt;\n</pre></details>" in html
    assert html.count("<details>") == html.count("</details>") == 2
    assert result.markdown().endswith("Configuration:\n\n    key: <value>\n")


def test_a_page_can_be_written_as_html_alone(tmp_path):
    page().write_html(tmp_path / "new" / "page.html")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    assert (tmp_path / "new" / "page.html").read_text() == page().html()


def test_names_that_are_not_utf8_can_be_written(tmp_path):
    result = Page(os.fsdecode(b"run \xff"))
    result.write_html(tmp_path / "page.html")
    assert "<h1>run \\udcff</h1>" in (tmp_path / "page.html").read_text()
    assert result.write(tmp_path, "both")[0].read_text() == "# run \\udcff\n"


def test_numbers_are_aligned_to_the_right():
    html = page().html()
    assert '<tr><th>name</th><th class="number">error</th></tr>' in html
    assert '<tr><td>a|b</td><td class="number">1.00</td></tr>' in html


def test_a_page_fits_a_phone_and_follows_its_colors():
    html = page().html()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "prefers-color-scheme: dark" in html


def test_a_table_may_be_empty():
    assert markdown_table(["a", "b"], []).splitlines() == ["| a | b |", "|---|---|"]


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_an_axis_shows_all_values_and_at_least_five_points(values):
    low, high = percent_limits(values)
    assert low < min(values)
    assert max(values) < high
    assert 5 - 1e-9 <= high - low <= 110 + 1e-9
    assert low > -11
    assert high < 106


def test_errors_half_a_point_apart_do_not_fill_the_plot():
    near = [Errors("one", [40.0], Estimate(40.0, 39.9, 40.1)), Errors("two", [40.3], Estimate(40.3, 40.2, 40.4))]
    low, high = error_dots(near, "error").axes[0].get_xlim()
    assert high - low == pytest.approx(5)
    curves = error_curves({"one": {1: near[0].mean, 2: near[1].mean}}, "scale", "error")
    low, high = curves.axes[0].get_ylim()
    assert high - low == pytest.approx(5)


def test_every_interval_is_drawn():
    figure = error_dots([Errors("one", [41.0], Estimate(41.0, 33.0, 52.0))], "error")
    (bar,) = [line for line in figure.axes[0].get_lines() if line.get_marker() == "|"]
    assert list(bar.get_xdata()) == [33.0, 52.0]
    curves = error_curves({"one": {1: Estimate(41.0, 33.0, 52.0)}}, "scale", "error")
    ((_, _, (bars,)),) = curves.axes[0].containers
    assert bars.get_segments()[0][:, 1].tolist() == [33.0, 52.0]


def test_a_caption_is_below_the_plot():
    result = Page("Plots")
    result.figure(error_dots([Errors("one", [1.0], SOME)], "error"), "dots", "of 40 <images>")
    assert "</svg>\n</div><figcaption>of 40 &lt;images&gt;</figcaption>" in result.html()
    assert result.markdown(["1.svg"]) == "# Plots\n\n![dots](1.svg)\n\nof 40 <images>\n"


@pytest.mark.parametrize("count", [1, 3, 8])
def test_plots_show_every_entry(count):
    dots = error_dots([Errors(f"line {i}", [1.0 + i], SOME) for i in range(count)], "error")
    assert [label.get_text() for label in dots.axes[0].get_yticklabels()] == [f"line {i}" for i in range(count)]
    curves = error_curves({f"line {i}": {180: SOME, 224: SOME} for i in range(count)}, "scale", "error")
    assert len(curves.axes[0].containers) == count


def test_a_network_and_the_same_untrained_share_a_colour_and_pixels_are_grey():
    points = {"conv4": Estimate(50.0, 48.0, 51.0), "fc7": SOME}
    curves = [LayerCurve(f"{i} {trained}", points, i, trained) for i in (0, 1) for trained in (True, False)]
    curves.append(LayerCurve("alone", {"fc7": SOME}, 2, trained=False))
    (axes,) = layer_curves(curves, ["conv4", "fc7"], {"pixels": 20.0, "cropped": 25.0}, "accuracy").axes
    lines = [bars.lines[0] for bars in axes.containers]
    colors = [line.get_color() for line in lines]
    assert colors == [colors[0], colors[0], colors[2], colors[2], colors[4]]
    assert len(set(colors)) == len({line.get_marker() for line in lines}) == 3
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-", "--", "--"]
    assert lines[0].get_xdata().tolist() == lines[1].get_xdata().tolist() != lines[2].get_xdata().tolist()

    levels = [line for line in axes.get_lines() if line.get_label() in ("pixels", "cropped")]
    assert len({line.get_color() for line in levels} - set(colors)) == 1
    assert levels[0]._dash_pattern != levels[1]._dash_pattern
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["0 True", "1 True", "alone", "dashed: the same, untrained", "pixels", "cropped"]


def test_without_untrained_twins_the_legend_has_none():
    curves = [LayerCurve("a", {"fc7": SOME}, 0, True), LayerCurve("b", {"fc7": SOME}, 1, False)]
    (axes,) = layer_curves(curves, ["fc7"], {}, "accuracy").axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]


@pytest.mark.parametrize("name", ["$\\frac$", "5 $ and 6 $", "$x_1$"])
def test_dollars_in_names_are_not_formulas(name):
    figures = [
        confusion_plot(np.eye(2), (name, "b")),
        error_dots([Errors(name, [1.0], SOME)], "error"),
        error_curves({name: {180: SOME, 224: SOME}}, name, "error"),
    ]
    texts = [text for figure in figures for text in figure.findobj(Text) if text.get_text() == name]
    assert len(texts) >= 5
    assert not any(text.get_parse_math() for text in texts)
    result = page()
    for figure in figures:
        result.figure(figure, name)
    assert result.html().count(f"<!-- {name} -->") == 5  # a comment beside each text that is drawn


def test_the_confusion_plot_is_in_percent_of_the_true_class():
    figure = confusion_plot(np.array([[3, 1], [0, 0]]), ("a", "b"))
    assert figure.axes[0].get_images()[0].get_array().tolist() == [[75, 25], [0, 0]]
