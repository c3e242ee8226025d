"""The study encodings: its data sets, what it plans, and its claim."""

from dataclasses import replace

import run_unlearn_mnist
from studies import encodings


def test_it_plans_both_encodings_under_both_scales():
    config = run_unlearn_mnist.QUICK
    data = run_unlearn_mnist.load(config)
    images = encodings.under_each_encoding(config, data)
    rows = list(encodings.plan(config, data))
    assert {row.job.data for row in rows} == {each.provenance["sha256"] for each in images.values()}
    assert {(row.place["encoding"], row.place["model"]) for row in rows} == {
        ("amplitude", "QNN[depth=6]"), ("amplitude", "QNN[depth=6],scale=50"),
        ("columnwise", "QNN[depth=6]"), ("columnwise", "QNN[depth=6],scale=0.5"),
    }  # fmt: skip
    assert not list(encodings.plan(replace(config, unlearn_labels=0, unlearn_features=30), data))
