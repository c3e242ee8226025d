"""The rule of the verdicts, and paired statistics, against cases by hand; the table on the
committed results."""

import dataclasses
import io
import itertools
from contextlib import redirect_stderr

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run_python
from scipy import stats

import findings
from foundation.report.claims import (
    MARGIN,
    Claim,
    Evidence,
    of_values,
    paired,
    variance_of_states,
)
from foundation.report.frames import ResultFiles
from foundation.report.layout import markdown_of


def evidence(value, half, *, n=20, room=1.0):
    """Its interval reaches so far on either side."""
    return Evidence("it", value, half * np.sqrt(n) / stats.t.ppf(0.975, n - 1), n, 0.001, room)


def claim(effect, *controls, published=None, margin=MARGIN):
    return Claim(
        whose="ours",
        source="it",
        setting="it",
        statement="it",
        effect=effect,
        controls=controls,
        published=published,
        margin=margin,
    )


CLEAR = evidence(0.2, 0.05)


@pytest.mark.parametrize(("effect", "controls", "published", "p", "expected"), [
    (CLEAR, [evidence(0.1, 0.05)], 0.2, 0.001, "stands"),
    (CLEAR, [evidence(0.1, 0.05), evidence(0.03, 0.005)], None, 0.001, "stands"),
    (CLEAR, [evidence(0.1, 0.05)], 0.49, 0.001, "stands"),  # .25 is above half of it
    (CLEAR, [evidence(0.1, 0.05)], 0.51, 0.001, "weaker"),
    # a control is within the margin, or better, with its whole interval
    (CLEAR, [evidence(0.1, 0.05), evidence(0.01, 0.005)], 0.2, 0.001, "falls"),
    (CLEAR, [evidence(-0.1, 0.05)], 0.2, 0.001, "falls"),
    # it may be
    (CLEAR, [evidence(0.01, 0.04)], 0.2, 0.001, "undecided"),
    (CLEAR, [evidence(0.1, 0.05), evidence(0.01, 0.04)], 0.2, 0.001, "undecided"),
    (CLEAR, [evidence(0.03, 0.02)], None, 0.001, "undecided"),
    (CLEAR, [evidence(0.1, 0.05)], 0.2, 0.2, "undecided"),  # not after Holm
    (CLEAR, [evidence(0.1, 0.05)], 0.2, np.nan, "undecided"),  # no p is none below .05
    (evidence(0.1, 0.15), [evidence(0.1, 0.05)], 0.2, 0.001, "undecided"),
    # the other way round
    (evidence(-0.1, 0.05), [evidence(0.1, 0.05)], 0.2, 0.001, "falls"),
    # what it is compared with leaves less than the margin
    (CLEAR, [evidence(0.1, 0.05, room=0.019)], 0.2, 0.001, "not testable: room .019"),
    (evidence(0.01, 0.005, room=0.015), [CLEAR], 0.2, 0.001, "not testable: room .015"),
    (CLEAR, [evidence(0.1, 0.05, room=0.021)], 0.2, 0.001, "stands"),
    # so few draws that no p can be small, whatever comes out
    (evidence(0.2, 0.01, n=5), [evidence(0.1, 0.05)], 0.2, 0.001, "not testable: n = 5"),
    (evidence(0.2, 0.01, n=6), [evidence(0.1, 0.05)], 0.2, 0.001, "stands"),
    (CLEAR, [Evidence("it", 0.1, np.nan, 1, np.nan)], 0.2, 0.001, "not testable: n = 1"),
])  # fmt: skip
def test_the_rule(effect, controls, published, p, expected):
    assert claim(effect, *controls, published=published).verdict(p) == expected


def test_a_table_of_many_claims_takes_more_draws():
    """2 / 2^n times the number of claims has to be below .05; of ten draws 25 claims at most."""
    of_ten = claim(evidence(0.2, 0.05, n=10), evidence(0.1, 0.05, n=10))
    assert of_ten.verdict(0.001, 25) == "stands"
    assert of_ten.verdict(0.001, 26) == "not testable: n = 10"
    assert claim(evidence(0.2, 0.05, n=12), CLEAR).verdict(0.001, 100) == "stands"
    assert CLEAR.smallest_p == pytest.approx(2e-4)  # of as many flips as are drawn


def test_two_named_controls_have_wider_intervals():
    """Bonferroni's; with one control that is at .0105 above the margin this one stands."""
    near = evidence(MARGIN + 0.0105, 0.01)
    assert claim(CLEAR, near).verdict(0.001) == "stands"
    assert claim(CLEAR, near, CLEAR).verdict(0.001) == "undecided"
    low, high = near.interval(2)
    half = stats.t.ppf(1 - 0.0125, 19) * near.sd / np.sqrt(20)
    assert (low, high) == (pytest.approx(near.value - half), pytest.approx(near.value + half))


