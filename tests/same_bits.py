"""Are the numbers still those of the reference commit, bit for bit? Every study is computed anew
and compared.

    python tests/same_bits.py              # compute and compare with tests/same_bits.json
    python tests/same_bits.py --renew      # and, if they agree, renew foundation/engine/sources.txt
    python tests/same_bits.py --code FOLDER --reference    # make the reference, of another checkout

Computed in an empty folder: the presets quick of all three scripts, whose reference is of a later
commit than that of the others, and one block of one run of every study and every model of the
presets paper and corrected, after fewer epochs where a study takes hundreds of them. Compared are
all arrays of the study files, by name, and all arrays of the jobs behind them, which hold
parameters and logits as well. Compiled programs are taken from the user's cache where they are
there: 42 minutes of CPU then.

The list of sources says which code of the project is the committed one: other code makes other
keys. It is renewed where all agrees, or where NUMERICS is above that of the reference, which is to
be made anew then.

Exits with 0 where all agree, 1 where something differs (it is named), 2 where nothing can be said:
bits depend on the kind of processor and on the versions of the packages.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = Path(__file__).with_suffix(".json")
EMBEDDED = "--source embedded"
FEW_RUNS = "--runs 1 --block 1"
SHORT = (  # what of the preset corrected takes hours
    f"{FEW_RUNS} --alphas 30 --weight-map.weights 0.4 --teachers 4 --draws 1 --selection-runs 1 "
    "--epochs.grid 2 4 --oracle-epochs mlp=4 qnn=4 logistic=4 quadratic=4 --matched.epochs mlp=4 "
    "qnn=4 logistic=4 quadratic=4 --noises labels=30 --long-epochs 8 --control-epochs 4 "
    "--tuning-runs 1 --capacity.samples 20 --capacity.runs 1 --discovery.poisons labels=30 "
    "--discovery.known 0 50 --discovery.runs 1 --hardware.noise p1=1e-3,p2=1e-2,readout=0.03 "
    "--hardware.shots 128 --hardware.trained-shots 16 --hardware.alphas 30 --hardware.runs 1"
)
FAMILIES = "--models mlp qnn logistic quadratic"
KINDS = "--poisons labels features one_class boundary quid backdoor confusion"
MAIN = "--stages data noise_sweep unlearning weight_map"
BRIEF = "--qnn.sweep.epochs 4 --qnn.teacher.epochs 4 --qnn.unlearn.epochs 4"
COMMANDS = {  # by name, a script and its flags
    "mnist quick": "run_unlearn_mnist.py --preset quick",
    "xxz quick": "run_unlearn_xxz.py --preset quick",
    "hessian quick": "run_hessian.py --preset quick",
    "mnist paper": f"run_unlearn_mnist.py --preset paper {EMBEDDED} {FEW_RUNS} --alphas 30 "
    f"--weight-map.weights 0.4 {MAIN}",
    "xxz paper": f"run_unlearn_xxz.py --preset paper {FEW_RUNS} --alphas 30 --weight-map.weights "
    "0.4 --depths.layers 5 "
    f"--gauge-control.runs 1 {MAIN} depths gauge",
    "hessian corrected": f"run_hessian.py --preset corrected {EMBEDDED} {FEW_RUNS} --alphas 0 40 "
    "--landscape.slice-points 5 --landscape.lanczos-steps 20",
    "mnist corrected": f"run_unlearn_mnist.py --preset corrected {EMBEDDED} {SHORT} {FAMILIES} "
    f"{KINDS} --unlearn-features 30 {MAIN} epochs encodings",
    "xxz corrected": f"run_unlearn_xxz.py --preset corrected {SHORT} {FAMILIES} {MAIN} epochs",
    "mnist controls": f"run_unlearn_mnist.py --preset corrected {EMBEDDED} {SHORT} --pairs.digits "
    "1 9 --pairs.runs 1 --stages dynamics controls capacity memorising pairs",
    "xxz controls": f"run_unlearn_xxz.py --preset corrected {SHORT} --splits.sizes 8 "
    "--stages dynamics controls capacity memorising splits",
    "mnist judged": f"run_unlearn_mnist.py --preset corrected {EMBEDDED} {SHORT} --stages "
    "evaluation influence",
    "mnist equal": f"run_unlearn_mnist.py --preset corrected {EMBEDDED} {SHORT} --selection-runs 0 "
    "--methods retrain scrub --stages equal_steps matched_fit",
    "xxz judged": f"run_unlearn_xxz.py --preset corrected {SHORT} --evaluated mlp qnn --stages "
    "evaluation influence",
    "mnist benchmark": f"run_unlearn_mnist.py --preset corrected {EMBEDDED} {SHORT} "
    "--selection-runs 0 --evaluated mlp qnn --benchmarked-hidden 16,4 --stages benchmark finalists",
    "mnist discovery": f"run_unlearn_mnist.py --preset corrected {EMBEDDED} {SHORT} "
    f"--selection-runs 0 {BRIEF} "
    "--evaluated mlp qnn --discovery.methods cf scrub newton --methods scrub --stages discovery "
    "hardware",
}
SPELLED_BEFORE = {  # at 31ba00d
    "--capacity.samples": "--capacity-samples",
    "--capacity.runs": "--capacity-runs",
    "--weight-map.weights": "--map-weights",
    "--epochs.grid": "--epoch-grid",
    "--matched.epochs": "--matched-epochs",
    "--discovery.poisons": "--discovered",
    "--discovery.known": "--known",
    "--discovery.runs": "--discovery-runs",
    "--discovery.methods": "--discovery-methods",
    "--hardware.noise": "--device-noise",
    "--hardware.shots": "--device-shots",
    "--hardware.trained-shots": "--device-trained-shots",
    "--hardware.alphas": "--device-alphas",
    "--hardware.runs": "--device-runs",
    "--depths.layers": "--depths",
    "--gauge-control.runs": "--gauge-runs",
    "--landscape.slice-points": "--slice-points",
    "--landscape.lanczos-steps": "--lanczos-steps",
    "--pairs.digits": "--pair-digits",
    "--pairs.runs": "--pair-runs",
    "--splits.sizes": "--sizes",
}


def compute(code: Path, out: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """The digests of everything that the commands compute into an empty folder, by command."""
    found = {}
    for name in names:
        words = COMMANDS[name].split()
        if not (code / "foundation").is_dir():
            words = [SPELLED_BEFORE.get(word, word) for word in words]
        begun, folder = time.perf_counter(), out / name.replace(" ", "-")
        done = subprocess.run(
            [sys.executable, *words, "--out", str(folder)],
            cwd=code,
            env=environment(out),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"error: {name} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
        found[name] = digests(folder)
        counts = f"{len(found[name]['arrays'])} arrays, {sum(found[name]['jobs'].values())} jobs"
        print(f"{name}: {counts} in {time.perf_counter() - begun:.0f} s", flush=True)
    return found


def environment(out: Path) -> dict[str, str]:
    """A user's environment with an empty cache, so that the ring is diagonalised, and with all
    compiled programs."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    home = Path(kept.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    compiled = kept.get("JAX_COMPILATION_CACHE_DIR", str(home / "quantum-unlearning" / "xla"))
    return kept | {"XDG_CACHE_HOME": str(out / "cache"), "JAX_COMPILATION_CACHE_DIR": compiled}


