"""Keys hold all that a number depends on: what code reaches, and what was edited or replaced."""

from __future__ import annotations

import ast
import enum
import functools
import importlib
import itertools
import json
import linecache
import math
import subprocess
import sys
import types
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from conftest import ROOT, run_python
from hypothesis import given
from hypothesis import strategies as st

import models
import poison_unlearn
import run_unlearn_mnist
from foundation.base import storage
from foundation.engine import cluster, jobs, keys, own_code
from foundation.engine.code import Walk
from foundation.engine.folders import folder_name
from foundation.engine.jobs import Job, job_key
from foundation.engine.sources import NoSource
from models import QNN

WEIGHT = 1.0
FACTORS = [1.0, 2.0]


@dataclass(frozen=True, kw_only=True)
class Asked(Job):
    """A job that holds some code."""

    code: Any


def key(code):
    return job_key(Asked(data="d", code=code))


def helper(x):
    return x * WEIGHT


def loss(x):
    return helper(x) + sum(FACTORS)


def in_scope(text, **scope):
    """Run some code as a module of its own, whose text can be found."""
    name = f"<cell {next(COUNT)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    scope["__name__"] = "cell"
    exec(compile(text, name, "exec", dont_inherit=True), scope)
    return scope


COUNT = itertools.count()


# ---- the cases, each of which had one key ----


def test_default_arguments_count():
    first, second = (lambda params, inputs, k=k: k for k in (1, 3))
    assert key(first) != key(second)
    assert key(first) == key(functools.reduce(lambda code, _: code, [0], first))


def test_lambdas_on_one_line_are_told_apart():
    add, times = (lambda x: x + 1), (lambda x: x * 2)
    assert key(add) != key(times)
    inner, outer = lambda: lambda x: x + 1, lambda x: x + 1
    assert len({key(add), key(times), key(inner)}) == 3
    assert key(outer) == key(add)


def test_constants_and_helpers_that_code_names_count(monkeypatch):
    before = key(loss)
    monkeypatch.setattr(sys.modules[__name__], "WEIGHT", 5.0)
    constant = key(loss)
    monkeypatch.undo()
    assert key(loss) == before != constant
    monkeypatch.setattr(sys.modules[__name__], "helper", lambda x: x)
    assert len({before, constant, key(loss)}) == 3
    monkeypatch.undo()
    FACTORS.append(3.0)
    try:
        assert key(loss) != before
    finally:
        FACTORS.pop()
    assert key(loss) == before


def write(folder, name, text):
    path = folder / f"{name}.py"
    path.write_text(text)
    return path