def test_a_claim_of_parity_may_be_behind_by_the_margin():
    for value, expected in ((-0.01, "stands"), (-0.025, "undecided"), (-0.05, "falls")):
        beside = evidence(value, 0.008, room=0.005)
        parity = dataclasses.replace(claim(CLEAR, beside), is_parity=True)
        assert parity.verdict(0.001) == expected
    near = dataclasses.replace(claim(evidence(0.2, 0.05, room=0.01), CLEAR), is_parity=True)
    assert near.verdict(0.001) == "not testable: room .010"  # of its effect


def test_intervals_are_students():
    values = np.random.default_rng(0).normal(0.05, 0.1, 12)
    of_scipy = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert of_values("it", values).interval() == pytest.approx(tuple(of_scipy))


def test_states_that_are_drawn_with_the_runs_widen_the_interval():
    """Of planted effects of runs, states and both; the interval that takes the states as given
    covers the mean of all states far less often than it says."""
    generator = np.random.default_rng(0)
    covered = {"given": 0, "drawn": 0}
    repetitions = 400
    for _ in range(repetitions):
        of_runs, of_states = generator.normal(0, 0.02, (12, 1)), generator.normal(0, 0.3, 60)
        values = 0.1 + of_runs + of_states + generator.normal(0, 0.2, (12, 60))
        means = values.mean(axis=1)
        found = Evidence("it", means.mean(), means.std(ddof=1), 12, 0.001)
        drawn = found._replace(of_states=variance_of_states(values))
        for name, each in {"given": found, "drawn": drawn}.items():
            low, high = each.interval()
            covered[name] += low <= 0.1 <= high
    assert covered["given"] < 0.6 * repetitions and covered["drawn"] > 0.93 * repetitions


def test_the_variance_of_states_is_that_of_their_share():
    """Analytic: 0.3² / 60 on average, and 0 where all states are alike."""
    generator = np.random.default_rng(1)
    found = [
        variance_of_states(
            generator.normal(0, 0.02, (12, 1))
            + generator.normal(0, 0.3, 60)
            + generator.normal(0, 0.2, (12, 60))
        )
        for _ in range(2000)
    ]
    assert np.mean(found) == pytest.approx(0.3**2 / 60, rel=0.015)
    assert variance_of_states(np.arange(12.0)[:, None] + np.zeros(60)) == 0


# ---- planted effects ----


def p_of_columns(values, flips=1999):
    """Of sign flips, as `of_values` has it: of all of them, or of so many."""
    n = len(values)
    if n <= 12:
        signs, added = np.array(list(itertools.product((1, -1), repeat=n))), 0
    else:
        signs, added = np.random.default_rng(1).choice((1, -1), size=(flips, n)), 1
    are_as_far = np.abs(signs @ values) >= np.abs(values.sum(axis=0)) - 1e-12
    return (are_as_far.sum(axis=0) + added) / (len(signs) + added)


def test_p_of_columns_is_that_of_the_verdicts():
    values = np.random.default_rng(0).normal(0.01, 0.03, (12, 3))
    expected = [of_values("it", column).p for column in values.T]
    np.testing.assert_allclose(p_of_columns(values), expected)


NOISES = {  # of mean 0 and standard deviation 1
    "normal": lambda generator, size: generator.normal(size=size),
    "skewed": lambda generator, size: (generator.gamma(4, size=size) - 4) / 2,
    "skewed the other way": lambda generator, size: (4 - generator.gamma(4, size=size)) / 2,
}
SIMULATIONS, SD = 2000, 0.03


def share_of(verdict, effect, control, n, noise):
    """Of claims with a true effect and a true difference from a control, of n draws each."""
    generator = np.random.default_rng([n, *noise.encode()])
    effects, controls = (
        mean + SD * NOISES[noise](generator, (n, SIMULATIONS)) for mean in (effect, control)
    )
    columns = [p_of_columns(effects)]
    for values in (effects, controls):
        columns += [values.mean(axis=0), values.std(axis=0, ddof=1)]
    decided = [
        claim(Evidence("it", *of_effect, n, p), Evidence("it", *of_control, n, p)).verdict(p)
        for p, *numbers in zip(*columns, strict=True)
        for of_effect, of_control in [(numbers[:2], numbers[2:])]
    ]
    return np.mean([each.startswith(verdict) for each in decided])


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("n", [5, 12, 20])
def test_planted_effects_are_seldom_decided_wrongly(n, noise):
    """Where there is no effect, where a control does as well but for the margin, and where it is
    just above it. (Five draws decide nothing: no p can be below .05.)"""
    assert share_of("stands", 0, 0.1, n, noise) <= 0.065
    assert share_of("stands", 0.1, MARGIN, n, noise) <= 0.065
    assert share_of("falls", 0.1, MARGIN + 1e-9, n, noise) <= 0.065
    assert share_of("falls", 1e-9, 0.1, n, noise) <= 0.065
    if n == 5:
        assert share_of("stands", 1, 1, n, noise) == share_of("falls", -1, -1, n, noise) == 0


