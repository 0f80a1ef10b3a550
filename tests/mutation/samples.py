"""Ten healthy ML repositories: dependency files as people write them, and code that imports what they name.

Their versions exist on the real index and on the made one (`tests/repos/index.toml`), with wheels for both platforms.
"""

from __future__ import annotations

CODE = """\
{imports}
from flops_utils.ml_repo_templates import {template}


class {name}({template}):
{methods}
"""
MODEL = (
    ("set_model_data", "self", "pass"),
    ("get_model", "self", "return None"),
    ("get_model_parameters", "self", "return []"),
    ("set_model_parameters", "self, parameters", "pass"),
    ("fit_model", "self", "return 0"),
    ("evaluate_model", "self", "return 0.0, 0.0, 0"),
)
DATA = (("_prepare_data", "self", "pass"), ("get_data", "self", "return None, None"))


def code(name: str, methods: tuple[tuple[str, str, str], ...], *modules: str) -> str:
    body = "\n".join(f"    def {method}({arguments}):\n        {does}\n" for method, arguments, does in methods)
    imports = "\n".join(f"import {module}" for module in modules)
    return CODE.format(imports=imports, name=name, template=f"{name}Template", methods=body.rstrip())


def repository(path: str, text: str, model: tuple[str, ...], data: tuple[str, ...]) -> dict[str, str]:
    return {
        path: text,
        "model_manager.py": code("ModelManager", MODEL, *model),
        "data_manager.py": code("DataManager", DATA, *data),
    }


SAMPLES: dict[str, dict[str, str]] = {
    "mlflow-sklearn": repository(
        "conda.yaml",
        """\
name: mlflow-env
channels:
- conda-forge
dependencies:
- python=3.11
- pip<=24.0
- pip:
  - cloudpickle==3.0.0
  - numpy==1.26.4
  - packaging==24.0
  - psutil==6.0.0
  - scikit-learn==1.4.2
  - scipy==1.13.0
""",
        ("numpy", "sklearn.linear_model"),
        ("numpy", "scipy.stats"),
    ),
    "conda-pins": repository(
        "conda.yaml",
        """\
name: digits
channels:
  - conda-forge
  - defaults
dependencies:
  # the interpreter
  - python=3.11
  - numpy=1.26.4  # arrays
  - pandas=2.2.3
  - scikit-learn=1.5.2
  - matplotlib=3.8.4
  - tqdm=4.66.1
""",
        ("numpy as np", "sklearn.ensemble", "tqdm"),
        ("pandas as pd", "matplotlib.pyplot"),
    ),
    "requirements-plain": repository(
        "requirements.txt",
        """\
# pinned by hand
numpy==1.26.4
pandas==2.2.3
scipy==1.13.1
scikit-learn==1.5.2
joblib==1.4.2
tqdm==4.67.1
""",
        ("joblib", "numpy", "sklearn.svm"),
        ("pandas", "scipy.sparse", "tqdm"),
    ),
    "requirements-marked": repository(
        "requirements.txt",
        """\
numpy>=1.26,<2
pandas==2.2.3 ; python_version >= "3.9"
pillow==10.4.0   # images
scikit-learn==1.5.2

pyyaml==6.0.2
requests==2.32.3
""",
        ("numpy", "sklearn.cluster", "yaml"),
        ("pandas", "PIL.Image", "requests"),
    ),
    "torch-pip": repository(
        "conda.yaml",
        """\
name: torch-env
channels:
- defaults
dependencies:
- python=3.11
- pip
- pip:
  - torch==2.1.1
  - torchvision==0.16.1
  - numpy==1.26.4
  - pillow==10.4.0
  - psutil==6.0.0
""",
        ("torch", "torch.nn", "torchvision"),
        ("numpy", "PIL"),
    ),
    "tensorflow": repository(
        "requirements.txt",
        """\
tensorflow==2.15.1
numpy==1.26.4
pandas==2.2.1
pyyaml==6.0.1
packaging==23.2
""",
        ("tensorflow", "numpy"),
        ("pandas", "yaml"),
    ),
    "boosting": repository(
        "environment.yml",
        """\
name: boosting
dependencies:
  - python>=3.9,<3.12
  - pip
  - numpy=1.26
  - pip:
      - xgboost==2.1.3
      - lightgbm==4.5.0
      - scikit-learn==1.5.2
      - scipy==1.13.1
      - cloudpickle==3.1.1
""",
        ("xgboost", "lightgbm", "numpy"),
        ("scipy.sparse", "sklearn.datasets"),
    ),
    "vision": repository(
        "requirements.txt",
        """\
opencv-python-headless==4.10.0.84
numpy==1.26.4
pillow==11.1.0
matplotlib==3.8.4
protobuf==4.25.3
python-dateutil==2.9.0
""",
        ("cv2", "numpy"),
        ("PIL.Image", "matplotlib.pyplot", "dateutil.parser"),
    ),
    "loose": repository(
        "requirements.txt",
        """\
numpy
scikit-learn>=1.4
pandas>=2
joblib
typing-extensions==4.12.2
""",
        ("numpy", "sklearn.tree", "joblib"),
        ("pandas",),
    ),
    "data-frames": repository(
        "conda.yml",
        """\
channels: [conda-forge]
dependencies:
  - python=3.11
  - pandas=2.2.3
  - pyarrow=19.0.1
  - numpy=1.26.4
  - scikit-learn=1.4.2
  - pip:
    - psutil==6.1.1
    - packaging==24.2
    - requests==2.31.0
""",
        ("sklearn.naive_bayes", "numpy"),
        ("pandas", "pyarrow", "requests"),
    ),
}
