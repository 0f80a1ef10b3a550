"""The plan: which layer goes where, what is shared, and in which order layers are made."""

import pytest

from flops.actors import AGGREGATOR_PORT, ML, REPOSITORY, RUNTIME, USER, Actor, environment, repository, shims
from flops.errors import BuildError
from flops.images.plan import BaseLayer, BytecodeLayer, FilesLayer, WheelsLayer, cost, ml_layers, plan, runtime_layers
from flops.locking.lock import Lock, LockedWheel
from flops.oci.entries import Directory, File, Link
from flops.platforms import Platform
from flops.recipe import Flavor
from flops.repository.tree_writer import RepositoryFile

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64
MEGABYTE = 1024 * 1024


def wheel(name, *, tag="py3-none-any", size=1000, version="1.0"):
    filename = f"{name}-{version}-{tag}.whl"
    sha256 = (name + tag).encode().hex().ljust(64, "0")[:64]
    return LockedWheel(
        name=name,
        version=version,
        filename=filename,
        url=f"https://index.example/{filename}",
        sha256=sha256,
        size=size,
    )


def native(name, platform, **more):
    return wheel(name, tag=f"cp311-cp311-manylinux_2_17_{platform.machine}", **more)


def lock(platform, *wheels):
    return Lock(platform=platform, python="3.11.2", wheels=tuple(sorted(wheels, key=lambda one: one.name)))


RUNTIME_LOCKS = {
    platform: lock(platform, wheel("flwr"), wheel("rich"), native("grpcio", platform)) for platform in (AMD64, ARM64)
}
ML_LOCKS = {
    platform: lock(
        platform,
        wheel("joblib"),
        native("numpy", platform, size=20 * MEGABYTE),
        native("scipy", platform, size=40 * MEGABYTE),
    )
    for platform in (AMD64, ARM64)
}


def planned(*, bytecode=True, base_layers=2, ml=None, platforms=(AMD64, ARM64)):
    return plan(
        interpreter="/usr/bin/python3.11",
        python="3.11",
        bytecode=bytecode,
        base_layers=dict.fromkeys(platforms, base_layers),
        runtime={platform: RUNTIME_LOCKS[platform] for platform in platforms},
        ml={platform: (ml or ML_LOCKS)[platform] for platform in platforms},
        repository=(Directory(path=REPOSITORY, owner=USER), File(path=f"{REPOSITORY}/model_manager.py", data=b"x")),
    )


def test_order_from_bottom_to_top():
    layers = planned().images[Actor.LEARNER, AMD64]
    kinds = [(type(layer).__name__, getattr(layer, "prefix", getattr(layer, "title", ""))) for layer in layers]
    assert kinds == [
        ("BaseLayer", ""),
        ("BaseLayer", ""),
        ("WheelsLayer", RUNTIME),
        ("BytecodeLayer", RUNTIME),
        ("WheelsLayer", RUNTIME),
        ("BytecodeLayer", RUNTIME),
        ("WheelsLayer", ML),
        ("WheelsLayer", ML),
        ("WheelsLayer", ML),
        ("FilesLayer", "FLOps shims"),
        ("FilesLayer", "ML repository"),
        ("FilesLayer", "learner actor"),
    ]
    assert layers[:2] == (BaseLayer(platform=AMD64, number=0), BaseLayer(platform=AMD64, number=1))


def test_actors_differ_in_their_own_layer_only():
    images = planned().images
    for platform in (AMD64, ARM64):
        learner, aggregator = images[Actor.LEARNER, platform], images[Actor.AGGREGATOR, platform]
        assert learner[:-1] == aggregator[:-1]
        (mine,), (theirs,) = learner[-1].entries, aggregator[-1].entries
        assert mine.path == theirs.path == "opt/flops/actor/main.py"
        assert b"learner.main()" in mine.data
        assert b"aggregator.main()" in theirs.data


def test_platforms_share_what_fits_every_machine_and_nothing_that_does_not():
    images = planned().images
    amd64, arm64 = set(images[Actor.LEARNER, AMD64]), set(images[Actor.LEARNER, ARM64])
    shared = {layer for layer in amd64 & arm64 if isinstance(layer, WheelsLayer | BytecodeLayer)}
    assert {one.filename for layer in shared for one in layer.wheels} == {
        "flwr-1.0-py3-none-any.whl",
        "rich-1.0-py3-none-any.whl",
        "joblib-1.0-py3-none-any.whl",
    }
    for platform, own in ((AMD64, amd64 - arm64), (ARM64, arm64 - amd64)):
        for layer in own:
            if isinstance(layer, WheelsLayer | BytecodeLayer):
                assert all(platform.machine in one.filename for one in layer.wheels)


def test_one_platforms_layers_do_not_depend_on_the_others_that_are_built():
    together = planned().images[Actor.AGGREGATOR, ARM64]
    assert planned(platforms=(ARM64,)).images[Actor.AGGREGATOR, ARM64] == together


def test_each_layer_is_made_once_the_longest_work_first():
    layers = planned().layers
    assert len(set(layers)) == len(layers)
    assert not any(isinstance(layer, BaseLayer) for layer in layers)
    costs = [cost(layer) for layer in layers]
    assert costs == sorted(costs, reverse=True)
    assert layers[0].wheels[0].name == "scipy"
    assert isinstance(layers[-1], FilesLayer)


