"""The observer's pages in a browser, beside a real `flops serve` and real builders: live, through a killed manager, for everybody."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import statistics
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from tests import project_events as events
from tests.integration.test_serve import serve
from tests.unit.test_observer_page import Kept
from tests.web import serving

from flops.observer.view import LINES
from flops.observer.web import ObserverPages
from flops.service.project import BuilderState, Project, State
from flops.service.store import Store
from flops.settings import Settings
from flops_wire.manager import PROJECTS

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.integration

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits-sklearn"
CHROMIUM = shutil.which("chromium")
OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
#: Milliseconds; builders share the machine with other tests.
PATIENCE = 120_000
MANY = 500
NOT_HERE = ("BASE_UNAVAILABLE", "INDEX_UNREACHABLE")
#: What a browser itself says while a manager is away.
AWAY = re.compile(r"net::ERR_(CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE|INCOMPLETE_CHUNKED_ENCODING)")


class Service:
    """`flops serve` that can be killed and comes back at the same addresses."""

    def __init__(self, directory) -> None:
        self.directory = directory
        self.ports = ()
        self.running = contextlib.ExitStack()

    def start(self):
        cache = {"FLOPS_CACHE_DIR": str(Settings().cache_dir), "PYTHONDONTWRITEBYTECODE": ""}
        self.child, places = self.running.enter_context(serve(self.directory, "--allow-local", *self.ports, **cache))
        self.url = places["manager"]
        port, registry = (str(urlsplit(places[name]).port) for name in ("manager", "registry"))
        self.ports = ("--port", port, "--registry-port", registry)

    def kill(self):
        self.child.kill()
        self.running.close()

    def submit(self, directory, **more):
        document = {
            "ml_repo_url": str(directory),
            "ml_model_flavor": "sklearn",
            "supported_platforms": ["linux/amd64"],
            **more,
        }
        answer = httpx.post(self.url + PROJECTS, json=document, trust_env=False, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["project"]["id"]

    def project(self, project):
        return httpx.get(f"{self.url}{PROJECTS}/{project}", trust_env=False, timeout=60).json()

    def sequences(self, project):
        answer = httpx.get(f"{self.url}{PROJECTS}/{project}/events?follow=false", trust_env=False, timeout=60)
        return [int(number) for number in re.findall(r"^id: (\d+)$", answer.text, re.MULTILINE)]

    def builder(self, project):
        """The process of a project's builder, as its first event of deploy names it."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            told = httpx.get(f"{self.url}{PROJECTS}/{project}/events?follow=false", trust_env=False, timeout=60).text
            for name in re.findall(r"attempt 1: builder (\w+) is being deployed", told):
                for place in Path("/proc").glob("[0-9]*/environ"):
                    with contextlib.suppress(OSError):
                        if f"FLOPS_JOB_ID={name}".encode() in place.read_bytes().split(b"\0"):
                            return int(place.parent.name)
            time.sleep(0.02)
        raise AssertionError("no builder was started")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    directory = tmp_path_factory.mktemp("observer")
    many(directory / "data" / "manager" / "projects.sqlite3")
    service = Service(directory)
    try:
        service.start()
        yield service
    finally:
        service.running.close()


def many(database):
    now = time.time()  # old ones are forgotten
    with Store(database) as store, store.write() as tables:
        for number in range(MANY):
            state = (State.IMAGES_READY, State.FAILED, State.CANCELLED)[number % 3]
            error = {"code": "STRUCTURE", "message": "model_manager.py is missing", "hint": "", "findings": []}
            tables.insert(
                Project(
                    id=secrets.token_hex(12),
                    repository=f"https://git.example.org/acme/project-{number}",
                    recipe="sha256:" + "a" * 64,
                    commit="b" * 40,
                    platforms=("linux/amd64", "linux/arm64"),
                    sla={"ml_model_flavor": "sklearn"},
                    state=state,
                    builder=BuilderState.REMOVED,
                    error=error if state is State.FAILED else None,
                    created=now - 3600 + number,
                    ended=now - 3570 + number,
                )
            )


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


class Viewer:
    """A browser's window; what went wrong in it."""

    def __init__(self, browser, url, **more) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **more)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.url = url
        self.troubles = []
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))

    def open(self, project=""):
        self.page.goto(f"{self.url}/projects/{project}".rstrip("/"))
        return self.page

    def wait_for(self, selector, state="attached"):
        self.page.locator(selector).first.wait_for(state=state)

    @property
    def lines(self):
        return self.page.eval_on_selector_all("[data-sequence]", "all => all.map(one => Number(one.dataset.sequence))")


