"""Would the suite see a mistake? Each mutant is one wrong line of the code; a test has to fail.

    python tests/mutants.py                  # all of them, some minutes each
    python tests/mutants.py half_kl no_holm  # some

A copy of the checkout is changed in one place, and the tests named beside the mutant are run on it
until one fails. Prints which test caught each mutant. Exits with 1 where one survives. Not part of
the suite, which it would make twenty times as long.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutant(NamedTuple):
    """One mistake: a text of a file and what it becomes, and the test files that should see it."""

    file: str
    right: str
    wrong: str
    tests: str  # names of test files, without test_ and .py


MUTANTS = {
    # ---- poison ----
    "unbalanced_flips": Mutant(
        "poison_unlearn.py",
        "groups = [np.flatnonzero(split.y == label) for label in (0, 1)]",
        "groups = [np.arange(len(mask))]",
        "poison_unlearn",
    ),
    "flip_of_the_wrong_half": Mutant(
        "poison_unlearn.py",
        "mask[group] = np.isin(group, in_order[:count])\n    y = np.where(mask, 1 - split.y",
        "mask[group] = np.isin(group, in_order[:count])\n    y = np.where(~mask, 1 - split.y",
        "poison_unlearn",
    ),
    "mask_off_by_one": Mutant(
        "poison_unlearn.py",
        "mask[generator.choice(group, count_of_group, replace=False)] = True",
        "mask[generator.choice(group, count_of_group, replace=False) - 1] = True",
        "poison_unlearn",
    ),
    "noise_in_the_padding": Mutant(
        "poison_unlearn.py",
        "length = padded_length if n_features is None else n_features",
        "length = padded_length",
        "poison_unlearn",
    ),
    "noise_without_norm": Mutant(
        "poison_unlearn.py",
        "x[mask, :length] = noise / lengths",
        "x[mask, :length] = noise",
        "poison_unlearn",
    ),
    "trigger_on_the_label_it_should_get": Mutant(
        "poison_unlearn.py",
        "ones = dataset.val.x[dataset.val.y == 1]",
        "ones = dataset.val.x[dataset.val.y == 0]",
        "poison_unlearn discovery",
    ),
    # ---- losses and methods ----
    "ascent_descends": Mutant(
        "poison_unlearn.py",
        "return descent - ascent",
        "return descent + ascent",
        "poison_unlearn methods",
    ),
    "scrub_stays": Mutant(
        "poison_unlearn.py",
        "return kept - self.forget * leave",
        "return kept + self.forget * leave",
        "poison_unlearn methods",
    ),
    "scrub_teaches_the_teacher": Mutant(
        "poison_unlearn.py",
        "leave = jnp.mean(divergence(batch.forget_teacher, forget))",
        "leave = jnp.mean(divergence(forget, batch.forget_teacher))",
        "poison_unlearn methods",
    ),
    "half_kl": Mutant(
        "foundation/measures/metrics.py",
        "    return of_class_1 + of_class_0\n",
        "    return of_class_1\n",
        "metrics poison_unlearn",
    ),
    "cross_entropy_of_the_other_class": Mutant(
        "foundation/measures/metrics.py",
        "entropies = jax.nn.softplus(logits) - labels * logits",
        "entropies = jax.nn.softplus(logits) + labels * logits",
        "metrics",
    ),
    "retrain_starts_from_the_teacher": Mutant(
        "poison_unlearn.py",
        '    title = "Retrain"\n    is_fresh = True\n',
        '    title = "Retrain"\n    is_fresh = False\n',
        "poison_unlearn methods",
    ),
    "softened_without_its_square": Mutant(
        "studies/methods.py",
        "return temperature**2 * bernoulli_kl(",
        "return temperature * bernoulli_kl(",
        "methods",
    ),
    "dampening_the_wrong_weights": Mutant(
        "studies/methods.py",
        "chosen = of_forget > least",
        "chosen = of_forget < least",
        "methods",
    ),
    "last_layers_are_the_first": Mutant(
        "models.py",
        "return [(kept, kept) for kept in _last(k, len(params))]",
        "return [(kept, kept) for kept in _last(k, len(params))[::-1]]",
        "methods models",
    ),
    # ---- training and protocol ----
    "filling_rows_count": Mutant(
        "models.py",
        "is_sample = jnp.arange(n_steps * size) < n_samples",
        "is_sample = jnp.arange(n_steps * size) <= n_samples",
        "models",
    ),
    "one_epoch_less": Mutant(
        "models.py",
        "carry = jax.lax.cond(carry[2] < epochs, one_epoch, lambda carry: carry, carry)",
        "carry = jax.lax.cond(carry[2] < epochs - 1, one_epoch, lambda carry: carry, carry)",
        "models",
    ),
    "teachers_see_the_retained_alone": Mutant(
        "protocol.py",
        "return bool(self.start) if self.retains is None else self.retains",
        "return self.retains is not False",
        "jobs poison_unlearn evaluation",
    ),
    "oracle_shares_the_teachers_seed": Mutant(
        "protocol.py",
        'kind = "oracle" if self.forgets and not self.start else "fit"',
        'kind = "fit"',
        "evaluation",
    ),
    "retain_scored_on_all": Mutant(
        "protocol.py",
        '"retain": (~known, no_train, no_val),',
        '"retain": (~no_train, no_train, no_val),',
        "xxz_study scripts",
    ),
    "forget_clean_scored_as_poisoned": Mutant(
        "protocol.py",
        '"forget_clean": (no_train, known, no_val),',
        '"forget_clean": (known, no_train, no_val),',
        "xxz_study scripts",
    ),
    "held_out_of_the_other_samples": Mutant(
        "protocol.py",
        "return ~np.isin(samples, held_out)",
        "return np.isin(samples, held_out)",
        "controls evaluation",
    ),
    "teacher_of_the_next_run": Mutant(
        "protocol.py",
        "teachers[:] = self.teacher_run - self.start.runs[0]",
        "teachers[:] = self.teacher_run - self.start.runs[0] + 1",
        "xxz_study",
    ),
    # ---- circuits, noise, ring ----
    "angles_in_another_order": Mutant(
        "foundation/quantum/circuits.py",
        "angle = params[layer, qubit, len(rotations)]",
        "angle = params[layer, neighbour, len(rotations)]",
        "circuits",
    ),
    "first_qubit_is_measured": Mutant(
        "foundation/quantum/circuits.py",
        "last_is_0 = probabilities[0::2].sum(axis=0)\n        last_is_1 = probabilities[1::2]",
        "last_is_0 = probabilities[1::2].sum(axis=0)\n        last_is_1 = probabilities[0::2]",
        "circuits",
    ),
    "imaginary_part_of_the_wrong_sign": Mutant(
        "foundation/quantum/many_qubits.py",
        "real = real_rows[0] - imaginary_rows[1]",
        "real = real_rows[0] + imaginary_rows[1]",
        "circuits",
    ),
    "columns_out_of_order": Mutant(
        "foundation/quantum/many_qubits.py",
        "(*register, *passive)]",
        "(*passive, *register)]",
        "circuits",
    ),
    "cone_without_its_last_neighbour": Mutant(
        "foundation/quantum/gates.py",
        "size = min(2 * layers - 1, n_qubits)",
        "size = min(2 * layers - 2, n_qubits)",
        "circuits",
    ),
    "depolarising_by_a_quarter": Mutant(
        "foundation/quantum/device.py",
        "factor = (1 - 4 * noise.p1 / 3) ** len(rotations)",
        "factor = (1 - noise.p1) ** len(rotations)",
        "hardware",
    ),
    "readout_flips_once": Mutant(
        "foundation/quantum/device.py",
        "contrast = 1 - 2 * noise.readout",
        "contrast = 1 - noise.readout",
        "hardware",
    ),
    "shift_without_half": Mutant(
        "foundation/quantum/device.py",
        "return cotangent @ (plus - minus) / 2",
        "return cotangent @ (plus - minus)",
        "hardware",
    ),
    "gauge_of_the_last_amplitude": Mutant(
        "foundation/quantum/ring.py",
        "amplitudes *= signs[:, None]",
        "amplitudes *= -signs[:, None]",
        "xxz_data",
    ),
    "bond_too_few": Mutant(
        "foundation/quantum/ring.py",
        "diagonal = n_sites - 2.0 * unequal.sum(axis=1)",
        "diagonal = n_sites - 2.0 * unequal[:, 1:].sum(axis=1)",
        "xxz_data",
    ),
    "labels_of_the_other_phase": Mutant(
        "datar.py",
        "is_antiferromagnetic = COUPLINGS[points] > 1",
        "is_antiferromagnetic = COUPLINGS[points] > 0",
        "xxz_data",
    ),
    "norm_along_the_wrong_axis": Mutant(
        "datar.py",
        'axes = (1, 2) if encoding == "amplitude" else 1',
        'axes = (1, 2) if encoding == "amplitude" else 2',
        "datar",
    ),
    # ---- landscape ----
    "hessian_without_its_second_part": Mutant(
        "landscape.py",
        "return gauss_newton + 2 * model.scale * second",
        "return gauss_newton + model.scale * second",
        "landscape",
    ),
    "trace_of_slopes_alone": Mutant(
        "landscape.py",
        "return jnp.mean(curvatures * slopes_squared)",
        "return jnp.mean(slopes_squared)",
        "landscape",
    ),
    # ---- measures and verdicts ----
    "w1_along_the_wrong_axis": Mutant(
        "foundation/measures/forgetting.py",
        "ascending = np.sort(values, axis=0)",
        "ascending = np.sort(values, axis=1)",
        "evaluation",
    ),
    "floor_against_the_wrong_half": Mutant(
        "foundation/measures/forgetting.py",
        'floor_value = value_of("floor", floor, oracles)',
        'floor_value = value_of("models", models, oracles)',
        "evaluation",
    ),
    "exchanges_with_themselves": Mutant(
        "foundation/measures/forgetting.py",
        "abs(value_of(~mask) - perfect))",
        "abs(value_of(mask) - perfect))",
        "evaluation",
    ),
    "sorted_by_another_sample": Mutant(
        "foundation/measures/forgetting.py",
        "chosen = ascending[mask[order]]",
        "chosen = ascending[mask[order[::-1]]]",
        "evaluation",
    ),
    "halves_of_another_arm": Mutant(
        "foundation/measures/forgetting.py",
        "halves = (name, arm.run.tobytes(), oracles.run.tobytes())",
        "halves = (arm.run.tobytes(), oracles.run.tobytes())",
        "evaluation",
    ),
    "curves_an_epoch_late": Mutant(
        "protocol.py",
        "lambda leaf, place=place: leaf[:, place], history",
        "lambda leaf, place=place: leaf[:, min(place + 1, n_points - 1)], history",
        "protocol",
    ),
    "klom_the_other_way": Mutant(
        "foundation/measures/forgetting.py",
        "return np.log(oracle_sd / sd) + second_moment / (2 * oracle_sd**2) - 0.5",
        "return np.log(sd / oracle_sd) + second_moment / (2 * sd**2) - 0.5",
        "evaluation",
    ),
    "attack_fitted_on_what_it_scores": Mutant(
        "foundation/measures/forgetting.py",
        "for fitted, scored in ((0, 1), (1, 0)):",
        "for fitted, scored in ((0, 0), (1, 1)):",
        "evaluation",
    ),
    "no_holm": Mutant(
        "foundation/measures/forgetting.py",
        "increasing = np.maximum.accumulate(p[order] * factors)",
        "increasing = np.maximum.accumulate(p[order])",
        "evaluation claims",
    ),
    "p_may_be_0": Mutant(
        "foundation/measures/forgetting.py",
        "return (1 + n_reached) / (1 + PERMUTATIONS)",
        "return n_reached / PERMUTATIONS",
        "evaluation",
    ),
    "claims_without_their_controls": Mutant(
        "foundation/report/claims.py",
        "if not (holds and all(is_ahead)):",
        "if not holds:",
        "claims",
    ),
    "no_room_is_no_reason": Mutant(
        "foundation/report/claims.py",
        "if room < self.margin:",
        "if room < 0:",
        "claims",
    ),
    "seeds_counted_as_draws": Mutant(
        "foundation/report/claims.py",
        'unit = "draw" if "draw" in runs else "run"',
        'unit = "run"',
        "claims",
    ),
    "two_controls_at_the_level_of_one": Mutant(
        "foundation/report/claims.py",
        "control.interval(len(self.controls))",
        "control.interval()",
        "claims",
    ),
    "within_by_luck": Mutant(
        "foundation/measures/forgetting.py",
        "if excess_high - excess >= reach:",
        "if excess_high - excess >= 10 * abs(reach) + 1:",
        "evaluation",
    ),
    "states_without_their_noise": Mutant(
        "foundation/report/claims.py",
        "columns.var(ddof=1) / m - of_rest / (n * m)",
        "columns.var(ddof=1) / m",
        "claims",
    ),
    "parity_as_a_lead": Mutant(
        "foundation/report/claims.py",
        "wanted = -self.margin if self.is_parity else self.margin",
        "wanted = self.margin",
        "claims",
    ),
    "null_arm_that_unlearns": Mutant(
        "studies/unlearning.py",
        'retains = False if place["unlearner"] == NULL_ARM else None',
        "retains = None",
        "runner",
    ),
    "equal_fit_on_the_way_down": Mutant(
        "studies/matched_fit.py",
        "len(counts) - since_last_below, of_least)",
        "np.argmin(is_below, axis=1), of_least)",
        "controls",
    ),
    "other_class_as_the_first": Mutant(
        "poison_unlearn.py",
        "return poison_one_class(dataset, fraction, key=key, label=0)",
        "return poison_one_class(dataset, fraction, key=key)",
        "controls",
    ),
    "pool_of_the_judged_draws": Mutant(
        "studies/own_labels.py",
        'of_pool["block"] = TUNING // runs',
        'of_pool["block"] = 0',
        "own_labels",
    ),
    "choice_of_another_run": Mutant(
        "studies/own_labels.py",
        "values[name][run] = curve[points[run]]",
        "values[name][run] = curve[points[0]]",
        "own_labels",
    ),
    "pool_that_is_judged_on": Mutant(
        "studies/own_labels.py",
        'parts = {"judged": judged.train, "pool": judged.val}',
        'parts = {"judged": judged.train, "pool": judged.train}',
        "own_labels",
    ),
    "slope_of_the_wrong_sign": Mutant(
        "studies/transition.py",
        "return slopes.assign(accuracy=-slopes.accuracy)",
        "return slopes",
        "transition",
    ),
    "truth_where_none_is_known": Mutant(
        "protocol.py",
        "return values if self.knows_truth(dataset) else _without_truth(values)",
        "return values",
        "given",
    ),
    # ---- keys and labels ----
    "key_without_a_field": Mutant(
        "foundation/engine/keys.py",
        "        if not _is_default(field, item):\n",
        '        if not _is_default(field, item) and field.name != "held_out_percent":\n',
        "jobs keys",
    ),
    "key_without_settings": Mutant(
        "foundation/engine/keys.py",
        "return {name: value for name, value in current.items() if value != defaults[name]}",
        "return {}",
        "jobs keys",
    ),
    "key_without_the_code": Mutant(
        "foundation/engine/keys.py",
        'return values | ({"project": changes} if changes else {})',
        "return values",
        "jobs keys",
    ),
    "hash_of_the_training_set_alone": Mutant(
        "datar.py",
        "digest = sha256(*self.train, *self.val, *poison_arrays, *clean, *self._unusual_form())",
        "digest = sha256(*self.train, *poison_arrays, *clean, *self._unusual_form())",
        "datar keys users",
    ),
    "numbers_and_text_are_one_label": Mutant(
        "foundation/base/labels.py",
        "        _require_apart(array.ravel().tolist(), words)\n",
        "        pass\n",
        "datar users",
    ),
    # ---- the library and the estimator ----
    "predicted_at_a_half_of_the_logit": Mutant(
        "library.py",
        "return (logits(model, params, x, key=key) > 0).astype(np.int32)",
        "return (logits(model, params, x, key=key) > 0.5).astype(np.int32)",
        "library",
    ),
    "compared_the_other_way_round": Mutant(
        "library.py",
        "difference = found.sel({axis: first}) - found.sel({axis: second})",
        "difference = found.sel({axis: second}) - found.sel({axis: first})",
        "library",
    ),
    "new_samples_in_another_gauge": Mutant(
        "datar.py",
        'return _fixed_gauge(states, own["n_sites"], "the samples").astype(np.complex64)',
        "return states.astype(np.complex64)",
        "library",
    ),
    "a_model_of_another_run": Mutant(
        "foundation/engine/runner.py",
        "return row.job, of_run(arrays, run - row.job.runs[0])",
        "return row.job, of_run(arrays, 0)",
        "library",
    ),
    "the_forget_set_is_kept": Mutant(
        "studies/estimator.py",
        "            self._train.take(~mask),\n            self._train.take(mask),\n",
        "            self._train.take(mask),\n            self._train.take(~mask),\n",
        "estimator",
    ),
    "an_optimizer_that_is_not_used": Mutant(
        "models.py",
        "transformation = (optimizer or optax.adam)(learning_rate)",
        "transformation = optax.adam(learning_rate)",
        "library",
    ),
}


# sees every edit, and says nothing of what it does
LISTED = "tests/test_jobs.py::test_the_list_of_the_projects_own_sources_is_that_of_the_code"


def caught_by(folder: Path, tests: str) -> str:
    """Run the tests on a checkout until one fails; returns its name, or "" where all pass."""
    files = [f"tests/test_{name}.py" for name in tests.split()]
    there = [name for name in files if (folder / name).is_file()]
    options = ["-x", "-q", "-p", "no:cacheprovider", "--deselect", LISTED]
    command = [sys.executable, "-m", "pytest", *options, *there]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return failed[1]
    if done.returncode:
        return f"no test could run: {(done.stdout + done.stderr).strip()[-300:]}"
    return ""


def environment() -> dict[str, str]:
    """The user's environment with the suite's compiled programs, without paths to this checkout."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "programs"), **kept}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="some of them; none: all")
    names = parser.parse_args().names or list(MUTANTS)
    unknown = [name for name in names if name not in MUTANTS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: allowed: {', '.join(MUTANTS)}")
    survived = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        folder = Path(temporary) / "project"
        listed = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        for name in names:
            mutant = MUTANTS[name]
            path = folder / mutant.file
            text = path.read_text()
            if text.count(mutant.right) != 1:
                print(f"{name}: {mutant.file} has its line {text.count(mutant.right)} times")
                survived.append(name)
                continue
            path.write_text(text.replace(mutant.right, mutant.wrong))
            test = caught_by(folder, mutant.tests)
            path.write_text(text)
            if not test or test.startswith("no test"):
                survived.append(name)
            print(f"{name}: {test or 'SURVIVED'}", flush=True)
    print(f"{len(names) - len(survived)} of {len(names)} caught")
    return int(bool(survived))


if __name__ == "__main__":
    sys.exit(main())
