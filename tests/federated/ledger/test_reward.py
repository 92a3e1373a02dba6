"""From contributions to payments: every unit is accounted for."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyak.federated.ledger import Reputation, RewardRule

SHARES = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3), st.fractions(0, 5, max_denominator=1000), max_size=8
)


@given(st.integers(0, 10**6), SHARES)
def test_payments_sum_to_the_budget_and_follow_the_shares(budget, shares):
    paid = RewardRule().payments(budget, shares)
    total = sum(shares.values())
    assert set(paid) == set(shares) and sum(paid.values()) == (budget if total else 0)
    for name, share in shares.items():
        assert abs(paid[name] - (budget * share / total if total else 0)) < 1
        assert all(paid[name] >= paid[other] - 1 for other in shares if shares[other] <= share)


@settings(max_examples=200)
@given(st.integers(0, 10**6), SHARES, st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.integers(0, 2000))
def test_cap_and_threshold_hold(budget, shares, cap, least):
    paid = RewardRule(cap=cap, min_pay=least).payments(budget, shares)
    assert sum(paid.values()) <= budget
    assert all(amount < Fraction(str(cap)) * budget + 1 for amount in paid.values())
    assert all(amount == 0 or amount + 1 > least for amount in paid.values())
    earners = [name for name in shares if paid[name]]
    if earners and len(earners) * Fraction(str(cap)) >= 1:
        assert sum(paid.values()) == budget


def test_what_a_cap_cuts_off_is_split_again():
    shares = {"a": Fraction(8), "b": Fraction(1), "c": Fraction(1)}
    assert RewardRule(cap=0.5).payments(100, shares) == {"a": 50, "b": 25, "c": 25}
    assert RewardRule(cap=0.25).payments(100, shares) == {"a": 25, "b": 25, "c": 25}
    assert RewardRule(min_pay=11).payments(100, shares) == {"a": 100, "b": 0, "c": 0}


def test_left_units_go_to_the_largest_remainder_then_to_the_first_name():
    assert RewardRule().payments(10, {"b": Fraction(1), "a": Fraction(1), "c": Fraction(1)}) == {"a": 4, "b": 3, "c": 3}
    assert RewardRule().payments(10, {"a": Fraction(10), "b": Fraction(15)}) == {"a": 4, "b": 6}


@given(st.integers(0, 10**9), st.integers(1, 30), st.sampled_from([None, 0.1, 0.5, 0.99]))
def test_budgets_never_exceed_the_pool(pool, rounds, early):
    budgets = [RewardRule(early=early).budget(pool, rounds, r) for r in range(rounds)]
    assert min(budgets) >= 0 and sum(budgets) <= pool
    if early is None:
        assert sum(budgets) == pool and max(budgets) - min(budgets) <= 1
    else:
        rho = Fraction(str(early))
        assert all(abs(b - pool * (1 - rho) * rho**r) < 1 for r, b in enumerate(budgets))


def test_the_average_is_corrected_for_its_start():
    rule = RewardRule(ema=0.9)
    memory = rule.remember(Reputation(), Fraction(2))
    assert memory.value == 2
    memory = rule.remember(memory, Fraction(4))
    assert memory.value == (Fraction(9, 10) * 2 + 4) / Fraction(19, 10)
    assert rule.remember(memory, None) == memory
    decayed = rule.replaced(absent="decay").remember(memory, None)
    assert decayed.value == memory.value * Fraction(9, 10)


def test_harm_is_no_debt_and_is_counted():
    rule = RewardRule()
    memory = rule.remember(rule.remember(Reputation(), Fraction(-3)), Fraction(-1))
    assert (memory.value, memory.below) == (0, 2)
    assert rule.remember(memory, Fraction(0)).below == 0


@given(st.floats(0, 0.999), st.none() | st.floats(0.01, 1), st.integers(0, 10**9))
def test_a_rule_goes_through_its_texts(ema, cap, least):
    rule = RewardRule(ema=ema, cap=cap, min_pay=least)
    again = RewardRule.from_data(rule.to_data())
    assert again.to_data() == rule.to_data()
    assert again.ema == pytest.approx(ema, abs=1e-18)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ema": 1.0}, r"ema must be in \[0, 1\)"),
        ({"cap": 0.0}, r"cap must be in \(0, 1\]"),
        ({"absent": "gone"}, "absent must be one of"),
        ({"min_pay": -1}, "min_pay must be in"),
        ({"slash": 2.0}, "slash must be in"),
    ],
)
def test_rules_that_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        RewardRule(**arguments)


def test_amounts_that_are_refused():
    with pytest.raises(ValueError, match="budget must be in"):
        RewardRule().payments(-1, {})
    with pytest.raises(ValueError, match=r"shares must not be negative, those of \['a'\] are"):
        RewardRule().payments(1, {"a": Fraction(-1)})
    with pytest.raises(ValueError, match="pool must be in"):
        RewardRule().budget(-1, 1, 0)
    with pytest.raises(ValueError, match=r"round must be in \[0, 3\)"):
        RewardRule().budget(10, 3, 3)
    assert "interpretation" in RewardRule.__doc__