@pytest.mark.parametrize(("n", "least"), [(12, 0.7), (20, 0.95)])
def test_planted_effects_are_found(n, least):
    """Effect and distance from the margin are as large as the spread over draws."""
    assert share_of("stands", SD, MARGIN + SD, n, "normal") >= least
    assert share_of("falls", SD, MARGIN - SD, n, "normal") >= least


# ---- paired differences ----


def test_runs_are_paired_by_their_number():
    """In whatever order they stand, and those alone that both have and that did not diverge."""
    own = pd.DataFrame({"run": [3, 1, 2, 0], "accuracy": [0.9, 0.8, np.nan, 0.7]})
    other = pd.DataFrame({"run": [0, 1, 2, 3, 4], "accuracy": [0.5, 0.5, 0.5, 0.5, 0.1]})
    found = paired("it", own, other)
    assert found.n == 3 and found.value == pytest.approx(0.3) and found.sd == pytest.approx(0.1)
    assert found.room == pytest.approx(0.5)
    assert paired("it", own, other, ceiling=0.6).room == pytest.approx(0.1)


def test_many_seeds_on_one_draw_are_one_draw():
    own = pd.DataFrame(
        {"draw": [0, 0, 1, 1], "run": [0, 1, 0, 1], "accuracy": [0.9, 0.7, 0.6, 0.6]}
    )
    found = paired("it", own, own.assign(accuracy=0.5))
    assert found.n == 2 and found.value == pytest.approx(0.2)
    assert paired("it", own[:2], own[:2].assign(accuracy=0.5)).n == 1


def test_p_is_that_of_all_sign_flips():
    values = np.array([0.3, 0.1, 0.2, 0.25, 0.15])
    # of 32 only these and their mirror are as far out
    assert of_values("it", values).p == pytest.approx(2 / 32) == of_values("it", values).smallest_p
    assert of_values("it", np.full(5, 0.1)).p == pytest.approx(2 / 32)
    assert of_values("it", np.zeros(5)).p == 1
    assert np.isnan(of_values("it", values[:1]).p)
    mixed = np.random.default_rng(0).normal(0.05, 0.1, 20)
    assert of_values("it", mixed).p == pytest.approx(stats.ttest_1samp(mixed, 0).pvalue, abs=0.02)


@pytest.fixture(scope="module")
def committed():
    return ResultFiles(ROOT / "results")


@pytest.fixture(scope="module")
def decided(committed):
    """The claims on the committed results, and what is said of those that are left out."""
    said = io.StringIO()
    with redirect_stderr(said):
        return findings.decided(committed), said.getvalue()


def test_every_claim_has_a_row_and_a_verdict_on_the_committed_results(decided):
    """Each is paired over runs; a claim is left out for want of a study alone, which is named."""
    frame, left_out = decided
    assert len(frame) == len(findings.claims()) or "which the tables need" in left_out
    assert (
        len(frame) >= 20
        and set(frame.verdict.str.partition(":")[0])
        <= {"stands", "weaker", "falls", "undecided", "not testable"}
        and frame.statement.is_unique
    )
    assert all("[" in cell or ", n = " in cell for cell in (*frame.effect, *frame["named control"]))
    assert frame["named control"].str.count(", n = ").isin([1, 2]).all()


def test_claims_of_studies_that_are_not_there_are_left_out_and_named(tmp_path):
    done = run_python("findings.py", "claims", str(tmp_path))
    assert (
        done.returncode == 0
        and "| verdict |" in done.stdout
        and "claims are left out" in done.stderr
    )


def test_the_table_of_the_findings_is_that_of_the_committed_results(decided):
    """Without the claims of studies that are not there."""
    text = (
        (ROOT / "FINDINGS.md").read_text().partition("<!-- claims -->\n\n")[2].partition("\n\n")[0]
    )
    made = markdown_of(decided[0])
    if {"capacity", "encodings"} <= {study.name for study in findings.STUDIES}:
        assert text == made
    assert set(made.splitlines()) <= set(text.splitlines())
