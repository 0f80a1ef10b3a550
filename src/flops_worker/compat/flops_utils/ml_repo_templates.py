"""The classes that an ML repository's ModelManager and DataManager inherit from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class ModelManagerTemplate(ABC):
    """Wraps a model for federated learning. An instance lives as long as its learner, over all rounds."""

    @abstractmethod
    def set_model_data(self) -> None:
        """Load the data. Called once and on learners only: the aggregator has none, so never call it in __init__."""

    @abstractmethod
    def get_model(self) -> Any:
        """The model itself."""

    @abstractmethod
    def get_model_parameters(self) -> Any:
        """The parameters as a list of numpy arrays; there from the start, before any data or training."""

    @abstractmethod
    def set_model_parameters(self, parameters: Any) -> None:
        """Take over parameters, a list as get_model_parameters() returns it."""

    @abstractmethod
    def fit_model(self) -> int:
        """Train for one round; return the number of training examples."""

    @abstractmethod
    def evaluate_model(self) -> tuple[Any, Any, int]:
        """Return (loss, accuracy, number of evaluation examples)."""


class DataManagerTemplate(ABC):
    """Prepares a learner's data."""

    @abstractmethod
    def _prepare_data(self) -> Any:
        """Turn what load_dataset() returns into what the model needs."""

    @abstractmethod
    def get_data(self) -> tuple[Any, Any]:
        """Return (training data, test data)."""