def digests(folder: Path) -> dict[str, Any]:
    """arrays: {study/variable: digest}; jobs: {what a job computed, its digest: how many}; machine
    and versions."""
    arrays, jobs, places, numerics = {}, Counter(), {"processor": set(), "versions": set()}, 0
    for path in sorted(folder.rglob("*.nc")):
        study = read(path)
        arrays |= {f"{path.stem}/{name}": digest(array) for name, array in study.variables.items()}
        places["versions"].add(study.attrs["versions"])
        places["processor"].add(study.attrs["machine"].partition(" cores")[0].rpartition(",")[0])
    for path in sorted(folder.rglob("*.safetensors")):
        tensors, record = read_tensors(path)
        parts = [f"{name} {digest(xr.Variable([f'{i}' for i in range(array.ndim)], array))}"
                 for name, array in sorted(tensors.items())]  # fmt: skip
        numerics = record["fields"]["numerics"]
        jobs[f"{words_of(record['fields'])} {shortened(' '.join(parts).encode())}"] += 1
    return {"arrays": arrays, "jobs": dict(sorted(jobs.items())), "numerics": numerics} | {
        name: "; ".join(sorted(values)) for name, values in places.items()
    }


def words_of(fields: dict[str, Any]) -> str:
    """What a job is, for messages: the classes of its parts."""
    parts = [fields, *(fields.get(name) or {} for name in ("model", "method", "poison"))]
    return " ".join(str(part["is"]) for part in parts if "is" in part)


def digest(array: xr.Variable) -> str:
    values = array.values
    if values.dtype.kind in "OUST":
        content = json.dumps(np.asarray(values, str).tolist()).encode()
    else:
        content = np.ascontiguousarray(values).tobytes()
    kind = "text" if values.dtype.kind in "OUST" else values.dtype.str
    return shortened(f"{kind}{array.dims}{array.shape}".encode() + content)


def shortened(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def read(path: Path) -> xr.Dataset:
    with xr.open_dataset(path, engine="h5netcdf") as study:
        return study.load()


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in list(file.keys())}, json.loads(
            file.metadata()["record"]
        )


def own_sources() -> list[str]:
    """The lines of foundation/engine/sources.txt as the code is now."""
    sys.path.insert(0, str(ROOT))
    from foundation.base.places import own_files
    from foundation.engine import keys, own_code
    from foundation.engine.jobs import Job
    from foundation.measures.forgetting import MEASURES, Measure
    from foundation.quantum.device import Noise
    from models import MLP, QNN, Training
    from poison_unlearn import POISONS, Method, Poison
    from studies.oracles import Case
    from studies.quadratic import QuadraticForm

    kinds = (Job, Method, Poison, Training, MLP, QNN, QuadraticForm, Measure, Case, Noise)
    code: list[Any] = [*POISONS.values(), *(measure.function for measure in MEASURES.values())]
    for path in own_files():
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        values = list(vars(importlib.import_module(name)).values())
        classes = [each for each in values if isinstance(each, type) and each.__module__ == name]
        code += [
            each
            for each in classes
            if issubclass(each, kinds) or name in ("studies.contenders", "studies.classics")
        ]
        code += [each.function for each in values if isinstance(each, Poison) and each.function]
    return own_code.manifest_lines(code, keys.NUMERICS)