def test_a_module_that_is_edited_and_reloaded(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    write(tmp_path, "helpers_edited", "def f(x):\n    return x + 1\n")
    module = importlib.import_module("helpers_edited")
    before = key(module.f)
    write(tmp_path, "helpers_edited", "def f(x):\n    return x + 2\n")
    assert key(module.f) is None  # the code that runs is not the one in the file
    importlib.invalidate_caches()
    module = importlib.reload(module)
    after = key(module.f)
    assert before != after and None not in (before, after)
    write(tmp_path, "helpers_edited", "def f(x):\n    return x + 1\n")
    assert key(importlib.reload(module).f) == before


def test_helpers_in_other_files_count_however_they_are_reached(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write(
        tmp_path,
        "helpers_far",
        "W = 1.0\n\n\ndef f(x):\n    return x * W\n\n\nclass C:\n    w = 1\n",
    )
    uses = {
        "name": "from helpers_far import f\ndef loss(x):\n    return f(x)\n",
        "module": "import helpers_far\ndef loss(x):\n    return helpers_far.f(x)\n",
        "constant": "import helpers_far as h\ndef loss(x):\n    return x * h.W\n",
        "inside": "def loss(x):\n    from helpers_far import f\n    return f(x)\n",
        "module inside": "def loss(x):\n    import helpers_far as h\n    return h.f(x)\n",
        "the module": "import helpers_far\ndef loss(x):\n    return vars(helpers_far)['W']\n",
        "class": "from helpers_far import C\ndef loss(x):\n    return C.w * x\n",
    }
    far = importlib.import_module("helpers_far")
    losses = {}
    for name, text in uses.items():
        losses[name] = in_scope(text)["loss"]
    before = {name: key(code) for name, code in losses.items()}
    assert None not in before.values() and len(set(before.values())) == len(uses)
    monkeypatch.setattr(far, "W", 2.0)
    monkeypatch.setattr(far.C, "w", 2)
    for name, code in losses.items():
        assert key(code) != before[name], name


def make_class(strength):
    @dataclass(frozen=True)
    class Made:
        def __call__(self, x):
            return x * strength

    return Made


def test_classes_made_in_a_factory_are_told_apart():
    weak, strong, again = make_class(0.1), make_class(5.0), make_class(0.1)
    assert key(weak()) == key(again()) != key(strong())
    assert key(weak) == key(again) != key(strong)


class D:
    def __init__(self, k):
        self.k = k

    def f(self, x):
        return x * self.k


def test_bound_methods_and_plain_objects_count_by_their_state():
    assert key(D(1).f) == key(D(1).f) != key(D(2).f)
    assert key(D(1)) == key(D(1)) != key(D(2))


def scaled(by):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(x):
            return by * function(x)

        return wrapper

    return decorate


def test_what_a_decorator_wraps_counts_and_so_does_the_wrapper():
    def plain(x):
        return x + 1

    def other(x):
        return x + 2

    codes = [plain, scaled(2)(plain), scaled(3)(plain), scaled(2)(other)]
    assert len({key(code) for code in codes}) == 4
    assert key(scaled(2)(plain)) == key(scaled(2)(plain))
    assert key(functools.lru_cache(plain)) != key(functools.lru_cache(other))


def test_a_class_attribute_that_is_set_later_counts():
    @dataclass(frozen=True)
    class Mine:
        scale = 1.0

        def f(self, x):
            return x * self.scale

    before = key(Mine())
    Mine.scale = 2.0
    changed = key(Mine())
    Mine.scale = 1.0
    assert key(Mine()) == before != changed
    Mine.g = lambda self: 0
    assert key(Mine()) != before


def test_a_base_class_counts():
    def family(factor):
        class Base:
            rate = factor

        @dataclass(frozen=True)
        class Child(Base):
            pass

        return Child()

    assert key(family(1)) == key(family(1)) != key(family(2))


def test_a_closure_that_calls_itself_has_a_key():
    def make(last):
        def count(n):
            return last if n == 0 else count(n - 1)

        return count

    assert key(make(0)) == key(make(0)) != key(make(1)) and key(make(0)) is not None


def test_partials_defaults_and_containers_count_by_content():
    def f(x, *, k=0):
        return x + k

    def with_keyword(k):
        def g(x, *, k=k):
            return x + k

        return g

    assert key(functools.partial(f, k=1)) != key(functools.partial(f, k=2))
    assert key(with_keyword(1)) == key(with_keyword(1)) != key(with_keyword(2))
    pairs = [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ((1, 2), [1, 2]),
        ({1: 2}, {"1": 2}),
        ({1, 2}, {1, 3}),
    ]
    pairs += [(np.float32(1), 1.0), (np.zeros(2), np.zeros(2, np.float32)), (b"1", "1"), (None, 0)]
    for left, right in pairs:
        assert key(with_keyword(left)) != key(with_keyword(right)), (left, right)
        assert key(with_keyword(left)) == key(with_keyword(left))


class Kind(enum.Enum):
    ONE = 1
    TWO = 2


class Pair(NamedTuple):
    left: float
    right: float = 0.0

    def sum(self):
        return self.left + self.right


def test_enumerations_and_named_tuples_have_keys():
    def f(x, kind):
        return x if kind is Kind.ONE else Pair(x).sum()

    codes = [functools.partial(f, kind=kind) for kind in Kind]
    codes += [functools.partial(f, kind=Pair(1.0, right)) for right in (0.0, 2.0)]
    assert len({key(code) for code in codes}) == 4 and None not in map(key, codes)


def test_attributes_of_a_function_count():
    def f(x):
        return x * f.rate

    f.rate = 1.0
    before = key(f)
    f.rate = 2.0
    assert key(f) != before


def test_a_librarys_function_counts_by_its_name_and_by_what_it_was_made_with():
    import optax

    assert key(math.sin) != key(math.cos) and key(np.sin) != key(np.cos)
    assert key(optax.adam(0.1)) == key(optax.adam(0.1)) != key(optax.adam(0.2))
    assert key(itertools.repeat) is not None


def test_what_has_no_content_is_computed_and_not_stored(tmp_path):
    handle = (tmp_path / "open").open("w")
    lock = __import__("threading").Lock()
    for thing in (handle, lock, (item for item in ())):

        def f(x, thing=thing):
            return x, thing

        assert key(f) is None
        with pytest.raises(NoSource, match=r"\w"):
            Walk().describe(f)
    scope = {}
    exec("def typed(x):\n    return x", scope)
    assert key(scope["typed"]) is None


# each with two values that make it behave differently; @@ stands for them
ATTACKS = {
    "a wrapping object": (
        "import functools\nclass Scale:\n    def __init__(self, g, k):\n"
        "        functools.update_wrapper(self, g)\n        self.k = k\n"
        "    def __call__(self, x):\n        return self.k * self.__wrapped__(x)\n"
        "def g(x):\n    return x\nf = Scale(g, @@)\n"
    ),
    "a derivative": (
        "import jax\n@jax.custom_jvp\ndef h(x):\n    return x * x\n@h.defjvp\n"
        "def rule(p, t):\n    return h(*p), @@ * t[0]\ndef f(x):\n    return jax.grad(h)(x)\n"
    ),
    "a dict that answers all names": (
        "class Settings(dict):\n    __getattr__ = dict.get\nS = Settings(k=@@)\n"
        "def f(x):\n    return S.k * x\n"
    ),
    "a partial's attributes": (
        "from functools import partial\ndef g(x):\n    return x\nf = partial(g)\nf.k = @@\n"
    ),
    "a default dictionary": (
        "from collections import defaultdict\nD = defaultdict(lambda: @@)\n"
        "def f(x):\n    return D[x]\n"
    ),
    "a masked array": (
        "import numpy as np\nW = np.ma.masked_array([1.0, 2.0], mask=[0, @@ - 1])\n"
        "def f(x):\n    return W * x\n"
    ),
    "the types of an array": (
        "import numpy as np\nW = np.zeros(2, dtype=[('a' * @@, 'f4')])\ndef f(x):\n    return W\n"
    ),
    "names of builtins": (
        "import builtins\nbuiltins.K_OF_MINE = @@\ndef f(x):\n    return K_OF_MINE\n"
    ),
    "an enumeration's attribute": (
        "import enum\nclass E(enum.Enum):\n    A = 1\nE.A.k = @@\ndef f(x):\n    return E.A.k\n"
    ),
    "a method of the library in a class": (
        "class N(float):\n    __mul__ = (float.__sub__, float.__add__)[@@ - 1]\n"
        "def f(x):\n    return N(x) * x\n"
    ),
    "a method of an object": "f = (3 * @@).__add__\n",
    "what is put into a library": (
        "import math\nmath.k_of_mine = @@\ndef f(x):\n    return math.k_of_mine * x\n"
    ),
    "a field's metadata": (
        "from dataclasses import dataclass, field\n@dataclass(frozen=True)\nclass M:\n"
        "    k: int = field(default=1, metadata={'w': @@})\nf = M()\n"
    ),
    "what a dataclass keeps beside its fields": (
        "from dataclasses import InitVar, dataclass\n@dataclass(frozen=True)\nclass M:\n"
        "    k: InitVar[int]\n    def __post_init__(self, k):\n"
        "        object.__setattr__(self, 'kept', k)\nf = M(@@)\n"
    ),
    "a field of a taken name": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass M:\n"
        "    source: str = 'a'\n    def __call__(self, x):\n        return x * @@\nf = M('b')\n"
    ),
    "a field that does not compare": (
        "from dataclasses import dataclass, field\n@dataclass(frozen=True)\nclass M:\n"
        "    k: int = field(default=1, compare=False)\nf = M(@@)\n"
    ),
    "an enumeration of text that is called": (
        "import enum\nclass L(str, enum.Enum):\n    A = 'a'\n    def __call__(self, x):\n"
        "        return x * @@\nf = L.A\n"
    ),
    "whole numbers as keys": "D = {1: @@, '1': 3}\ndef f(x):\n    return D[1]\n",
    "a function that is dispatched": (
        "import functools\n@functools.singledispatch\ndef f(x):\n    return 0\n"
        "@f.register\ndef _(x: float):\n    return x * @@\n"
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_further_ways_to_reach_a_number(name):
    text = ATTACKS[name]
    one, again, two = (key(in_scope(text.replace("@@", k))["f"]) for k in "112")
    assert one == again != two and None not in (one, two)


def test_what_answers_in_its_own_way_is_no_traceback():
    class Rude:
        def __getattr__(self, name):
            raise KeyError(name)

        def __bool__(self):
            raise TypeError

        def __eq__(self, other):
            raise ValueError

        __hash__ = object.__hash__

    nested: list = []
    for _ in range(5000):
        nested = [nested]
    own: set = set()

    def named():
        return own

    own.add(named)
    for thing in (Rude(), nested, named, 10**6000, {named: 1}, type("Empty", (), {})):
        key(thing)
        key(functools.partial(helper, thing))
    assert key(named) is None and key(10**6000) != key(10**6000 + 1)


def test_code_of_a_notebook_has_a_key():
    """A notebook compiles each statement alone; some calls are other instructions then."""
    text = "import math\nK = 2\ndef f(x):\n    return math.sqrt(x) * K\n"
    whole = in_scope(text)
    name, scope = "<a cell>", {"__name__": "cell"}
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    for statement in ast.parse(text).body:
        exec(compile(ast.Module([statement], []), name, "exec", dont_inherit=True), scope)
    assert scope["f"].__code__.co_code != whole["f"].__code__.co_code or sys.version_info >= (3, 12)
    assert key(scope["f"]) == key(whole["f"]) is not None


def test_use_changes_no_key():
    scope = in_scope(
        "import functools\nclass A:\n    @functools.cached_property\n    def k(self):\n"
        "        return 3\na = A()\n@functools.singledispatch\ndef g(x):\n    return a.k * x\n"
        "@functools.lru_cache\ndef h(x):\n    return g(x)\ndef f(x):\n    return h(x)\n"
    )
    before = key(scope["f"])
    scope["f"](2.0)
    assert key(scope["f"]) == before is not None


def test_texts_in_sets_are_in_no_order(tmp_path):
    for number in range(8):
        names = "{" + ", ".join(f"'{chr(97 + (number + k) % 26)}{k}'" for k in range(5)) + "}"
        write(tmp_path, f"way_{number:02}", f"S = {names}\ndef f(x):\n    return x in {names}, S\n")
    found = [keys_in_a_process(tmp_path, PYTHONHASHSEED=seed) for seed in ("0", "1", "2")]
    assert found[0] == found[1] == found[2] and len(set(found[0])) == 8


# ---- the project's own code ----


@pytest.fixture
def asked():
    job = Asked(data="d", code=1)
    before = job_key(job)
    yield lambda: job_key(job)
    assert job_key(job) == before  # all is as it was


def mine(task, params, batch):
    return 0.0


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (QNN, "scale", 1.0),
        (poison_unlearn, "retain_loss", mine),
        (models, "cross_entropy", mine),
        (poison_unlearn.Scrub, "loss", mine),
        (QNN, "family", "Other"),
        (QNN, "narrow", mine),
        (poison_unlearn, "DIVERGENCES", {"full": mine}),
        (models, "fit", functools.partial(models.fit)),
        (models, "optax", None),
        (models, "fields", mine),
        (models.MLP, "logits", np.matmul),
        (models.MLP, "narrow", staticmethod(models.MLP.narrow)),
        (QNN, "_reduced", 5),
        (models.QNN.logits, "__kwdefaults__", {"key": 1}),
        (poison_unlearn.flip_labels, "__kwdefaults__", {"balanced": False}),
        (poison_unlearn, "retain_loss", types.MethodType(poison_unlearn.retain_loss, 1)),
        (poison_unlearn, "FineTune", poison_unlearn.Retrain),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_function_or_constant_of_the_project_that_is_replaced_joins_every_key(
    asked, monkeypatch, owner, name, value
):
    before = asked()
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, value, raising=False)
        assert asked() != before


def test_what_is_deleted_from_the_project_joins_every_key(asked, monkeypatch):
    before = asked()
    with monkeypatch.context() as patched:
        patched.delattr(poison_unlearn.Scrub, "loss")
        assert asked() != before


def test_code_of_the_project_with_one_name_is_told_apart():
    losses = (poison_unlearn.Scrub.loss, poison_unlearn.FineTune.loss, models.MLP.logits)
    assert len({key(functools.partial(helper, code)) for code in losses}) == 3
    assert len({key(code) for code in losses}) == 3


def test_an_edited_file_of_the_project_joins_every_key_until_numerics_rises(
    asked, monkeypatch, tmp_path
):
    before = asked()
    text = (ROOT / "models.py").read_text()
    known = own_code.KNOWN
    edited = text.replace("0.01 * jax.random.normal", "0.02 * jax.random.normal")
    reformatted = text.replace("def fit(", "def fit(  # a comment\n").replace('"""', '""" ', 2)
    assert text not in (edited, reformatted)
    (tmp_path / "models.py").write_text(reformatted)
    with monkeypatch.context() as patched:
        patched.setattr(own_code, "ROOT", tmp_path)
        only = known._replace(files={"models.py": known.files["models.py"]})
        assert own_code.edited(only) == {}
        (tmp_path / "models.py").write_text(edited)
        assert set(own_code.edited(only)) == {"models", "models.QNN"}
        (tmp_path / "models.py").unlink()
        assert "models.fit" in own_code.edited(only)
    with monkeypatch.context() as patched:
        patched.setattr(own_code, "edited", lambda known: {"models.fit": "0"})
        changed = asked()
        assert changed != before
        patched.setattr(keys, "NUMERICS", keys.NUMERICS + 1)
        assert asked() not in (before, changed)


def test_what_is_replaced_is_replaced_in_the_processes_that_compute(tmp_path):
    """Their numbers are those of the code that the key stands for."""
    code = (
        "import sys\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "import models, poison_unlearn, run_unlearn_mnist as script\n"
        "from datar import load_mnist\n"
        "from foundation.base.storage import read_dataset\n"
        "from foundation.engine.runner import run_studies\n"
        "def nothing(task, params, batch):\n"
        "    return 0.0 * sum(leaf.sum() for leaf in jax.tree.leaves(params))\n"
        "import jax\n"
        "config = replace(script.QUICK, stages=('noise_sweep',), alphas=(0,), runs=1, block=1, "
        "poisons=('labels',), models=('qnn', 'mlp'), optimization_level=0, workers=1)\n"
        "data = load_mnist(source='embedded', per_class=20)\n"
        "usual = poison_unlearn.retain_loss\n"
        "for name, scale, loss in (('a', 5.0, usual), ('b', 0.0, usual), ('c', 5.0, nothing)):\n"
        "    models.QNN.scale, poison_unlearn.retain_loss = scale, loss\n"
        "    out = replace(config, out=Path(sys.argv[1]) / name)\n"
        "    found = read_dataset(run_studies(out, data, script.STUDIES) / 'noise_sweep.nc')\n"
        "    print(*[float(found.loss.sel(split='train', model=model).squeeze()) "
        "for model in found.model.values])\n"
    )
    done = run_python("-c", code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    usual, scaled, untrained = (
        [float(number) for number in line.split()] for line in done.stdout.splitlines()
    )
    assert max(usual) < 0.6
    assert scaled[1] == pytest.approx(math.log(2)) and scaled[0] == usual[0]
    assert untrained[1] == pytest.approx(math.log(2), abs=0.05) and untrained[0] > usual[0]


def test_a_measure_of_ones_own_before_any_import_of_studies_joins_no_other_key():
    """As a script of one's own adds it; it is in the keys of the scores alone."""
    code = (
        "from foundation.measures.forgetting import MEASURES, Measure\n"
        "MEASURES['worst'] = Measure(lambda *_: 0.0, 'worst')\n"
        "import run_unlearn_mnist\n"
        "from foundation.engine import own_code\n"
        "from studies.judging import Score\n"
        "names = [name for name, _ in Score.measures]\n"
        "print(own_code.changes(), 'worst' in names)\n"
    )
    done = run_python("-c", code)
    assert done.stdout == "{} False\n", done.stderr


# ---- settings ----


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_high_dynamic_range_gumbel", True),
        ("jax_use_direct_linearize", False),
        ("jax_softmax_custom_jvp", True),
    ],
)
def test_settings_that_change_numbers_are_in_the_key_and_name_the_folder(asked, flag, value):
    before, usual = asked(), jax.config.values.get(flag, getattr(jax.config, flag, None))
    folder = folder_name(run_unlearn_mnist.QUICK)
    jax.config.update(flag, value)
    try:
        assert asked() != before
        assert folder_name(run_unlearn_mnist.QUICK) == f"{folder}+{flag}={value}"
    finally:
        jax.config.update(flag, usual)


def test_every_setting_is_at_its_default_in_a_fresh_process():
    code = "from foundation.engine import keys; print(keys.settings(), len(keys.jax_settings()))"
    clean = {"XLA_FLAGS": "", "OPENBLAS_CORETYPE": "", "JAX_PLATFORMS": "cpu"}
    done = run_python("-c", code, **clean)
    assert done.stdout == f"{{}} {len(keys.SETTINGS)}\n", done.stderr


def test_the_kernel_of_blas_is_in_the_key_where_it_is_not_the_usual_one(asked, monkeypatch):
    before = asked()
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    assert asked() != before and jobs.one_thread()["OPENBLAS_CORETYPE"] == "Prescott"
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    usual = storage.usual_kernel()
    assert jobs.one_thread().get("OPENBLAS_CORETYPE", "") == usual
    monkeypatch.setenv("OPENBLAS_CORETYPE", usual)
    assert asked() == before
    monkeypatch.delenv("OPENBLAS_CORETYPE")


def test_a_worker_of_another_kind_of_processor_takes_its_own_kernel(monkeypatch):
    setting = jobs.Setting({}, {}, {"OPENBLAS_CORETYPE": storage.KERNEL})
    monkeypatch.setattr(storage, "features", lambda: ("sse2",))
    assert cluster._for_this_machine(setting).environment == {}
    monkeypatch.setattr(storage, "features", lambda: ("avx2", "fma"))
    assert cluster._for_this_machine(setting) == setting


def test_the_commit_is_that_of_the_project_whatever_git_is_told(tmp_path, monkeypatch):
    usual = storage.git_commit()
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    storage.git_commit.cache_clear()
    try:
        assert storage.git_commit() == usual
    finally:
        storage.git_commit.cache_clear()


# ---- random code ----


BODIES = ("x * {n}", "max(x, {n})", "[x, {n}][x > {n}]", "(lambda y: y - {n})(x)")
WAYS = {
    "body": "def f(x):\n    return {body}\n",
    "default": "def f(x, k={n}):\n    return x + k\n",
    "keyword": "def f(x, *, k={n}):\n    return x + k\n",
    "closure": "def make(k):\n    def f(x):\n        return x + k\n    return f\nf = make({n})\n",
    "global": "K = {n}\ndef f(x):\n    return x + K\n",
    "helper": "def h(x):\n    return {body}\ndef f(x):\n    return h(x)\n",
    "class": "class C:\n    k = {n}\n    def f(self, x):\n        return x + self.k\nf = C().f\n",
    "object": "class C:\n    def __init__(self, k):\n        self.k = k\n"
    "    def __call__(self, x):\n        return x + self.k\nf = C({n})\n",
    "partial": "from functools import partial\ndef g(k, x):\n    return x + k\n"
    "f = partial(g, {n})\n",
    "decorator": "def by(k):\n    def decorate(g):\n        return lambda x: g(x) + k\n"
    "    return decorate\n@by({n})\ndef f(x):\n    return x\n",
    "table": "TABLE = {{'a': {n}}}\ndef f(x):\n    return x + TABLE['a']\n",
    "lambdas": "f, g = lambda x: {body}, lambda x: x\n",
}


@given(
    st.sampled_from(sorted(WAYS)),
    st.sampled_from(BODIES),
    st.sampled_from(BODIES),
    st.integers(-3, 3),
    st.integers(-3, 3),
)
def test_random_code_has_another_key_where_it_differs_and_the_same_where_it_does_not(
    way, body, other_body, n, other_n
):
    def made(body, n):
        return WAYS[way].format(body=body.format(n=n), n=n)

    text, other_text = made(body, n), made(other_body, other_n)
    code, again, other = (in_scope(each)["f"] for each in (text, text, other_text))
    assert key(code) == key(again) is not None
    assert (key(code) == key(other)) == (text == other_text)


def keys_in_a_process(folder, python=sys.executable, **variables):
    names = sorted(path.stem for path in folder.glob("way_*.py"))
    code = (
        "import importlib, json, sys\n"
        f"sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]\n"
        "from foundation.engine import own_code\n"
        "from foundation.engine.code import Walk, digest\n"
        "def hash_of(name):\n"
        "    code = importlib.import_module(name).f\n"
        "    return digest(Walk(own_code.name_of_own).describe(code))\n"
        f"print(json.dumps([hash_of(name) for name in {names}]))"
    )
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_hashes_are_the_same_in_fresh_processes_under_any_hash_seed(tmp_path):
    for number, way in enumerate(sorted(WAYS)):
        text = WAYS[way].format(body="x + len({'a', 'b'})", n=2)
        write(tmp_path, f"way_{number:02}", text)
    found = [keys_in_a_process(tmp_path, PYTHONHASHSEED=seed) for seed in ("0", "1", "2")]
    assert found[0] == found[1] == found[2] and len(set(found[0])) == len(WAYS)
