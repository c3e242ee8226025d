"""Shared parts of figures: styles of models and methods, panels, curves, legends, picture files."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import seaborn as sns

from foundation.base.later import xarray as xr
from foundation.measures import metrics
from foundation.report.frames import count_of_runs, ordered, truth_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = sns.color_palette("colorblind")
DARK = [tuple(0.6 * value for value in colour) for colour in PALETTE]
# colour, line and marker of each family of models; methods have other colours
FAMILY_STYLE = {
    "MLP": (PALETTE[0], "-", "o"),
    "QNN": (PALETTE[1], "--", "s"),
    "Logistic": (PALETTE[9], ":", "D"),
    "Quadratic": (PALETTE[5], "-.", "^"),
    "Trivial": ("0.45", ":", "P"),
}
METHOD_STYLE = {  # colour and line of each method
    "full": ("0.55", "-"),
    "null arm": ("0.7", "--"),
    "retrain": ("0.15", "-"),
    "cf": (PALETTE[2], "--"),
    "scrub": (PALETTE[4], "-."),
    "ga": (PALETTE[3], ":"),
}
SPARE_STYLE = (PALETTE[6], (0, (1, 3)), "v")  # of families that a user added
# of methods without a style of their own, in turn; no family has these colours
SPARE_COLOURS = (PALETTE[7], PALETTE[8], PALETTE[6], DARK[2], DARK[4], DARK[3])
SPARE_LINES = (
    (0, (1, 3)),
    (0, (5, 1)),
    (0, (3, 1, 1, 1)),
    (0, (8, 2, 2, 2)),
    "-",
)
POISON_NAMES = {
    "labels": "flipped labels",
    "one_class": "class 1 flipped",
    "other_class": "class 0 flipped",
    "next_class": "flipped to the next class",
    "boundary": "flipped at the boundary",
    "quid": "flipped next to the other class",
    "backdoor": "backdoor",
    "confusion": "labels drawn anew",
    "features": "randomised features",
    "subset": "random samples, not poisoned",
    "class": "the last class, not poisoned",
    "none": "no poison",
}
AIMED_NAMES = {  # of kinds that were told at which class to aim
    "one_class": "class {} flipped",
    "backdoor": "backdoor to class {}",
    "class": "class {}, not poisoned",
}
PRESET_NAMES = {"paper": "published choices", "corrected": "corrected choices"}
MOST_BANDS = 4  # in one panel: the bands of more lines hide each other
MARKERS = "osD^vPX*<>"
PANEL = np.array([3.3, 2.5])  # inches: a panel is readable at a print column's width
ALPHA_LABEL = "flipped share of the training labels α (%)"


def model_styles(results: xr.Dataset, models: Iterable[str]) -> dict[str, tuple]:
    """Return colour, line and marker of each model; later models of a family are darker."""
    family_styles = {}
    for model in models:
        family = results.family.sel(model=model).item()
        family_styles[model] = FAMILY_STYLE.get(family, SPARE_STYLE)
    styles = {}
    for model, style in family_styles.items():
        alike = [other for other in family_styles if family_styles[other] == style]
        place = alike.index(model)
        colour, line, marker = style
        shares = (0, 0.45)
        if len(alike) > 2:
            shares = np.linspace(-0.5, 0.6, len(alike))
        share = shares[place]
        colour = mixed(colour, "white" if share < 0 else "black", abs(share))
        first_marker = MARKERS.index(marker)
        marker_place = (first_marker + 3 * place) % len(MARKERS)
        styles[model] = colour, line, MARKERS[marker_place]
    return styles


def method_styles(results: xr.Dataset) -> dict[str, tuple]:
    """Return colour and line of each method of a study, in reading order."""
    spare = zip(itertools.cycle(SPARE_COLOURS), itertools.cycle(SPARE_LINES), strict=False)
    styles = {}
    for name in ordered(results, "unlearner"):
        styles[name] = METHOD_STYLE.get(name) or next(spare)
    return styles


def mixed(colour, towards, share: float) -> tuple:
    """Mix two colours; share: of the second one."""
    left = np.array(matplotlib.colors.to_rgb(colour))
    right = np.array(matplotlib.colors.to_rgb(towards))
    return tuple((1 - share) * left + share * right)


def use_style() -> None:
    """Set the styling of all figures."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind", font_scale=0.95)
    plt.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False,
                         "figure.constrained_layout.use": True, "pdf.fonttype": 42})  # fmt: skip


