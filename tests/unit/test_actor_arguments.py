"""The actors' command lines, in FLOps' form."""

import pytest

from flops_actor.arguments import Endpoint, endpoint, parse_aggregator, parse_learner
from flops_actor.places import deadlines, places

LEARNER = ["p1", "10.0.0.1", "10.0.0.2", "10.0.0.3", "mnist,cifar"]
AGGREGATOR = ["p1", "10.0.0.1", "10.0.0.2", "http://10.0.0.4:7027", "CLASSIC_AGGREGATOR", "3", "2", "1", "1"]


def test_a_learner_as_flops_starts_it():
    found = parse_learner(LEARNER)
    assert found.project == "p1"
    assert found.broker == Endpoint(host="10.0.0.1", port=9027)
    assert found.observer == Endpoint(host="10.0.0.2", port=2727)
    assert found.aggregator == Endpoint(host="10.0.0.3", port=8080)
    assert found.tags == ("mnist", "cifar")
    assert found.node_port == 0


def test_a_learner_without_flops():
    found = parse_learner(["p", "-", "none", "aggregator:9999", "--node-port", "9094"])
    assert (found.broker, found.observer, found.tags) == (None, None, ())
    assert str(found.aggregator) == "aggregator:9999"
    assert found.node_port == 9094


@pytest.mark.parametrize("tags", ["-", "", ",", "none"])
def test_no_tags(tags):
    assert parse_learner(["p", "-", "-", "a", tags]).tags == ()


def test_an_aggregator_as_flops_starts_it():
    found = parse_aggregator(AGGREGATOR)
    assert (found.rounds, found.min_available, found.min_fit, found.min_evaluate) == (3, 2, 1, 1)
    assert found.type == "CLASSIC_AGGREGATOR"
    assert found.tracking == "http://10.0.0.4:7027"
    assert found.broker == Endpoint(host="10.0.0.1", port=9027)
    assert found.root is None
    assert found.port == 8080


def test_the_aggregator_s_flags():
    words = [*AGGREGATOR, "10.0.0.9", "--track-locally", "--deactivate-notifications", "--port", "8081"]
    found = parse_aggregator(words)
    assert (found.broker, found.observer, found.tracking) == (None, None, "")
    assert found.root == Endpoint(host="10.0.0.9", port=8080)
    assert found.port == 8081


@pytest.mark.parametrize(
    "words",
    [
        LEARNER[:3],
        [*LEARNER[:3], "-"],
        [*LEARNER[:3], "host:0"],
        [*LEARNER[:3], "host:99999"],
        [*LEARNER, "more"],
        [*LEARNER, "--node-port", "x"],
    ],
)
def test_a_learner_s_wrong_words_end_with_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_learner(words)
    assert caught.value.code == 2
    assert "usage: main.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("position", "word"), [(4, "AGGREGATOR"), (5, "0"), (5, "three"), (6, "-1"), (8, "1.5"), (1, "host:port")]
)
def test_an_aggregator_s_wrong_words_end_with_2(position, word, capsys):
    words = list(AGGREGATOR)
    words[position] = word
    with pytest.raises(SystemExit) as caught:
        parse_aggregator(words)
    assert caught.value.code == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1", "10.0.0.1", 1),
        ("name:80", "name", 80),
        ("[::1]:80", "::1", 80),
        ("[::1]", "::1", 1),
        ("fe80::1", "fe80::1", 1),
        (" host ", "host", 1),
    ],
)
def test_addresses(text, host, port):
    assert endpoint(text, 1) == Endpoint(host=host, port=port)


@pytest.mark.parametrize("text", ["-", "", " ", "None", "NONE"])
def test_no_address(text):
    assert endpoint(text, 1) is None


@pytest.mark.parametrize("text", ["host:", ":80", "host:-1", "host:65536", "host:8O", "[::1]:x"])
def test_addresses_that_are_none(text):
    with pytest.raises(ValueError, match="no valid port"):
        endpoint(text, 1)


def test_an_ipv6_address_is_written_in_brackets():
    assert str(Endpoint(host="::1", port=80)) == "[::1]:80"


def test_places_of_an_image_and_of_a_test():
    assert str(places({}).ml_python) == "/opt/flops/ml/bin/python"
    assert str(places({}).repository) == "/opt/flops/repo"
    assert str(places({"FLOPS_REPO": "/x"}).repository) == "/x"


def test_deadlines_can_be_set():
    found = deadlines({"FLOPS_LEARNERS_SECONDS": "7.5", "FLOPS_LINK_SECONDS": ""})
    assert (found.learners, found.link) == (7.5, 30)
    with pytest.raises(ValueError, match="soon"):
        deadlines({"FLOPS_ROUND_SECONDS": "soon"})
