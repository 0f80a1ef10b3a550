"""Settings: from the environment, from a caller, and what can't be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from flops.errors import BadSetting
from flops.settings import BUILDER_SETTINGS, LOCAL_BUILDER_SETTINGS, Settings


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FLOPS_{name.upper()}", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_without_variables_there_are_defaults():
    settings = Settings.read()
    assert settings.cache_dir == Path("/home/somebody/.cache/flops")
    assert settings.data_dir == Path("/home/somebody/.local/share/flops")
    assert (settings.registry, settings.workers, settings.ca_bundle, settings.allow_secrets) == (None, None, None, "")


def test_variables_are_read_as_what_they_are(monkeypatch):
    for name, value in {
        "FLOPS_REGISTRY": "127.0.0.1:5073",
        "FLOPS_WORKERS": "3",
        "FLOPS_CA_BUNDLE": "/etc/ca.pem",
        "FLOPS_UNKNOWN": "ignored",
        "XDG_CACHE_HOME": "/var/cache",
        "XDG_DATA_HOME": "relative",
    }.items():
        monkeypatch.setenv(name, value)
    settings = Settings.read()
    assert settings.registry == "127.0.0.1:5073"
    assert settings.workers == 3
    assert settings.ca_bundle == Path("/etc/ca.pem")
    assert settings.cache_dir == Path("/var/cache/flops")
    assert settings.data_dir == Path("/home/somebody/.local/share/flops")


def test_what_a_caller_gives_counts(monkeypatch):
    monkeypatch.setenv("FLOPS_REGISTRY", "127.0.0.1:5073")
    monkeypatch.setenv("FLOPS_CACHE_DIR", "/var/cache")
    settings = Settings(registry=None, data_dir="/data")
    assert (settings.registry, settings.cache_dir, settings.data_dir) == (None, Path("/var/cache"), Path("/data"))


@pytest.mark.parametrize("name", ["FLOPS_INDEX_URL", "FLOPS_TORCH_INDEX"])
@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("file:///srv/simple", "file:// is none"),
        ("https://", "is no http or https URL"),
        ("https://me:s3cret@[::1/simple", "is no http or https URL"),
        ("/srv/simple", "is no http or https URL"),
    ],
)
def test_an_index_that_is_none_is_told_with_its_variable_and_without_its_password(monkeypatch, name, url, told):
    monkeypatch.setenv(name, url)
    with pytest.raises(BadSetting) as caught:
        Settings.read()
    assert f"{name}: " in caught.value.message
    assert told in caught.value.message
    assert "s3cret" not in caught.value.message + caught.value.hint
    monkeypatch.setenv(name, "https://me:s3cret@index.example/simple")
    Settings.read()


def test_every_variable_that_can_not_be_used_is_named(monkeypatch):
    monkeypatch.setenv("FLOPS_WORKERS", "65")
    monkeypatch.setenv("FLOPS_REGISTRY", "127.0.0.1:5073")
    with pytest.raises(BadSetting, match="FLOPS_WORKERS: ") as caught:
        Settings.read()
    assert "FLOPS_REGISTRY" not in caught.value.message
    for value in ("0", "-1", "1.5", "x"):
        monkeypatch.setenv("FLOPS_WORKERS", value)
        with pytest.raises(BadSetting):
            Settings.read()


#: What the manager alone needs, or a builder gets with its job.
OF_THE_MANAGER = {
    *("registry", "registry_pull", "advertise", "names", "auth", "api_token", "manager", "broker", "broker_backlog"),
    *("observer_host", "observer_port", "orchestrator", "oakestra_url", "oakestra_username", "oakestra_password"),
    *("builder_image", "builders", "builder_memory", "project_seconds", "keep_days", "keep_projects", "allow_local"),
    *("allow_hosts", "base_images", "git_credentials", "registry_credentials", "registry_token"),
}


def test_every_setting_is_the_managers_or_goes_to_builders():
    variables = {
        field.validation_alias or f"FLOPS_{name.upper()}"
        for name, field in Settings.model_fields.items()
        if name not in OF_THE_MANAGER
    }
    assert variables == {*BUILDER_SETTINGS, *LOCAL_BUILDER_SETTINGS}
    assert set(Settings.model_fields) >= OF_THE_MANAGER
