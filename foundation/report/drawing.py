"""What figures share: styles of models and methods, panels, curves, legends, and the bytes of a
picture."""

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
import xarray as xr

from foundation.measures import metrics
from foundation.report.frames import count_of_runs, ordered, truth_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = sns.color_palette("colorblind")
DARK = [tuple(0.6 * value for value in colour) for colour in PALETTE]
# colour, line and marker of each kind of model, in all figures; methods have colours of their own
FAMILY_STYLE = {
    "MLP": (PALETTE[0], "-", "o"),
    "QNN": (PALETTE[1], "--", "s"),
    "Logistic": (PALETTE[9], ":", "D"),
    "Quadratic": (PALETTE[5], "-.", "^"),
    "Trivial": ("0.45", ":", "P"),
}
METHOD_STYLE = {  # colour and line of each method
    "full": ("0.55", "-"),
    "retrain": ("0.15", "-"),
    "cf": (PALETTE[2], "--"),
    "scrub": (PALETTE[4], "-."),
    "ga": (PALETTE[3], ":"),
}
SPARE_STYLE = (PALETTE[6], (0, (1, 3)), "v")  # of families that a user added
# of methods, in turn: of no family
SPARE_COLOURS = (PALETTE[7], PALETTE[8], PALETTE[6], DARK[2], DARK[4], DARK[3])
SPARE_LINES = ((0, (1, 3)), (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (8, 2, 2, 2)), "-")
POISON_NAMES = {
    "labels": "flipped labels",
    "one_class": "one class flipped",
    "boundary": "flipped at the boundary",
    "quid": "flipped next to the other class",
    "backdoor": "backdoor",
    "confusion": "labels drawn anew",
    "features": "randomised features",
    "none": "no poison",
}
PRESET_NAMES = {"paper": "published choices", "corrected": "corrected choices"}
MOST_BANDS = 4  # lines of one panel; the bands of more hide each other
MARKERS = "osD^vPX*<>"
PANEL = np.array([3.3, 2.5])  # inches: a panel is readable at a print column's width
ALPHA_LABEL = "flipped share of the training labels α (%)"


def model_styles(results: xr.Dataset, models: Iterable[str]) -> dict[str, tuple]:
    """Colour, line and marker of each of these models, by its family; of several the later are
    darker."""
    of_model = {
        model: FAMILY_STYLE.get(results.family.sel(model=model).item(), SPARE_STYLE)
        for model in models
    }
    styles = {}
    for model, style in of_model.items():
        alike = [other for other in of_model if of_model[other] == style]
        place, (colour, line, marker) = alike.index(model), style
        share = np.linspace(-0.5, 0.6, len(alike))[place] if len(alike) > 2 else (0, 0.45)[place]
        colour = mixed(colour, "white" if share < 0 else "black", abs(share))
        styles[model] = colour, line, MARKERS[(MARKERS.index(marker) + 3 * place) % len(MARKERS)]
    return styles


def method_styles(results: xr.Dataset) -> dict[str, tuple]:
    """Colour and line of each method of a study, in reading order."""
    spare = zip(itertools.cycle(SPARE_COLOURS), itertools.cycle(SPARE_LINES), strict=False)
    return {name: METHOD_STYLE.get(name) or next(spare) for name in ordered(results, "unlearner")}


def mixed(colour, towards, share: float) -> tuple:
    left, right = np.array([matplotlib.colors.to_rgb(each) for each in (colour, towards)])
    return tuple((1 - share) * left + share * right)


