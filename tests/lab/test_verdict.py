"""The verdict from made-up runs: calls, ends, warnings, the sentence, and no infinity in JSON."""

import json
import math

import numpy as np
import pytest

from polyak.declare import Range
from polyak.lab.errors import BadInput
from polyak.lab.evidence import Evidence, Trial
from polyak.lab.judging import judge
from polyak.lab.verdict import Verdict

BASE = (0.90, 0.92, 0.91, 0.93, 0.89)


def runs(method, finals, trials=((0.9,),), first=1, scores=None):
    made = tuple(Trial({"lr": 0.01 * (i + 1)}, row) for i, row in enumerate(trials))
    return Evidence(method, made, dict(enumerate(finals, first)), scores)


def verdict(*evidence, higher_is_better=True, **options):
    return judge("digits", "accuracy", higher_is_better, evidence[0].method, evidence, **options)


def strict_json(found: Verdict):
    return json.loads(json.dumps(found.to_json(), allow_nan=False))


def everywhere(scores, seeds=5):
    return {seed: scores for seed in range(1, seeds + 1)}


def moved(by, noise=0.0):
    return [value + by + noise * (-1) ** i for i, value in enumerate(BASE)]


def test_seeds_are_paired():
    # Better by about .003 on each of five seeds whose own spread is .016: the fault was to call that "not told apart".
    found = verdict(runs("adamw", BASE), runs("cadamw", moved(0.003, 0.0005)), margin=0.001).judgements[0]
    assert (found.method, found.call, found.seeds) == ("cadamw", "better", 5)
    assert found.difference == pytest.approx(0.0031)
    assert 0 < found.low < found.difference < found.high
    assert found.probability_of_improvement == 1.0


def test_a_positive_difference_is_better_whichever_way_the_metric_goes():
    found = verdict(runs("a", BASE), runs("b", moved(-0.1, 0.001)), higher_is_better=False)
    assert found.judgements[0].difference == pytest.approx(0.1, abs=1e-3)
    assert found.judgements[0].call == "better"
    assert found.reference_value == pytest.approx(0.91)


def test_three_calls_and_the_sentence():
    found = verdict(
        runs("adamw", BASE),
        runs("sgd", moved(-0.1, 0.001)),
        runs("muon", moved(0.0, 0.001)),
        runs("lion", moved(0.0, 0.03)),
        margin=0.01,
    )
    assert [one.call for one in found.judgements] == ["worse", "equivalent", "unsettled"]
    assert found.best == "adamw"
    assert found.judgements[2].more_seeds > 5
    sentence = found.sentence({"adamw": "lr 0.028", "muon": "1.6x slower a step"})
    assert sentence.startswith(
        "use adamw, lr 0.028; muon is equivalent within 0.01 and 1.6x slower a step; sgd is worse"
    )
    assert "; sgd is worse than adamw by 0.0998 (0.0979 to 0.102); lion is not settled (about " in sentence
    assert sentence.endswith(f"{found.judgements[2].more_seeds} more seeds would settle it)")


def test_methods_with_the_same_call_are_named_together():
    others = [runs(n, moved(by, 0.001)) for n, by in (("b", 0.1), ("c", 0.2), ("d", -0.1), ("e", -0.2), ("f", 0.15))]
    others += [runs(name, moved(0.0, 0.001)) for name in "gh"]
    found = verdict(runs("a", BASE), *others, margin=0.01)
    by = f"{found.judgements[1].difference:.3g} ("
    sentence = found.sentence({"c": "lr 0.1", "f": "2x slower a step", "g": "3x slower a step"})
    assert sentence.startswith(f"use c, lr 0.1; c is better than a by {by}")
    assert sentence.endswith(
        "; better than a: b, f (2x slower a step); equivalent within 0.01: g (3x slower a step), h; worse than a: d, e"
    )
    unsure = verdict(runs("a", BASE), *(runs(name, moved(0.0, 0.03)) for name in "bc"), margin=0.01)
    more = unsure.judgements[0].more_seeds
    assert unsure.sentence() == f"use a; not settled: b (about {more} more seeds), c (about {more} more seeds)"


