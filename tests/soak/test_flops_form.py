"""A whole build in the builder image, as FLOps' own manager starts it: Mosquitto, an observer and a registry listen."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from flops.oci.client import RegistryClient
from flops.platforms import Platform
from flops.registry.app import EmbeddedRegistry

pytestmark = pytest.mark.integration

INTEGRATION = Path(__file__).parents[1] / "integration"


def load(name):
    spec = importlib.util.spec_from_file_location(f"integration_{name}", INTEGRATION / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


image, parts = load("test_builder_image"), load("conftest")
place, made, container, components = image.place, image.made, image.container, parts.components

METHODS = (
    "set_model_data",
    "get_model",
    "get_model_parameters",
    "set_model_parameters",
    "fit_model",
    "evaluate_model",
)
MODEL_MANAGER = "class ModelManager:\n" + "".join(f"    def {name}(self, *words): ...\n\n" for name in METHODS)
DATA_MANAGER = "class DataManager:\n    def _prepare_data(self): ...\n\n    def get_data(self): ...\n"


def test_it_builds_and_everybody_hears_of_it(container, components, place):
    repository = place / "small"
    repository.mkdir()
    (repository / "model_manager.py").write_text(MODEL_MANAGER)
    (repository / "data_manager.py").write_text(DATA_MANAGER)
    (repository / "requirements.txt").write_text("numpy==1.26.4\n")
    options = [*image.as_here(), "--env", "FLOPS_ALLOW_LOCAL=1", "--volume", f"{repository}:/small:ro"]
    with EmbeddedRegistry(place / "actors") as registry:
        host = registry.registry.host
        words = [f"http://{host}", "p1", components.broker, components.observer, "--supported_platforms=linux/amd64"]
        done = container("python3", "main.py", *words, "fl_actors", "/small", "sklearn", options=options)
        if any(f"error[{code}]" in done.stderr for code in image.NOT_HERE):
            pytest.skip(done.stderr)
        components.wait_for(messages=2, texts=7)
        topic = "flops_manager/fl_actors_image_builder"
        assert [message[0] for message in components.messages] == [f"{topic}/started", f"{topic}/success"], done.stderr
        assert components.messages[1][1]["flops_project_id"] == "p1"
        assert components.texts[0] == f"Start building {host}/local/small/learner image (This can take a while)"
        assert components.texts[-1].startswith("build_preparation: ")
        with RegistryClient(registry.registry) as client:
            tag = min(client.tags("local/small/aggregator"), key=len)
            assert client.images("local/small/aggregator", tag).keys() == {Platform.LINUX_AMD64}