def panels_for(
    items: Iterable, xlabel: str = "", ylabel: str = "", *, rows: int = 1
) -> Iterator[tuple]:
    """Start a figure with a panel for each item, row by row, and return (axes, item) of each.

    The labels stand at the outer edges only.
    """
    use_style()
    items = list(items)
    shape = rows, len(items) // rows
    size = PANEL * shape[::-1] + (0, 0.3)
    _, axes = plt.subplots(*shape, figsize=size, squeeze=False)
    plt.setp(axes[-1], xlabel=xlabel)
    plt.setp(axes[:, 0], ylabel=ylabel)
    return zip(axes.flat, items, strict=True)


GRID = 4  # panels beside each other


def grid_for(
    items: list, xlabel: str = "", ylabel: str = "", *, most: int = GRID
) -> Iterator[tuple]:
    """Start a figure with a panel for each item, at most `most` in a row; yields (axes, item).

    The last row may end with empty places.
    """
    columns = min(len(items), most)
    blank = [None] * (-len(items) % columns)
    padded = [*items, *blank]
    rows = len(padded) // columns
    for axis, item in panels_for(padded, xlabel, ylabel, rows=rows):
        if item is None:
            axis.set_axis_off()
        else:
            yield axis, item


def draw_curve(
    axis, runs: xr.DataArray, style: tuple, label: str | None = None, *, bands: bool = True
) -> None:
    """Draw the mean of accuracies (run, x) against x, with a band of one standard deviation.

    Places x without any run are left out; a single run has no band.
    """
    (x,) = set(runs.dims) - {"run"}
    runs = runs.dropna(x, how="all").transpose("run", x)
    colour, line, marker = style
    look = {"color": colour, "linestyle": line, "marker": marker, "markersize": 3.5}
    mean = runs.mean("run").values
    places = runs[x].values
    axis.plot(places, mean, label=label, **look)
    if bands and runs.sizes["run"] > 1:
        deviation = runs.std("run", ddof=1).values
        ends = [mean - deviation, mean + deviation]
        low, high = np.clip(ends, 0, 1)
        axis.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.set_ylim(-0.03, 1.03)


def draw_dot(
    axis: Axes,
    place: float,
    runs: np.ndarray,
    style: tuple,
    *,
    label: str = "",
    across: bool = False,
    size: float = 4,
    width: float = 1,
    line_on_top: bool = False,
) -> None:
    """Draw the mean of runs (n,) as a dot at x = place, with its vertical 95 % bootstrap interval.

    style: colour and marker. across: the dot is at y = place, and the interval is horizontal.
    line_on_top: the interval is drawn over the dot.
    """
    colour, marker = style
    mean = runs.mean()
    ends = metrics.bootstrap_interval(runs)
    if across:
        x = mean
        y = place
        draw_line = axis.hlines
    else:
        x = place
        y = mean
        draw_line = axis.vlines
    if not line_on_top:
        draw_line(place, *ends, color=colour, linewidth=width)
    axis.plot(x, y, marker, color=colour, markersize=size, label=label)
    if line_on_top:
        draw_line(place, *ends, color=colour, linewidth=width)


def poison_words(poison: str, alpha_percent: float | None = None) -> str:
    """Name a poison for a title, with its share where that is given."""
    name = POISON_NAMES.get(poison, poison)
    kind, _, label = poison.rpartition("-")
    if kind in AIMED_NAMES:
        name = AIMED_NAMES[kind].format(label)
    return name if alpha_percent is None else f"{name}, {alpha_percent} %"


