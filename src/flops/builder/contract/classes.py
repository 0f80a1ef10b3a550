"""The ML repository contract: which classes and methods FLOps calls, and how it calls them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ContractMethod:
    name: str
    definition: str
    """The line to write."""
    arguments: int | None = 0
    """How many it is called with, beside `self`; None where only the repository itself calls it."""


@dataclass(frozen=True, kw_only=True)
class ContractClass:
    name: str
    file: str
    template: str
    missing: str
    """The finding's code where the file is missing."""
    methods: tuple[ContractMethod, ...]

    @property
    def module(self) -> str:
        return self.file.removesuffix(".py")

    @property
    def package(self) -> str:
        """The other file that the module may be."""
        return f"{self.module}/__init__.py"


TEMPLATES = "flops_utils.ml_repo_templates"
BUILDING_BLOCKS = "flops_utils.ml_repo_building_blocks"

MODEL_MANAGER = ContractClass(
    name="ModelManager",
    file="model_manager.py",
    template="ModelManagerTemplate",
    missing="MODEL_MANAGER_MISSING",
    methods=(
        ContractMethod(name="set_model_data", definition="def set_model_data(self) -> None:"),
        ContractMethod(name="get_model", definition="def get_model(self):"),
        ContractMethod(name="get_model_parameters", definition="def get_model_parameters(self):"),
        ContractMethod(
            name="set_model_parameters", definition="def set_model_parameters(self, parameters) -> None:", arguments=1
        ),
        ContractMethod(name="fit_model", definition="def fit_model(self) -> int:"),
        ContractMethod(name="evaluate_model", definition="def evaluate_model(self):"),
    ),
)
DATA_MANAGER = ContractClass(
    name="DataManager",
    file="data_manager.py",
    template="DataManagerTemplate",
    missing="DATA_MANAGER_MISSING",
    methods=(
        ContractMethod(name="_prepare_data", definition="def _prepare_data(self):", arguments=None),
        ContractMethod(name="get_data", definition="def get_data(self):"),
    ),
)
CONTRACT = (MODEL_MANAGER, DATA_MANAGER)