@pytest.fixture
def viewers(browser, service):
    with contextlib.ExitStack() as opened:

        def view(**more):
            viewer = Viewer(browser, service.url, **more)
            opened.callback(viewer.context.close)
            return viewer

        yield view


def check_for_everybody(viewer, name, directory):
    """axe-core finds nothing serious in either scheme, and nothing is wider than a phone; pictures for the eye."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = viewer.page
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        violations = axe.run(page).response["violations"]
        bad = [
            (one["id"], [node["html"][:200] for node in one["nodes"]])
            for one in violations
            if one["impact"] in ("serious", "critical")
        ]
        assert not bad, (name, scheme, bad)
        for width in (1280, 390, 360):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
            if (scheme, width) in (("light", 1280), ("dark", 390)):
                page.screenshot(path=directory / f"{name}-{width}.png", full_page=True)
        page.set_viewport_size({"width": 1280, "height": 900})


def broken(directory):
    """The example with a method that the contract wants and a class does not have; the line of the class."""
    shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("data", "__pycache__"))
    file = directory / "model_manager.py"
    text = file.read_text().replace("def get_model_parameters", "def other_parameters")
    file.write_text(text)
    return next(number for number, line in enumerate(text.splitlines(), 1) if line.startswith("class ModelManager"))


def test_a_killed_manager_loses_no_line_and_the_failure_tells_its_place(service, viewers, tmp_path):
    viewer, plain = viewers(), viewers(java_script_enabled=False)
    line = broken(tmp_path / "acme")
    project = service.submit(tmp_path / "acme")
    builder = service.builder(project)
    os.kill(builder, signal.SIGSTOP)
    try:
        viewer.open(project)
        plain.open(project)
        viewer.wait_for('[data-stage="1/start"].running')
        check_for_everybody(viewer, "running", tmp_path)
        service.kill()
        viewer.wait_for("#connection:text('reconnecting')", state="visible")
        viewer.page.locator(".id .copy").click()
        viewer.wait_for("#connection:text('cop')", state="visible")  # for a moment only
        viewer.wait_for("#connection:text('reconnecting')", state="visible")
        assert viewer.page.locator('[data-state="building"]').count(), "a lost connection is no failure"
        assert [one for one in viewer.troubles if not AWAY.search(one)] == []
        service.start()
    finally:
        os.kill(builder, signal.SIGCONT)
    viewer.wait_for('[data-state="failed"]')
    viewer.wait_for("#project [data-still]")
    viewer.wait_for("#connection", state="hidden")
    assert [one for one in viewer.troubles if not AWAY.search(one)] == []
    assert viewer.lines == service.sequences(project)
    assert viewer.page.locator('[data-stage="1/clone"].done').count()
    assert viewer.page.locator('[data-stage="1/check"].failed').count()
    card = viewer.page.locator(".card.error").first
    assert f"model_manager.py:{line}" in card.inner_text()
    assert "class ModelManager" in card.locator(".quote").inner_text()
    assert "get_model_parameters" in card.inner_text()
    assert viewer.page.title().startswith("✕ acme, failed")
    assert viewer.page.locator('link[rel="icon"]').get_attribute("href").endswith("failed.svg")
    check_for_everybody(viewer, "failed", tmp_path)
    # whoever has no JavaScript came to the same end: the page renews itself while a manager answers
    plain.open(project)
    plain.wait_for('[data-state="failed"]')
    assert plain.lines == viewer.lines


def test_cancel_takes_two_presses_and_one_without_javascript(service, viewers, tmp_path):
    broken(tmp_path / "acme")
    viewer, plain = viewers(), viewers(java_script_enabled=False)
    for number, other in enumerate((viewer, plain)):
        project = service.submit(tmp_path / "acme", policy=("fix", "strict")[number])
        builder = service.builder(project)
        os.kill(builder, signal.SIGSTOP)
        try:
            page = other.open(project)
            if other is viewer:
                page.evaluate("window.same = true")
                page.get_by_role("button", name="Cancel").click()
                assert service.project(project)["state"] == "building"
                page.get_by_role("button", name="Cancel for good?").click()
            else:
                page.get_by_role("button", name="Cancel").click()
            other.wait_for('[data-state="cancelled"]')
            assert service.project(project)["state"] == "cancelled"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(builder, signal.SIGCONT)
    assert viewer.page.evaluate("window.same"), "the page was not loaded again"
    assert viewer.troubles == []


def test_a_build_live_to_its_images(service, viewers, tmp_path):
    viewer = viewers(permissions=["clipboard-read", "clipboard-write"])
    project = service.submit(EXAMPLE)
    page = viewer.open(project)
    page.evaluate("""() => {
      window.ran = new Set();
      setInterval(() => document.querySelectorAll('.stages .running').forEach((row) => ran.add(row.dataset.stage)), 20);
    }""")
    viewer.wait_for("#project [data-still]")
    told = service.project(project)
    if told["error"] and told["error"]["code"] in NOT_HERE:
        pytest.skip(told["error"]["message"])
    assert told["state"] == "images_ready", told["error"]
    assert len(set(page.evaluate("[...ran]"))) >= 3, "stages were seen while they ran"
    assert viewer.lines == service.sequences(project)
    assert page.title().startswith("✓ digits-sklearn, images ready")
    reference = told["images"]["learner"]["reference"]
    page.locator(f'.copy[data-copy="docker pull {reference}"]').click()
    assert page.evaluate("navigator.clipboard.readText()") == f"docker pull {reference}"
    assert page.locator("tbody th", has_text="linux/amd64").count() == 2
    assert viewer.troubles == []
    check_for_everybody(viewer, "done", tmp_path)
    page.get_by_role("button", name="Build again").click()
    page.wait_for_url(lambda url: not url.endswith(project))
    new = page.url.rpartition("/")[2]
    assert service.project(new)["force"]
    httpx.post(f"{service.url}{PROJECTS}/{new}/cancel", trust_env=False)


class Told(Kept):
    """Its progress comes with the rest."""

    def events(self, project, *, after, limit):
        del project
        return [one for one in self.told if (one["sequence"] or 1) > after][:limit]


@contextlib.contextmanager
def showing(told):
    app = Starlette(routes=list(ObserverPages(Told(told)).routes()))
    app.state.streams = contextlib.ExitStack()
    with serving(app) as url:
        yield url


def test_the_page_does_not_jump_while_stages_go_on(browser):
    """Below the stages one reads; with each stage that begins, counts bytes or ends, that place stays where it is."""
    counted = events.make("fetch", "progress", data={"done": 2.5e8, "total": 4.5e8, "unit": "bytes"})
    told = [{**one, "data": counted["data"]} if one["kind"] == "progress" else one for one in events.success()]
    heights = {390: {}, 768: {}, 1024: {}, 1280: {}}
    for until, one in enumerate(told, 1):
        if one["stage"] in ("queue", "clone", "fetch", "push") and one["kind"] != "succeeded":
            with showing(told[:until]) as url, contextlib.closing(Viewer(browser, url).context) as context:
                (page,) = context.pages
                page.goto(f"{url}/projects/{events.PROJECT}")
                bars = page.locator("progress").count()
                for width, found in heights.items():
                    page.set_viewport_size({"width": width, "height": 900})
                    found.setdefault(bars, set()).add(page.locator(".stages").bounding_box()["height"])
    for found in heights.values():
        assert len(found.pop(2)) == 1, heights  # a second platform has a line of its own
        assert found[0] == found[1], heights
        assert len(found[0]) == 1, heights


def test_a_link_to_a_line_leads_to_it_however_long_the_log(browser):
    told = events.numbered(*(events.make("queue", "warning", f"told {number}") for number in range(LINES + 20)))
    with showing(told) as url:
        for line in (5, LINES):  # one that a page leaves out at first, and one that it has
            with contextlib.closing(Viewer(browser, url).context) as context:
                (page,) = context.pages
                page.goto(f"{url}/projects/{events.PROJECT}#line-{line}")
                target = page.locator(".log li:target")
                target.wait_for()
                assert f"told {line - 1}" in target.inner_text()
                log, place = page.locator(".log").bounding_box(), target.bounding_box()
                assert log["y"] <= place["y"] + 1
                assert place["y"] + place["height"] <= log["y"] + log["height"] + 1


def test_five_hundred_projects_in_a_second(service, viewers, tmp_path):
    viewer = viewers()
    took = []
    for _ in range(5):
        viewer.open()
        took.append(viewer.page.evaluate("performance.getEntriesByType('navigation')[0].duration"))
    assert statistics.median(took) < 1000, took
    viewer.page.get_by_role("searchbox").fill("project-499")
    viewer.page.keyboard.press("Enter")
    viewer.wait_for("h1 small:text-is('1')")
    viewer.page.get_by_role("link", name="acme/project-499").wait_for()
    viewer.page.goto(f"{service.url}/projects?state=failed")
    assert viewer.page.locator(".badge.failed").count() == 50
    check_for_everybody(viewer, "list", tmp_path)
    viewer.page.keyboard.press("Tab")
    assert viewer.page.evaluate("document.activeElement.className") == "skip"
    assert viewer.troubles == []
