"""The user's ModelManager behind checked values: what it returns is judged here, before it travels."""

from __future__ import annotations

import importlib
import operator
import platform
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from flops_wire import frames

if TYPE_CHECKING:
    from collections.abc import Sequence


class ContractBroken(Exception):
    """The repository's ModelManager is missing something, or returned what the contract does not allow."""


class Model:
    """One ModelManager for the worker's whole life; it is made at the first call, so that a failure has a listener."""

    def __init__(self) -> None:
        self._manager: Any = None

    @property
    def manager(self) -> Any:
        if self._manager is None:
            module = importlib.import_module("model_manager")
            made = getattr(module, "ModelManager", None)
            if made is None:
                raise ContractBroken("model_manager.py defines no class ModelManager")
            self._manager = made()
        return self._manager

    def set_data(self) -> None:
        self.manager.set_model_data()

    def parameters(self) -> list[frames.Array]:
        """The model's parameters as bytes; ContractBroken names the first one that can't travel."""
        parameters = self.manager.get_model_parameters()
        if not isinstance(parameters, (list, tuple)):
            raise ContractBroken(
                f"get_model_parameters() returned {_kind(parameters)}, not a list of numpy arrays; "
                "return [array, array, ...]"
            )
        if not parameters:
            raise ContractBroken("get_model_parameters() returned an empty list; the model must have its parameters")
        return [_packed(parameter, position) for position, parameter in enumerate(parameters)]

    def set_parameters(self, arrays: Sequence[frames.Array]) -> None:
        self.manager.set_model_parameters([np.frombuffer(a.data, dtype=a.dtype).reshape(a.shape) for a in arrays])

    def fit(self) -> int:
        """Number of training examples."""
        return _count(self.manager.fit_model(), "fit_model() must return the number of training examples (an int)")

    def evaluate(self) -> tuple[float, float, int]:
        """Loss, accuracy, number of evaluation examples."""
        expected = "evaluate_model() must return (loss, accuracy, number of evaluation examples)"
        result = self.manager.evaluate_model()
        if not isinstance(result, (tuple, list)) or len(result) != 3:  # noqa: PLR2004 - as the text says
            raise ContractBroken(f"{expected}; it returned {_kind(result)}")
        loss, accuracy, examples = result
        return (
            _number(loss, f"{expected}; loss"),
            _number(accuracy, f"{expected}; accuracy"),
            _count(examples, expected),
        )

    def info(self) -> dict[str, Any]:
        """The machine, the Python and the parameters' dtypes and shapes, as the log shows them at the start."""
        shapes = [{"dtype": array.dtype, "shape": list(array.shape)} for array in self.parameters()]
        return {"machine": platform.machine(), "python": platform.python_version(), "parameters": shapes}


def _packed(parameter: Any, position: int) -> frames.Array:
    try:
        array = np.asarray(parameter)
    except Exception as error:
        raise ContractBroken(
            f"get_model_parameters()[{position}] is {_kind(parameter)}, which is no numpy array: {error}"
        ) from error
    try:
        return frames.pack(array)
    except frames.FrameError as error:
        raise ContractBroken(
            f"get_model_parameters()[{position}] is {_kind(parameter)} of dtype {array.dtype}; "
            "parameters must be numpy arrays of numbers"
        ) from error


def _count(value: Any, expected: str) -> int:
    try:
        count = -1 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        count = -1
    if not 0 <= count < 2**53:  # what a mean in double precision can weigh by exactly
        raise ContractBroken(f"{expected}; it returned {_kind(value)} as the number of examples")
    return count


def _number(value: Any, expected: str) -> float:
    if isinstance(value, (str, bytes, bool)):
        raise ContractBroken(f"{expected} was {_kind(value)}, not a number")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ContractBroken(f"{expected} was {_kind(value)}, not a number") from error


def _kind(value: Any) -> str:
    """A value's type and, where that is short, the value."""
    if value is None:
        return "None"
    name = type(value).__name__
    text = repr(value) if isinstance(value, (bool, int, float, str)) and sys.getsizeof(value) < 128 else ""  # noqa: PLR2004
    return f"{name} {text}" if text else f"a {name}" + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")
