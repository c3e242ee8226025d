"""The models and unlearning methods as one classifier of scikit-learn.

It goes into pipelines, grid searches and cross-validation as any other classifier:

    classifier = UnlearningClassifier("qnn", depth=3, epochs=20).fit(X, y)
    classifier.unlearn(forget=mask, method="scrub")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

import library
from datar import Split, normalised
from foundation.base.checks import require
from models import MLP, QNN, Model, Optimizer, Training, train
from poison_unlearn import Method, unlearn
from studies.methods import METHODS

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

LARGEST_SEED = 2**31 - 1


class UnlearningClassifier(ClassifierMixin, BaseEstimator):
    """A network or a circuit that tells classes apart, and can be made to unlearn samples.

    Parameters
    ----------
    model : "mlp", "qnn" or a model of models.py
        The network reads the features as they are; scale them, as by a StandardScaler before it.
        The circuit reads each sample as a quantum state: padded with zeros to a power of two, 4 at
        least, and divided by its norm.
    hidden : tuple of int
        Widths of the network's hidden layers; () is logistic regression.
    depth : int
        Layers of the circuit.
    epochs, batch_size, learning_rate, optimizer
        As in models.Training; batch_size 0 takes all samples at once.
    random_state : int, RandomState instance or None
        Gives first parameters and batches; an int makes fits repeat.

    Attributes
    ----------
    classes_ : (K,) the labels, sorted.
    n_features_in_ : number of features.
    model_ : the model, of models.py.
    params_ : its parameters, after the last `fit` or `unlearn`.
    """

    def __init__(
        self,
        model: str | Model = "mlp",
        *,
        hidden: tuple[int, ...] = (16, 4),
        depth: int = 6,
        epochs: int = 100,
        batch_size: int = 32,
        learning_rate: float = 0.01,
        optimizer: Optimizer | None = None,
        random_state: Any = None,
    ):
        self.model = model
        self.hidden = hidden
        self.depth = depth
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> UnlearningClassifier:
        """Train on samples X (n, features) with labels y (n,) of two or more classes; returns self.

        The samples are kept, because `unlearn` trains on those that it retains.
        """
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("Classifier can't train when only one class is present.")
        training = self._training()
        x = self._encoded(X)
        self.model_ = self._model(x.shape[1])
        self._train = Split(x, numbers.astype(np.int32))
        self._key = jax.random.key(check_random_state(self.random_state).randint(LARGEST_SEED))
        params = train(self.model_, self._train, **training.keywords(), key=self._key)
        self.params_ = jax.tree.map(np.asarray, params)
        return self

    def unlearn(
        self, forget: ArrayLike, method: str | Method = "cf", *, y_true: ArrayLike | None = None
    ) -> UnlearningClassifier:
        """Make the model forget some of the samples that it was fitted to; returns self.

        forget: (n,) mask of the samples of `fit`, True where to be forgotten. method: a name of
        studies.methods.METHODS, such as "retrain", "cf", "scrub", "ga", with its defaults, and the
        training of `fit` where it starts from fresh parameters; or a method of one's own settings,
        as replace(METHODS["scrub"], forget=0.4, training=Training(20, 0, 0.01)). y_true: (n,)
        labels before the poison, which methods that read the truth need. A second call goes on from
        the first. Raises BadInput for a mask of another length, and for methods that cannot run.
        """
        check_is_fitted(self)
        mask = self._mask(forget)
        if isinstance(method, str):
            require(method in METHODS, "method", method, ", ".join(METHODS))
            method = METHODS[method]
            if method.is_fresh:
                method = replace(method, training=self._training())
        reason = method.why_not(self.model_)
        require(not reason, "method", f"{type(method).__name__} ({reason})", "another one")
        reads_truth = method.reads_truth
        require(not reads_truth or y_true is not None, "y_true", None, "labels before the poison")
        labels = self._train.y
        if y_true is not None:
            known = np.isin(y_true, self.classes_)
            require(np.shape(y_true) == labels.shape, "y_true", np.shape(y_true), labels.shape)
            require(bool(known.all()), "y_true", "other labels", f"those of y: {self.classes_}")
            labels = np.searchsorted(self.classes_, y_true).astype(np.int32)
        params, _ = unlearn(
            method,
            self.model_,
            self.params_,
            self._train.take(~mask),
            self._train.take(mask),
            key=jax.random.fold_in(self._key, 1),
            forget_clean=Split(self._train.x, labels).take(mask),
        )
        self.params_ = jax.tree.map(np.asarray, params)
        return self

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Return the logits (n,) of samples X (n, features): positive for classes_[1].

        Of more than two classes they are (n, K), one for each.
        """
        return self._of_samples(library.logits, X)

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the probabilities (n, K) of classes_ for samples X (n, features)."""
        return self._of_samples(library.predict_proba, X)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the predicted labels (n,) of samples X (n, features)."""
        numbers = self._of_samples(library.predict, X)
        return self.classes_[numbers]

    def _of_samples(self, function: Callable[..., np.ndarray], X: ArrayLike) -> np.ndarray:
        """Call a function of the library on the fitted model and on encoded samples."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)
        return function(self.model_, self.params_, self._encoded(X), key=self._key)

    def _training(self) -> Training:
        return Training(self.epochs, self.batch_size, self.learning_rate, self.optimizer)

    def _model(self, width: int) -> Model:
        """Build the model for encoded samples of this length."""
        if self.model == "mlp":
            return MLP(width, tuple(self.hidden), len(self.classes_))
        if self.model == "qnn":
            return QNN(int(np.log2(width)), self.depth, n_classes=len(self.classes_))
        is_model = all(hasattr(self.model, name) for name in ("init", "prepare", "logits"))
        require(is_model, "model", repr(self.model), '"mlp", "qnn" or a model of models.py')
        return self.model

    def _encoded(self, X: np.ndarray) -> np.ndarray:
        """Return samples as the model reads them: a circuit's as states of norm 1."""
        is_circuit = self.model == "qnn" or getattr(self.model, "family", "") == "QNN"
        if not is_circuit:
            return X
        has_numbers = bool((X != 0).any(axis=1).all())
        require(has_numbers, "X", "a sample of zeros", "samples of which some number is not 0")
        return normalised(X[:, :, None], np.zeros(len(X)), "amplitude").x

    def _mask(self, forget: ArrayLike) -> np.ndarray:
        """Check a mask of the samples of `fit`."""
        mask = np.asarray(forget)
        n = len(self._train.y)
        is_mask = mask.shape == (n,) and np.isin(mask, (0, 1)).all()
        require(bool(is_mask), "forget", f"{mask.dtype} {mask.shape}", f"a mask ({n},)")
        mask = mask.astype(bool)
        require(0 < mask.sum() < n, "forget", f"{mask.sum()} of {n} samples", "some, not all")
        return mask
