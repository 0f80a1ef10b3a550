"""Hours of work for whoever asks for it by name: `pytest tests/soak`; a run of all tests passes these by."""


def pytest_ignore_collect(config):
    asked = any("soak" in str(argument) for argument in config.invocation_params.args)
    return None if asked else True