def band_words(results: xr.Dataset, most_lines: int = 1) -> str:
    """Explain the bands of a figure; most_lines: of its panels."""
    n = count_of_runs(results)
    if n == "1":
        return "n = 1 run"
    text = f"mean of n = {n} runs, band: ± 1 standard deviation"
    if most_lines > MOST_BANDS:
        text += f"; no bands where there are more than {MOST_BANDS} lines"
    return text


def finished(text: str, *studies: xr.Dataset, legend: bool = False) -> plt.Figure:
    """Return the current figure with a caption, which counts trainings that diverged.

    legend: one legend for all panels stands beside them.
    """
    figure = plt.gcf()
    if legend:
        handle_of: dict[str, object] = {}  # each label once
        for axis in figure.axes:
            handles, labels = axis.get_legend_handles_labels()
            handle_of = dict(zip(labels, handles, strict=True)) | handle_of
        figure.legend(
            handle_of.values(), handle_of.keys(), frameon=False, loc="outside right upper"
        )
        longest = max(map(len, handle_of), default=0)
        figure.set_figwidth(figure.get_figwidth() + 0.4 + 0.065 * longest)
    diverged = 0
    for study in studies:
        if "diverged" in study:
            diverged += int(study.diverged.sum())
    if diverged == 1:
        text += "; 1 training that diverged is left out"
    elif diverged:
        text += f"; {diverged} trainings that diverged are left out"
    characters = int(18 * figure.get_figwidth())  # of this font size, 18 to the inch
    lines = textwrap.wrap(text, characters)
    height_of_lines = 0.14 * (len(lines) - 1)  # beyond the first
    figure.set_figheight(figure.get_figheight() + height_of_lines)
    figure.supxlabel("\n".join(lines), fontsize=7.5, color="0.3")
    return figure


def log_ticks(low: float, high: float, **options) -> matplotlib.ticker.LogLocator:
    """Place ticks at powers of ten; up to two decades, at 2 and 5 times the powers as well."""
    is_wide = high > 100 * low
    return matplotlib.ticker.LogLocator(subs=(1,) if is_wide else (1, 2, 5), **options)


def draws_words(results: xr.Dataset) -> str:
    """Explain over how many draws and models the numbers of a figure are means."""
    draws = results.sizes["draw"]
    over = f"mean over {draws} draws of the poison" if draws > 1 else "one draw of the poison"
    parts = [f"{over}, n = {count_of_runs(results)} models of each kind", truth_words(results)]
    return "; ".join(filter(None, parts))


def arm_styles(results: xr.Dataset) -> dict[str, tuple]:
    """Return colour and line of each arm of the stage evaluation."""
    references = {"teacher": (DARK[8], "-"), "oracle": (PALETTE[7], "--")}
    return method_styles(results) | references


def noises_of(results: xr.Dataset) -> list[tuple[str, int]]:
    """List the pairs of poison and share for which the study holds accuracies."""
    pairs = itertools.product(ordered(results, "poison"), results.alpha_percent.values)
    return [
        (poison, alpha)
        for poison, alpha in pairs
        if results.accuracy.sel(poison=poison, alpha_percent=alpha).count()
    ]


# ---- files ----


def image(figure: plt.Figure):
    """Turn a figure into an image that a notebook shows, and close the figure."""
    from IPython.display import Image

    plt.close(figure)
    with laid_out(figure, dpi=110):
        return Image(png(figure))


@contextmanager
def laid_out(figure: plt.Figure, *, dpi: int) -> Iterator[None]:
    """Lay the figure out once; a layout engine at work would draw each file twice."""
    figure.set_dpi(dpi)
    figure.get_layout_engine().execute(figure)
    with plt.rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
        yield


def png(figure: plt.Figure) -> bytes:
    """Return a PNG of the figure in 256 colours, which takes a third of the bytes in git."""
    full = io.BytesIO()
    small = io.BytesIO()
    figure.savefig(full, format="png", dpi=figure.dpi)
    picture = PIL.Image.open(full).convert("RGB")
    picture = picture.quantize(256, dither=PIL.Image.Dither.NONE)
    picture.save(small, "png", optimize=True)
    return small.getvalue()