def use_style() -> None:
    """Seaborn's styling, set in this one place."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind", font_scale=0.95)
    plt.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False,
                         "figure.constrained_layout.use": True, "pdf.fonttype": 42})  # fmt: skip


def panels_for(
    items: Iterable, xlabel: str = "", ylabel: str = "", *, rows: int = 1
) -> Iterator[tuple]:
    """Start a figure with a panel for each item, row by row, its outer edges labelled: (axes, item)
    of each."""
    use_style()
    items = list(items)
    shape = rows, len(items) // rows
    _, axes = plt.subplots(*shape, figsize=PANEL * shape[::-1] + (0, 0.3), squeeze=False)
    plt.setp(axes[-1], xlabel=xlabel)
    plt.setp(axes[:, 0], ylabel=ylabel)
    return zip(axes.flat, items, strict=True)


GRID = 4  # panels beside each other


def grid_for(
    items: list, xlabel: str = "", ylabel: str = "", *, most: int = GRID
) -> Iterator[tuple]:
    """As `panels_for`, at most so many in a row; what is left over of the last one stays empty."""
    columns = min(len(items), most)
    blank = [None] * (-len(items) % columns)
    for axis, item in panels_for([*items, *blank], xlabel, ylabel, rows=-(-len(items) // columns)):
        if item is None:
            axis.set_axis_off()
        else:
            yield axis, item


def draw_curve(
    axis, runs: xr.DataArray, style: tuple, label: str | None = None, *, bands: bool = True
) -> None:
    """Accuracies (run, x) against their other axis: mean and a band of one standard deviation,
    where there are any."""
    (x,) = set(runs.dims) - {"run"}
    runs = runs.dropna(x, how="all").transpose("run", x)
    colour, line, marker = style
    mean = runs.mean("run").values
    axis.plot(
        runs[x].values,
        mean,
        color=colour,
        linestyle=line,
        marker=marker,
        markersize=3.5,
        label=label,
    )
    if bands and runs.sizes["run"] > 1:
        deviation = runs.std("run", ddof=1).values
        ends = np.clip([mean - deviation, mean + deviation], 0, 1)
        axis.fill_between(runs[x].values, *ends, color=colour, alpha=0.2, linewidth=0)
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
) -> None:
    """The mean of some runs with its 95 % bootstrap interval, upright at x = place.

    style: colour and marker. across: lying at y = place.
    """
    colour, marker = style
    mean, ends = runs.mean(), metrics.bootstrap_interval(runs)
    at, line = ((mean, place), axis.hlines) if across else ((place, mean), axis.vlines)
    axis.plot(*at, marker, color=colour, markersize=size, label=label)
    line(place, *ends, color=colour, linewidth=width)


def poison_words(poison: str, alpha_percent: float | None = None) -> str:
    """What a poison is called in titles, with its share where that is given."""
    name = POISON_NAMES.get(poison, poison)
    return name if alpha_percent is None else f"{name}, {alpha_percent} %"


def band_words(results: xr.Dataset, most_lines: int = 1) -> str:
    n = count_of_runs(results)
    none = (
        f"; no bands where there are more than {MOST_BANDS} lines"
        if most_lines > MOST_BANDS
        else ""
    )
    return "n = 1 run" if n == "1" else f"mean of n = {n} runs, band: ± 1 standard deviation{none}"


def finished(text: str, *studies: xr.Dataset, legend: bool = False) -> plt.Figure:
    """The current figure, with the text and how many trainings diverged below, one legend for all
    panels beside it."""
    figure = plt.gcf()
    if legend:
        found: dict[str, object] = {}  # each label once
        for axis in figure.axes:
            found = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True)) | found
        figure.legend(found.values(), found.keys(), frameon=False, loc="outside right upper")
        figure.set_figwidth(figure.get_figwidth() + 0.4 + 0.065 * max(map(len, found), default=0))
    diverged = sum(int(study.diverged.sum()) for study in studies if "diverged" in study)
    left_out = (
        "1 training that diverged is"
        if diverged == 1
        else f"{diverged} trainings that diverged are"
    )
    text += f"; {left_out} left out" if diverged else ""
    # characters of this size to the inch
    lines = textwrap.wrap(text, int(18 * figure.get_figwidth()))
    figure.set_figheight(figure.get_figheight() + 0.14 * (len(lines) - 1))
    figure.supxlabel("\n".join(lines), fontsize=7.5, color="0.3")
    return figure


def log_ticks(low: float, high: float, **options) -> matplotlib.ticker.LogLocator:
    """Ticks from low to high at the powers of ten, and at 2 and 5 times them where these are
    few."""
    return matplotlib.ticker.LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5), **options)


def draws_words(results: xr.Dataset) -> str:
    draws = results.sizes["draw"]
    over = f"mean over {draws} draws of the poison" if draws > 1 else "one draw of the poison"
    words = [f"{over}, n = {count_of_runs(results)} models of each kind", truth_words(results)]
    return "; ".join(filter(None, words))


def arm_styles(results: xr.Dataset) -> dict[str, tuple]:
    """Colour and line of each arm of the stage evaluation."""
    return method_styles(results) | {"teacher": (DARK[8], "-"), "oracle": (PALETTE[7], "--")}


def noises_of(results: xr.Dataset) -> list[tuple[str, int]]:
    """The poisons and shares of which the study holds something."""
    pairs = itertools.product(ordered(results, "poison"), results.alpha_percent.values)
    return [
        (poison, alpha)
        for poison, alpha in pairs
        if results.accuracy.sel(poison=poison, alpha_percent=alpha).count()
    ]


# ---- files ----


def image(figure: plt.Figure):
    """The figure as an image that a notebook shows; the figure is closed."""
    from IPython.display import Image

    plt.close(figure)
    with laid_out(figure, dpi=110):
        return Image(png(figure))


@contextmanager
def laid_out(figure: plt.Figure, *, dpi: int) -> Iterator[None]:
    """The figure's parts stay where one layout puts them: with an engine at work matplotlib draws
    each file twice."""
    figure.set_dpi(dpi)
    figure.get_layout_engine().execute(figure)
    with plt.rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
        yield


def png(figure: plt.Figure) -> bytes:
    """The figure in 256 colours, a third of the size: figures and notebooks are kept in git."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=figure.dpi)
    PIL.Image.open(full).convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE).save(
        small, "png", optimize=True
    )
    return small.getvalue()