def test_the_best_of_several_better_ones_is_recommended():
    found = verdict(runs("sgd", BASE), runs("a", moved(0.1, 0.001)), runs("b", moved(0.2, 0.001)))
    assert found.best == "b"
    assert found.sentence({"b": "lr 0.1", "a": "twice as slow"}).startswith(
        "use b, lr 0.1; b is better than sgd by 0.2 ("
    )


def test_a_larger_difference_of_the_same_spread_never_gets_the_weaker_call():
    names = {0.001: "a", 0.01: "b", 0.02: "c", 0.03: "d", 0.06: "e"}
    found = verdict(runs("sgd", BASE), *(runs(n, moved(by, 0.01)) for by, n in names.items()), margin=0.0)
    ahead = [one.call == "better" for one in found.judgements]
    assert ahead == sorted(ahead) and any(ahead) and not all(ahead)


def test_holm_widens_the_intervals_of_many_methods():
    alone = verdict(runs("a", BASE), runs("b", moved(0.01, 0.01)))
    many = verdict(runs("a", BASE), *(runs(name, moved(0.01, 0.01)) for name in "bcdef"))
    assert many.judgements[0].high > alone.judgements[0].high
    assert alone.judgements[0].high - alone.judgements[0].difference == pytest.approx(
        alone.judgements[0].difference - alone.judgements[0].low
    )


@pytest.mark.parametrize(("apart", "noise", "margin"), [(0.7, 1.0, 0.5), (0.1, 0.2, 0.3), (0.1, 0.1, 0.3)])
def test_calls_and_intervals_agree(apart, noise, margin):
    random = np.random.default_rng(3)
    calls = set()
    for _ in range(30):
        trials = [tuple(random.normal(0, apart, 3)) for _ in range(4)]
        others = [runs(f"m{i}", random.normal(apart * i, noise, 8), trials if apart > 0.5 else ()) for i in range(5)]
        for one in verdict(*others, margin=margin).judgements:
            inside = one.low >= -margin and one.high <= margin
            out = "better" if one.low > 0 else "worse" if one.high < 0 else "unsettled"
            assert one.call == ("equivalent" if inside else out)
            assert (one.more_seeds is None) or one.call == "unsettled"
            calls.add(one.call)
    assert {"better", "unsettled"} <= calls and (apart > 0.5 or "equivalent" in calls)


def test_equivalence_has_a_holm_rule_of_its_own():
    # All are worse by as much as the margin, and differ from 0 for certain: one that looks nearer by luck has no call.
    random, false = np.random.default_rng(0), 0
    for _ in range(100):
        others = [runs(f"m{i}", random.normal(-0.5, 1, 200)) for i in range(10)]
        false += "equivalent" in {one.call for one in verdict(runs("a", [0.0] * 200), *others, margin=0.5).judgements}
    assert false <= 5  # 2.5 are allowed; with the levels of the differences there were 27


def test_the_last_of_several_equivalent_methods_has_the_whole_level():
    alone = verdict(runs("a", BASE), runs("b", moved(0.0, 0.004)), margin=0.01).judgements[0]
    certain = [runs(name, moved(0.0, 0.0001)) for name in "cde"]
    found = verdict(runs("a", BASE), runs("b", moved(0.0, 0.004)), *certain, margin=0.01).judgements
    assert found[0] == alone and [one.call for one in found] == ["equivalent"] * 4


@pytest.mark.parametrize(("ours", "theirs"), [((), ()), ((), (3,)), ((3,), (3,)), ((3,), ()), ((3,), (4,))])
def test_a_diverged_run_takes_nothing_of_the_uncertainty_away(ours, theirs):
    random = np.random.default_rng(0)
    base, noise = random.normal(0.9, 0.01, 20), random.normal(0, 0.0001, 20)
    trials = ((0.9,), (0.8,), (0.7,))

    def values(found, lost):
        return [None if seed in lost else float(value) for seed, value in enumerate(found, 1)]

    reference = runs("a", values(base, theirs), trials)
    method = runs("b", values(base + 0.0003 + noise, ours), trials)
    found = verdict(reference, method, margin=0.05).judgements[0]
    assert (found.call, found.seeds) == ("unsettled", 20)
    left_out = "1 of 20 seeds were left out, because both methods diverged on them"
    assert (left_out in found.warnings) == (ours == theirs == (3,))
    assert (found.low is None) == (ours != theirs)


