"""The studies that are not on the record yet: what they compute stands in the modules of their subjects, their tables
and figures in tables.py and figures.py."""

from studies import controls, device, discovery, experiments, oracles
from studies.reports import registered

DETECTED = ("discovery", "detection", "detected")
READ_WITH_SHOTS = ("hardware", "hardware_unlearning")
DATA = registered("data", "what does the poison look like", experiments.poison_samples)
NOISE_SWEEP = registered("noise_sweep", "how does accuracy fall with the poisoned share", experiments.noise_sweep)
UNLEARNING = registered("unlearning", "how do accuracies move along the methods", experiments.unlearning)
WEIGHT_MAP = registered("weight_map", "where do methods end over two of their hyper-parameters", experiments.weight_map)
EPOCHS = registered("epochs", "how long are oracles to be trained", oracles.epochs)
EVALUATION = registered("evaluation", "how far are unlearned models from oracles", oracles.evaluation_study)
BENCHMARK = registered("benchmark", "how far are those of all methods on an equal budget", oracles.benchmark)
FINALISTS = registered("finalists", "how far are those of its best methods on more draws", oracles.finalists)
INFLUENCE = registered("influence", "what does linear response say of the oracles", oracles.influence)
DYNAMICS = registered("dynamics", "what does a long training do", controls.dynamics)
CONTROLS = registered("controls", "what contends with the published models, tuned on noisy labels", controls.controls)
EQUAL_STEPS = registered("equal_steps", "how far are methods after equal total steps", controls.equal_steps)
MEMORISING = registered(
    "memorising", "when have models learned the poison of few samples", controls.memorising, data=controls.matched_data
)
MATCHED_FIT = registered(
    "matched_fit", "how far are methods of models that fit it equally", controls.matched_fit, data=controls.matched_data
)
DISCOVERY = registered(
    "discovery", "what if the poison is partly known, or has to be found", discovery.discovery, files=DETECTED
)
HARDWARE = registered("hardware", "what do noise and shots do to circuits", device.study, files=READ_WITH_SHOTS)

EARLIER = (  # of both data sets, in the order in which they are shown: capacity stands between these and the later ones
    (NOISE_SWEEP, UNLEARNING, WEIGHT_MAP, EPOCHS, EVALUATION, BENCHMARK, FINALISTS, INFLUENCE, DYNAMICS, CONTROLS)
)
LATER = (EQUAL_STEPS, MEMORISING, MATCHED_FIT, DISCOVERY, HARDWARE)
