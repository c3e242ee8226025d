"""The record of a study whose tables and figures stand in tables.py and figures.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

from foundation.engine.study import Study, StudyFigure
from studies.tables import SUMMARIES

FIGURES: dict[str, tuple[str, ...]] = {  # name: the function in figures.py, and the study files that it draws
    "spectrum": ("xxz_spectrum", "data"),
    "noise_sweep": ("noise_sweep", "noise_sweep"),
    "model_sizes": ("model_sizes", "noise_sweep"),
    "unlearning": ("unlearning_curves", "unlearning"),
    "weight_map": ("weight_maps", "weight_map"),
    "oracle_epochs": ("oracle_epochs", "epochs"),
    "forgetting_scores": ("forgetting_scores", "evaluation"),
    "forgetting_logits": ("forgetting_logits", "evaluation"),
    "forgetting_attack": ("forgetting_attack", "evaluation"),
    "forgetting_cost": ("forgetting_cost", "evaluation"),
    "benchmark_scores": ("forgetting_scores", "benchmark"),
    "benchmark_cost": ("forgetting_cost", "benchmark"),
    "linear_response": ("linear_response", "influence"),
    "dynamics": ("dynamics", "dynamics"),
    "contests": ("contests", "controls"),
    "pairs": ("digit_pairs", "pairs"),
    "splits": ("ring_splits", "splits"),
    "devices": ("devices", "hardware"),
    "known_shares": ("known_shares", "discovery"),
    "detection": ("detection", "detection"),
    "detected": ("detected", "detected"),
    "equal_steps_scores": ("forgetting_scores", "equal_steps"),
    "matched_fit_scores": ("forgetting_scores", "matched_fit"),
    "gauge": ("gauge_control", "gauge"),
    "poison_examples": ("poison_examples", "data"),
    "poison_embeddings": ("poison_embeddings", "data"),
    "hessian_traces": ("hessian_traces", "landscape"),
    "hessian_spectra": ("hessian_spectra", "landscape"),
    "loss_slices": ("loss_slices", "landscape"),
    "presets": ("presets", "paper/noise_sweep", "corrected/noise_sweep"),
}


def registered(
    name: str, question: str, plan: Callable, *, files: tuple[str, ...] = (), data: Callable | None = None
) -> Study:
    """The record of a study, with the tables and figures of its files; files: where they are not of its own name."""
    files = files or (name,)
    tables = tuple(replace(SUMMARIES[file], file=file) for file in files if file in SUMMARIES)
    drawn = {each: words for each, words in FIGURES.items() if words[1].rpartition("/")[2] in files}
    figures = tuple(
        StudyFigure(name=each, draw=_function_of_figures(function), files=tuple(studies))
        for each, (function, *studies) in drawn.items()
    )
    return Study(name=name, question=question, plan=plan, tables=tables, figures=figures, data=data)


def _function_of_figures(name: str) -> Callable[..., Any]:
    """A function of figures.py, which is imported (matplotlib, seaborn) when there is something to draw."""
    return lambda *studies: getattr(import_module("studies.figures"), name)(*studies)