def test_a_method_that_errors_ended_is_not_settled():
    evidence = Evidence("b", (), {}, failure="it took longer than 5 s")
    for pair in ((runs("a", BASE), evidence), (evidence, runs("a", BASE))):
        found = verdict(*pair)
        assert (found.judgements[0].call, found.judgements[0].more_seeds) == ("unsettled", None)
        told = found.warnings if pair[0] is evidence else found.judgements[0].warnings
        assert told[0] == "no trial ended with a figure: it took longer than 5 s"
    some = Evidence("b", (Trial({}, (None,)),), {}, failure="it took longer than 5 s")
    assert verdict(runs("a", BASE), some).judgements[0].call == "unsettled"


def test_tuning_on_noise_widens_the_interval():
    trials = [(0.9, 0.7, 0.8), (0.88, 0.9, 0.6), (0.86, 0.8, 0.9), 0.7, 0.6, 0.5]
    trials = [row if isinstance(row, tuple) else (row,) for row in trials]
    sure = verdict(runs("a", BASE), runs("b", moved(0.05, 0.01))).judgements[0]
    tuned = verdict(runs("a", BASE, trials), runs("b", moved(0.05, 0.01), trials)).judgements[0]
    assert tuned.difference == sure.difference
    assert tuned.high - tuned.low > sure.high - sure.low
    assert (sure.call, tuned.call) == ("better", "unsettled")


def test_where_more_seeds_cannot_settle_it_the_sentence_says_so():
    trials = ((0.9,), (0.1,), (0.05,))
    found = verdict(runs("a", BASE, trials), runs("b", moved(0.05, 0.01), trials), margin=0.01)
    assert found.judgements[0].more_seeds is None
    assert found.sentence() == "use a; b is not settled (more seeds would not settle it)"


def test_a_small_test_set_widens_the_interval():
    # Right on 350 and on 351 of 360 images, on every seed: one image.
    right, more = [1.0] * 350 + [0.0] * 10, [1.0] * 351 + [0.0] * 9
    plain = [runs("a", [350 / 360] * 6), runs("b", [351 / 360] * 6)]
    assert verdict(*plain).judgements[0].call == "better"
    scored = [
        runs("a", [350 / 360] * 6, scores=everywhere(right, 6)),
        runs("b", [351 / 360] * 6, scores=everywhere(more, 6)),
    ]
    found = verdict(*scored).judgements[0]
    assert found.call == "unsettled"
    assert (found.low, found.high) == pytest.approx((1 / 360 - 1.96 / 360, 1 / 360 + 1.96 / 360), abs=2e-5)
    assert found.more_seeds is None
    assert found.warnings == ()


def test_scores_that_are_not_the_metrics_are_left_out_and_said():
    scores = everywhere([3.0, 1.0, 2.0])
    other = everywhere([2.0, 1.0, 2.0])
    found = verdict(runs("a", BASE, scores=scores), runs("b", moved(0.1, 0.01), scores=other)).judgements[0]
    assert found.call == "better"
    assert found.warnings == ("the scores of the test examples do not average to the metric and were left out",)


def test_scores_of_one_method_only_or_of_other_examples_count_for_nothing():
    scores, fewer = everywhere([1.0, 0.8]), everywhere([0.9])
    expected = verdict(runs("a", BASE), runs("b", moved(0.1, 0.01))).judgements[0]
    for one, other in ((scores, None), (scores, fewer), (None, {1: [1.0]})):
        found = verdict(runs("a", BASE, scores=one), runs("b", moved(0.1, 0.01), scores=other)).judgements[0]
        assert found == expected


def test_the_default_margin_is_the_spread_of_the_references_seeds():
    assert verdict(runs("a", BASE), runs("b", BASE)).margin == pytest.approx(np.std(BASE, ddof=1))
    assert verdict(runs("a", BASE[:1]), runs("b", BASE)).margin == 0.0
    assert verdict(runs("a", [None, *BASE]), runs("b", BASE)).margin == pytest.approx(np.std(BASE, ddof=1))