def renew() -> str:
    """Write the list of sources; returns what was done in words."""
    lines = own_sources()
    from foundation.engine import own_code

    before = own_code.MANIFEST.read_text().splitlines()
    changed = len({*lines} - {*before})
    own_code.MANIFEST.write_text("\n".join(lines) + "\n")
    return f"{own_code.MANIFEST.relative_to(ROOT)}: {len(lines)} lines, {changed} changed"


def renewed() -> str:
    """Renew in a fresh process: this one may have imported code that was edited since."""
    code = "import same_bits; print(same_bits.renew())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip() or sys.exit("error: the list of sources could not be renewed")


def differences(found: dict[str, dict], expected: dict[str, dict]) -> list[str]:
    """What differs between two sets of digests, in lines."""
    lines = []
    for name, own in found.items():
        theirs = expected[name]
        for array in sorted(own["arrays"].keys() | theirs["arrays"].keys()):
            if own["arrays"].get(array) != theirs["arrays"].get(array):
                lines.append(f"{name}: {array} {_how(array, own['arrays'], theirs['arrays'])}")
        # how many jobs gave these numbers does not matter: equal ones may be computed once
        here, there = own["jobs"].keys(), theirs["jobs"].keys()
        for words, jobs in (("there alone", there - here), ("here alone", here - there)):
            lines += [f"{name}: job {job} {words}" for job in sorted(jobs)]
    return lines


def _how(array: str, found: dict, expected: dict) -> str:
    return (
        "differs"
        if array in found and array in expected
        else "is new"
        if array in found
        else "is missing"
    )


def kinds(found: dict[str, dict]) -> dict[str, str]:
    """Processor and versions behind some digests."""
    return {
        name: "; ".join(sorted({own[name] for own in found.values()}))
        for name in ("processor", "versions")
    }


def needs_no_proof() -> bool:
    """Whether the list may be renewed without computing: NUMERICS rose, or the digests in it are
    those of the code."""
    now = {line for line in own_sources() if not line.startswith("file ")}
    from foundation.engine import keys, own_code

    listed = {line for line in own_code.MANIFEST.read_text().splitlines() if line[:5] != "file "}
    return json.loads(REFERENCE.read_text())["numerics"] < keys.NUMERICS or now == listed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--code",
        type=Path,
        default=ROOT,
        metavar="FOLDER",
        help="whose code computes (this checkout)",
    )
    parser.add_argument(
        "--reference", action="store_true", help="write the digests in place of comparing them"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(COMMANDS),
        default=list(COMMANDS),
        metavar="NAME",
        help="some of the commands: " + ", ".join(COMMANDS),
    )
    parser.add_argument(
        "--renew", action="store_true", help="renew the list of sources, if all agree"
    )
    arguments = parser.parse_args()
    if arguments.renew and needs_no_proof():
        print(renewed())
        return 0
    with tempfile.TemporaryDirectory(prefix="same-bits-") as folder:
        found = compute(arguments.code.resolve(), Path(folder), arguments.only)
    if arguments.reference:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=arguments.code, capture_output=True, text=True
        )
        kept = json.loads(REFERENCE.read_text()) if REFERENCE.is_file() else {"commands": {}}
        numerics = max(own.pop("numerics") for own in found.values())
        made_of = commit.stdout.strip()
        for own in found.values():
            own["commit"] = made_of
        content = {"commit": made_of, "numerics": numerics, "commands": kept["commands"] | found}
        if len(found) < len(COMMANDS):  # the others are still of the commit that is kept
            content |= {name: kept[name] for name in ("commit", "numerics") if name in kept}
        REFERENCE.write_text(json.dumps(content, indent=0, sort_keys=True) + "\n")
        return 0
    reference = json.loads(REFERENCE.read_text())
    theirs = {name: reference["commands"][name] for name in found}
    made_of = {own.get("commit", reference["commit"])[:7] for own in theirs.values()}
    here, there, commits = kinds(found), kinds(theirs), ", ".join(sorted(made_of))
    if here != there:
        print(
            f"nothing can be said: the reference is of {there}, this is {here}. Make one here, of "
            f"{commits}, each for its commands: --code FOLDER --reference --only NAME ...",
            file=sys.stderr,
        )
        return 2
    lines = differences(found, reference["commands"])
    print("\n".join(lines) or f"same bits as {commits}: {len(found)} commands")
    if arguments.renew:
        whole = found.keys() == COMMANDS.keys()
        print(
            renewed()
            if whole and not lines
            else "the list of sources stays: its condition is that all agree"
        )
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
