"""The charts: where things are, and that nothing is lost."""

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from polyak.lab import figures
from polyak.lab.report import summarize
from polyak.lab.svg import Scale, dodge, shortened
from tests.lab import synthetic

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def problem(many):
    described, records = many
    return summarize([described], records).problems[0]


def drawn(figure):
    """The picture, parsed; well-formed or an error."""
    return ElementTree.fromstring(figure.standalone())


def words(figure):
    return [element.text for element in drawn(figure).iter(f"{SVG}text")]


def test_scales_and_ticks():
    x = Scale(0, 10, 100, 200)
    assert (x(0), x(5), x(10)) == (100, 150, 200) and x.ticks() == [0, 2, 4, 6, 8, 10]
    y = Scale(1e-4, 1e-1, 0, 300, log=True)
    assert y(1e-3) == pytest.approx(100) and y.ticks() == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert Scale(1, 40, 0, 1, log=True).ticks() == [1, 2, 5, 10, 20]
    assert Scale(0.95, 0.97, 0, 1).ticks() == pytest.approx([0.95, 0.955, 0.96, 0.965, 0.97])
    assert Scale(3, 3, 0, 10)(3) == 5


def test_labels_keep_apart_in_their_order_and_within_the_chart():
    wanted = [5.0, 6.0, 7.0, 100.0, 99.0]
    places = dodge(wanted, 0, 100, gap=10)
    assert places == [5, 15, 25, 100, 90]
    crowded = sorted(dodge([50.0] * 20, 0, 240, gap=12))
    assert crowded[0] >= 0 and crowded[-1] <= 240
    assert all(b - a >= 12 - 1e-9 for a, b in itertools.pairwise(crowded))


def test_long_names_are_shortened_and_whole_in_the_tooltip():
    name = "my.own.package.optimizers.VeryLongName"
    assert len(shortened(name)) == 24 and shortened(name).endswith("VeryLongName")
    described = synthetic.described(["adamw", name])
    made = summarize([described], synthetic.records(described)).problems[0]
    assert f"<title>{name}</title>" in figures.forest(made).svg


def test_the_forest_has_a_row_a_method_the_margin_and_every_call(problem):
    figure = figures.forest(problem)
    shown = words(figure)
    for method in problem.methods:
        assert shortened(method.method) in shown
        assert (method.judgement.call if method.judgement else "reference") in shown
    assert len(re.findall('class="series"', figure.svg)) == 20
    band = next(e for e in drawn(figure).iter(f"{SVG}rect") if e.get("class") == "band")
    zero = next(e for e in drawn(figure).iter(f"{SVG}line") if e.get("class") == "zero")
    middle = float(band.get("x")) + float(band.get("width")) / 2
    assert middle == pytest.approx(float(zero.get("x1")), abs=0.2) and float(band.get("width")) > 2


def test_a_hopeless_method_does_not_flatten_the_others():
    described = synthetic.described(5)
    records = synthetic.records(described, lost=False)
    before = min(figures._limits(summarize([described], records).problems[0]))
    for key, record in records.items():
        if record.method == "adan" and record.split == "test":
            records[key] = replace(record, metric=record.metric - 0.9)
    problem = summarize([described], records).problems[0]
    assert min(figures._limits(problem)) > 10 * before
    assert "adan" in words(figures.forest(problem))


@pytest.mark.parametrize("which", ["validation", "train"])
def test_curves_name_every_line_at_its_end(problem, which):
    figure = figures.curves(problem, which)
    assert {shortened(m.method) for m in problem.methods} <= set(words(figure))
    looks = {(e.get("stroke"), e.get("stroke-dasharray")) for e in drawn(figure).iter() if e.get("class") == "line"}
    assert len(looks) == 20
    places = [float(e.get("y")) for e in drawn(figure).iter(f"{SVG}text") if e.get("class") == "name"]
    places.sort()
    assert all(b - a > 11 for a, b in itertools.pairwise(places))


def test_curves_without_points_say_so():
    described = synthetic.described(2)
    records = {k: replace(r, detail={}) for k, r in synthetic.records(described).items()}
    problem = summarize([described], records).problems[0]
    assert "nothing to show yet" in words(figures.curves(problem))
    assert "nothing to show yet" in words(figures.costs(problem))


def test_a_metric_of_zero_on_a_logarithmic_axis():
    described = synthetic.described(2, higher_is_better=False, target=None)
    records = synthetic.records(described)
    for key, record in records.items():
        curve = [[step, 0.0 if step > 100 else value] for step, value in record.detail["validation"]]
        records[key] = replace(record, detail={**record.detail, "validation": curve})
    figure = figures.curves(summarize([described], records).problems[0])
    assert drawn(figure) is not None and "nan" not in figure.svg and "inf" not in figure.svg.replace("info", "")


def test_clouds_show_every_trial_the_range_and_its_edge():
    described = synthetic.described(2)
    records = synthetic.records(described, lost=False)
    edge = {"lr": 0.09, "weight_decay": 0.01, "betas": [0.9, 0.99]}
    chosen = next(r.setting for r in records.values() if r.method == "sgd" and r.split == "test")
    for key, record in records.items():
        if record.setting == chosen:
            records[key] = replace(record, setting=edge)
    clouds = figures.tuning(summarize([described], records).problems[0])
    assert [c.title for c in clouds if c.title.startswith("sgd")] == ["sgd: lr", "sgd: weight_decay"]
    cloud = next(c for c in clouds if c.title == "sgd: lr")
    assert cloud.text == "1e-05 to 0.1; chosen 0.09, at the edge of its range" and "edge hit" in cloud.svg
    assert cloud.svg.count("<title>") == 10 and cloud.svg.count('class="chosen"') == 1
    assert cloud.svg.count('fill="var(--card)"') == 2  # the seeds run again


def test_a_trial_without_a_figure_is_a_cross():
    described = synthetic.described(12)
    problem = summarize([described], synthetic.records(described)).problems[0]
    lost = sum(t.first is None for m in problem.methods for t in m.trials)
    assert lost > 0
    assert sum(c.svg.count("no figure") for c in figures.tuning(problem)) == 2 * lost


def test_costs_show_both_parts(problem):
    figure = figures.costs(problem)
    assert len(re.findall("fill-opacity", figure.svg)) == 40
    assert any("ms, 8 B" in text for text in words(figure))


def test_a_figure_is_a_file_and_shows_itself_in_a_notebook(problem, tmp_path):
    figure = figures.expected(problem)
    figure.save(tmp_path / "expected.svg")
    root = ElementTree.parse(tmp_path / "expected.svg").getroot()
    assert root.tag == f"{SVG}svg" and "--c0: #" in root.find(f"{SVG}style").text
    assert figure._repr_html_().startswith("<b>Validation accuracy after k trials</b>")


def test_numbers_are_finite(problem):
    for figure in (figures.forest(problem), figures.curves(problem), figures.costs(problem), *figures.tuning(problem)):
        for value in re.findall(r' (?:cx|cy|x|y|x1|x2|y1|y2|width|height)="([^"]*)"', figure.svg):
            assert math.isfinite(float(value))


def test_a_default_that_a_logarithmic_range_cannot_hold_is_at_its_low_end():
    described = synthetic.described(["adamw"])
    records = synthetic.records(described, lost=False)
    for key, record in list(records.items())[:1]:
        records[key] = replace(record, setting={**record.setting, "weight_decay": 0.0})
    clouds = figures.tuning(summarize([described], records).problems[0])
    assert clouds[1].title == "adamw: weight_decay" and 'cx="44.0"' in clouds[1].svg