@pytest.mark.parametrize(
    ("reference", "method", "call", "more_seeds"),
    [
        ([0.9], [0.95], "unsettled", 4),  # one seed
        ([], [], "unsettled", 5),
        (BASE, [], "unsettled", 5),
        ([0.9] * 3, [0.9] * 3, "equivalent", None),  # all equal
        ([0.9] * 6, [0.8] * 6, "worse", None),  # no variance
        ([0.9] * 3, [0.8] * 3, "unsettled", 3),  # which by 3 seeds may be chance
        ([None] * 5, [None] * 5, "unsettled", None),
        ([0.9] * 5, [None] * 5, "worse", None),
        (BASE, [math.nan] * 5, "worse", None),
        (BASE, [-math.inf] * 5, "worse", None),
        ([None] * 5, BASE, "better", None),
        (BASE, [*moved(0.1)[:4], None], "unsettled", None),
    ],
)
def test_odd_runs_are_defined(reference, method, call, more_seeds):
    found = verdict(runs("a", reference), runs("b", method))
    assert found.judgements[0].call == call
    assert found.judgements[0].more_seeds == more_seeds
    assert strict_json(found)["judgements"][0]["method"] == "b"
    assert found.sentence()


def test_seeds_without_a_partner_are_left_out_and_said():
    found = verdict(runs("a", BASE), runs("b", moved(0.1, 0.01), first=3)).judgements[0]
    assert found.seeds == 3
    assert found.warnings == ("4 runs were left out, because the other method has none on their seeds",)


def test_a_method_none_of_whose_trials_finished_is_worse():
    found = verdict(runs("a", BASE), runs("b", [], trials=((None,), (None,)))).judgements[0]
    assert (found.call, found.difference, found.low, found.high) == ("worse", None, None, None)
    assert found.warnings == ("every trial diverged",)
    assert found.probability_of_improvement == 0.0


def test_a_reference_without_a_result_is_not_recommended():
    lost = verdict(runs("a", [None] * 5), runs("b", [None] * 5))
    assert lost.best is None
    assert lost.sentence() == "no method can be recommended: none has a test result on digits"
    assert lost.warnings == ("diverged on 5 of 5 seeds",)
    alone = verdict(runs("a", [None] * 5), runs("b", BASE))
    assert alone.judgements[0].call == "better" and alone.best == "b"
    said = "the reference a came to no result; b has a mean test accuracy of 0.91 (a ranking, no comparison: "
    assert alone.sentence().startswith(said)


@pytest.mark.parametrize("reference", [runs("a", [None] * 5), runs("a", [], trials=((None,),)), runs("a", [])])
@pytest.mark.parametrize("higher", [True, False])
def test_where_the_reference_has_no_result_the_others_are_ranked(reference, higher):
    # The first of them in the list is not the best, and who diverged comes after who never did.
    others = [
        runs("b", moved(0.1)),
        runs("c", moved(0.2)),
        runs("d", [9.0, None]),
        runs("e", []),
        runs("f", [-9.0, None]),
    ]
    found = verdict(reference, *others, higher_is_better=higher)
    order = "cbdf" if higher else "bcfd"
    assert [one.method for one in found.ranking] == list(order) and found.best == order[0]
    sentence = found.sentence({order[0]: "lr 0.1"})
    best = 1.11 if higher else 1.01
    assert f"of the others {order[0]}, lr 0.1, has the best mean test accuracy of {best:.3g}, then come" in sentence
    assert "d 9 (1 of 2 seeds)" in sentence and "better" not in sentence


def test_one_method_is_compared_with_nothing():
    found = verdict(runs("a", BASE))
    assert (found.judgements, found.sentence()) == ((), "use a")


def test_edges_are_warned_of_for_each_method():
    space = {"lr": Range(0.001, 0.01)}
    found = verdict(runs("a", BASE), runs("b", BASE), spaces={"a": space, "b": space})
    assert found.warnings == found.judgements[0].warnings != ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -0.1}, "margin must be a finite number of at least 0, got -0.1"),
        ({"margin": math.nan}, "margin must be a finite number of at least 0, got nan"),
        ({"confidence": 1.0}, "confidence must be between 0 and 1, got 1.0"),
        ({"reference": "adam"}, "the reference 'adam' is not among the methods; did you mean adamw?"),
        ({"evidence": [runs("adamw", BASE)] * 2}, "a method comes twice: adamw, adamw"),
    ],
)
def test_bad_input(options, message):
    options = {"reference": "adamw", "evidence": [runs("adamw", BASE)], **options}
    with pytest.raises(BadInput) as error:
        judge("digits", "accuracy", True, **options)
    assert str(error.value) == message