def test_without_bytecode():
    assert not any(isinstance(layer, BytecodeLayer) for layer in planned(bytecode=False).layers)


def test_a_runtime_without_wheels_of_one_kind_has_no_empty_layer():
    assert len(runtime_layers(lock(AMD64, wheel("flwr")), "3.11", bytecode=True)) == 2
    assert len(runtime_layers(lock(AMD64, native("grpcio", AMD64)), "3.11", bytecode=False)) == 1


def test_too_many_layers_for_container_runtimes():
    assert len(planned(base_layers=80).images[Actor.LEARNER, AMD64]) == 90
    with pytest.raises(BuildError, match="the image would have 110 layers") as caught:
        planned(base_layers=100)
    assert "--base-image" in caught.value.hint


def test_large_environments_stay_below_the_cap():
    many = {
        platform: lock(platform, *(native(f"package{number:03}", platform, size=2 * MEGABYTE) for number in range(200)))
        for platform in (AMD64, ARM64)
    }
    images = planned(ml=many).images
    assert max(map(len, images.values())) <= 100
    for platform in (AMD64, ARM64):
        planned_wheels = [
            one
            for layer in images[Actor.LEARNER, platform]
            if getattr(layer, "prefix", "") == ML
            for one in layer.wheels
        ]
        assert sorted(one.name for one in planned_wheels) == [one.name for one in many[platform].wheels]


def test_titles_name_three_packages_at_most():
    (layer,) = ml_layers(lock(AMD64, *(wheel(name) for name in ("joblib",))), "3.11")
    assert layer.title == "joblib 1.0"
    layers = ml_layers(lock(AMD64, *(wheel(f"p{number}") for number in range(60))), "3.11")
    assert all(layer.title.count(",") <= 2 for layer in layers)
    assert any(" more" in layer.title for layer in layers)


# --- what the layers hold ---------------------------------------------------------------------------------------------
def test_environments_of_the_image_are_environments_to_python():
    entries = {entry.path: entry for entry in shims("/usr/bin/python3.11", "3.11")}
    for prefix in (RUNTIME, ML):
        for name in ("python", "python3", "python3.11"):
            assert entries[f"{prefix}/bin/{name}"] == Link(path=f"{prefix}/bin/{name}", target="/usr/bin/python3.11")
        lines = entries[f"{prefix}/pyvenv.cfg"].data.decode().splitlines()
        settings = {key: value for key, _, value in (line.partition(" = ") for line in lines if line)}
        assert settings == {"home": "/usr/bin", "include-system-site-packages": "false", "version": "3.11"}
    site = "lib/python3.11/site-packages"
    assert f"{RUNTIME}/{site}/flops_actor/learner.py" in entries
    assert f"{ML}/{site}/flops_worker/process.py" in entries
    assert f"{ML}/{site}/flops_utils/ml_repo_templates.py" in entries
    assert not any("flops_actor" in path for path in entries if path.startswith(ML))
    assert not any("flops_worker" in path or "flops_utils" in path for path in entries if path.startswith(RUNTIME))
    assert not any("/flops/" in path.partition("site-packages")[2] for path in entries), "the builder stays outside"


def test_the_users_files_belong_to_the_actors_user(tmp_path):
    files = [
        RepositoryFile(path="model_manager.py", executable=False, size=1, blob="0" * 40),
        RepositoryFile(path="bin/prepare", executable=True, size=1, blob="0" * 40),
        RepositoryFile(path="data/latest", executable=False, size=0, blob="0" * 40, link="v2"),
    ]
    entries = repository(tmp_path, files)
    assert [(type(entry).__name__, entry.path) for entry in entries] == [
        ("Directory", REPOSITORY),
        ("Directory", f"{REPOSITORY}/bin"),
        ("Directory", f"{REPOSITORY}/data"),
        ("File", f"{REPOSITORY}/model_manager.py"),
        ("File", f"{REPOSITORY}/bin/prepare"),
        ("Link", f"{REPOSITORY}/data/latest"),
    ]
    assert {entry.owner for entry in entries if not isinstance(entry, Link)} == {USER}
    assert [entry.executable for entry in entries if isinstance(entry, File)] == [False, True]


def test_environment_of_an_image():
    ours = environment(Flavor.PYTORCH, {})
    assert ours["PATH"].startswith("/opt/flops/runtime/bin:/")
    assert ours["ML_MODEL_FLAVOR"] == "pytorch"
    assert ours["HOME"] == "/home/flops"
    assert ours["LANG"] == "C.UTF-8"
    assert ours["FLWR_TELEMETRY_ENABLED"] == "0"
    assert ours["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert {path for name, path in ours.items() if name.endswith("_HOME") and name != "HOME"} <= {
        path for path in ours.values() if path.startswith("/tmp/")
    }
    assert "ML_MODEL_FLAVOR" not in environment(None, {})


def test_a_base_images_variables_stay_save_those_that_would_break_isolation():
    ours = environment(None, {"PATH": "/opt/cuda/bin:/usr/bin", "CUDA_VERSION": "12", "PYTHONHOME": "/x", "LANG": "de"})
    assert ours["PATH"] == "/opt/flops/runtime/bin:/opt/cuda/bin:/usr/bin"
    assert ours["CUDA_VERSION"] == "12"
    assert ours["LANG"] == "C.UTF-8"
    assert "PYTHONHOME" not in ours


def test_the_aggregators_port_is_flops_own():
    assert AGGREGATOR_PORT == 8080
