"""The rule of the verdicts, and paired statistics, against cases by hand; the table on the
committed results."""

import io
from contextlib import redirect_stderr

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run_python
from scipy import stats

import findings
from foundation.report.claims import Claim, Evidence, of_values, paired
from foundation.report.frames import ResultFiles
from foundation.report.layout import markdown_of


def evidence(value, low, high):
    return Evidence("it", value, low, high, 20, 0.001)


CLEAR = evidence(0.2, 0.15, 0.25)


@pytest.mark.parametrize(("effect", "controls", "published", "p", "expected"), [
    (CLEAR, [evidence(0.1, 0.05, 0.15)], 0.2, 0.001, "stands"),
    (CLEAR, [evidence(0.1, 0.05, 0.15), evidence(0.03, 0.025, 0.04)], None, 0.001, "stands"),
    # less than half of what was published
    (CLEAR, [evidence(0.1, 0.05, 0.15)], 0.5, 0.001, "weaker"),
    # within the margin
    (CLEAR, [evidence(0.1, 0.05, 0.15), evidence(0.01, 0.005, 0.015)], 0.2, 0.001, "falls"),
    (CLEAR, [evidence(-0.1, -0.2, -0.05)], 0.2, 0.001, "falls"),  # a control is better
    (CLEAR, [evidence(0.01, -0.03, 0.05)], 0.2, 0.001, "undecided"),  # it may be
    # one of two may be
    (CLEAR, [evidence(0.1, 0.05, 0.15), evidence(0.01, -0.03, 0.05)], 0.2, 0.001, "undecided"),
    (CLEAR, [evidence(0.1, 0.05, 0.15)], 0.2, 0.2, "undecided"),  # not after Holm
    (evidence(0.1, -0.05, 0.2), [evidence(0.1, 0.05, 0.15)], 0.2, 0.001, "undecided"),
    # the other way round
    (evidence(-0.1, -0.2, -0.05), [evidence(0.1, 0.05, 0.15)], 0.2, 0.001, "falls"),
    (CLEAR, [evidence(0.1, 0.05, 0.15)], None, np.nan, "stands"),  # the interval alone decides
])  # fmt: skip
def test_the_rule(effect, controls, published, p, expected):
    assert Claim("ours", "it", effect, tuple(controls), published).verdict(p) == expected


def test_the_control_that_decides_is_the_nearest_or_the_farthest_ahead():
    controls = [evidence(value, value - 0.1, value + 0.1) for value in (0.3, -0.2, 0.1)]
    assert Claim("ours", "it", CLEAR, tuple(controls)).decisive.value == -0.2


def test_runs_are_paired_by_their_number():
    """In whatever order they stand, and those alone that both have and that did not diverge."""
    own = pd.DataFrame({"run": [3, 1, 2, 0], "accuracy": [0.9, 0.8, np.nan, 0.7]})
    other = pd.DataFrame({"run": [0, 1, 2, 3, 4], "accuracy": [0.5, 0.5, 0.5, 0.5, 0.1]})
    found = paired("it", own, other)
    assert found.n == 3 and found.value == pytest.approx(0.3)
    assert found.low == pytest.approx(0.2) and found.high == pytest.approx(0.4)


def test_p_is_that_of_all_sign_flips():
    values = np.array([0.3, 0.1, 0.2, 0.25, 0.15])
    # of 32 only these and their mirror are as far out
    assert of_values("it", values).p == pytest.approx(2 / 32)
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
        and set(frame.verdict) <= {"stands", "weaker", "falls", "undecided"}
        and frame.statement.is_unique
    )
    assert all(
        "[" in cell or ", n = " in cell
        for cell in (*frame.effect, *frame["the control that decides"])
    )


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
