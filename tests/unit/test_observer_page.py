"""The observer's pages: text stays text, a page is whole without JavaScript, and each state is drawn once for all viewers."""

import json
import re
from functools import partial
from html import unescape
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import settings as trying
from hypothesis import strategies as st
from starlette.applications import Starlette
from tests import project_events as events
from tests.orchestrators import World, failed, tagging
from tests.web import Web, open_access

from flops.cli.service import ManagerProjects
from flops.errors import ProjectDecided, ProjectNotFound, TooMany
from flops.observer import words
from flops.observer import words as places
from flops.observer.feed import Feed
from flops.observer.feed_cache import FeedCache
from flops.observer.state import ImageView
from flops.observer.timeline import LANE_WIDTH, timeline
from flops.observer.view import LINES, advice, layers
from flops.observer.web import PER_PAGE, ObserverPages, Pace, address
from flops.service.api import create_app
from flops.service.named_credentials import CredentialNames, NamedCredentials
from flops.service.sla import parse_sla
from flops_wire.events import MESSAGE, STAGES, TAGGING

STORIES = {
    "success": events.success(),
    "failure": events.failure(),
    "second": events.second_attempt(),
    "lost": events.lost_at_once(),
    "cancelled": events.cancelled(),
}
STATES = {
    "success": "images_ready",
    "failure": "failed",
    "second": "images_ready",
    "lost": "building",
    "cancelled": "cancelled",
}
PAGE = f"/projects/{events.PROJECT}"
NOW = words.epoch("2026-01-01T12:30:00.000Z")
PATCH = "--- a/conda.yaml\n+++ b/conda.yaml\n@@ -8,3 +8,3 @@\n same\n-old==1\n+new==2"


def document(state="building", **fields):
    ended = state not in ("accepted", "building")
    error = {"code": "STRUCTURE", "message": "the repository breaks the contract", "hint": "see above", "findings": []}
    return {
        "id": events.PROJECT,
        "state": state,
        "builder": "removed" if ended else "running",
        "repository": "https://git.example.org/acme/digits",
        "subdir": "",
        "ref": None,
        "commit": events.COMMIT,
        "recipe": "sha256:" + "cd" * 32,
        "platforms": ["linux/amd64", "linux/arm64"],
        "flavor": "sklearn",
        "images": None,
        "result": None,
        "error": error if state == "failed" else None,
        "warnings": [],
        "force": False,
        "attempt": 1,
        "waits_for": None,
        "created": "2026-01-01T12:00:00.000Z",
        "started": "2026-01-01T12:00:01.000Z",
        "ended": "2026-01-01T12:00:40.000Z" if ended else None,
        **fields,
    }


class Kept:
    """Projects as whoever keeps them would tell them (`flops.observer.feed_cache.Projects`)."""

    def __init__(self, told=(), **fields) -> None:
        self.told = list(told)
        self.documents = [document(**fields)]
        self.refusal = None
        self.reads = 0

    def page(self, *, limit, offset, state, text):
        found = [one for one in self.documents if state in (None, one["state"]) and text in one["repository"]]
        return found[offset : offset + limit], len(found)

    def show(self, project):
        for one in self.documents:
            if one["id"] == project:
                return one
        raise ProjectNotFound(f"there is no project {project!r}")

    def events(self, project, *, after, limit):
        self.reads += 1
        return [one for one in self.told if (one["sequence"] or 0) > after][:limit]

    def cancel(self, project):
        if self.refusal:
            raise self.refusal
        return self.show(project)

    def again(self, project):
        if self.refusal:
            raise self.refusal
        return {**self.show(project), "id": "a" * 24}


def pages(kept, **more):
    return Web(Starlette(routes=list(ObserverPages(kept, **more).routes())))


def page_of(story):
    return pages(Kept(STORIES[story], state=STATES[story])).get(PAGE).text


class Seen(HTMLParser):
    """A page as a browser takes it: its elements, and all text that people see or copy."""

    def __init__(self, html) -> None:
        super().__init__()
        self.elements = []
        self.texts = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.texts += [value for _, value in attrs if value]

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)

    def all(self, tag, **wanted):
        return [
            attrs for name, attrs in self.elements
            if name == tag and all(attrs.get(key.replace("_", "-")) == value for key, value in wanted.items())
        ]  # fmt: skip


def check_harmless(html):
    seen = Seen(html)
    assert [one["src"] for one in seen.all("script")] in ([], [address("observer.js")])
    for tag, attrs in seen.elements:
        assert tag not in ("iframe", "object", "embed", "base", "style")
        assert not [name for name in attrs if name.startswith("on") or name == "style"], (tag, attrs)
        for name in ("href", "src", "action"):
            assert re.match(r"/(?!/)|\?|#|https://", attrs.get(name) or "/"), attrs
    odd = [character for character in seen.text if not character.isprintable() and character != "\n"]
    assert not odd, odd
    return seen


def poison(value, hostile):
    """The same shape with this text in every place that a builder or a user fills."""
    fixed = {"id", "sequence", "time", "stage", "kind", "project", "attempt", "state", "builder", "created", "ended", "started", "waits_for"}  # fmt: skip
    if isinstance(value, dict):
        return {key: one if key in fixed else poison(one, hostile) for key, one in value.items()}
    if isinstance(value, list):
        return [poison(one, hostile) for one in value]
    return hostile + value if isinstance(value, str) else value


class TestForeignText:
    @pytest.mark.parametrize("story", STORIES)
    @pytest.mark.parametrize(
        "hostile", [events.HOSTILE, '"><img src=x onerror=alert(1)>', "javascript:alert(1)//", "{{ 7 * 7 }}", "</pre></li></ol>"]
    )  # fmt: skip
    def test_it_stays_text_everywhere(self, story, hostile):
        kept = Kept(poison(STORIES[story], hostile), **poison(document(STATES[story]), hostile))
        web = pages(kept)
        seen = check_harmless(web.get(PAGE).text)
        check_harmless(web.get(f"{PAGE}/live").text)
        check_harmless(web.get("/projects", params={"q": hostile}).text)
        assert words.plain(hostile) in seen.text
        plain = Seen(pages(Kept(STORIES[story], **document(STATES[story]))).get(PAGE).text)
        assert len(seen.all("script")) == len(plain.all("script"))
        assert len(seen.all("form")) == len(plain.all("form"))

    @trying(deadline=None, max_examples=40)
    @given(hostile=st.text(max_size=60), story=st.sampled_from(sorted(STORIES)))
    def test_whatever_it_is(self, hostile, story):
        kept = Kept(poison(STORIES[story], hostile), **poison(document(STATES[story]), hostile))
        check_harmless(pages(kept).get(PAGE).text)

    def test_a_very_long_message_is_cut(self):
        told = events.numbered(events.make("queue", "warning", "a" * 100_000, hint="b" * 100_000))
        html = pages(Kept(told)).get(PAGE).text
        assert len(html) < 30_000
        assert "(98000 more characters)" in html

    def test_odd_events_break_nothing(self):
        told = [{"sequence": 1}, {"sequence": 2, "stage": 7, "kind": "failed", "data": {"error": [], "result": 1}}]
        assert pages(Kept(told, state="failed")).get(PAGE).status_code == 200
        odd = events.make("push", "succeeded", data={"result": {"bytes": [], "images": {"learner": {"platforms": 3}}}})
        assert pages(Kept(events.numbered(odd), state="images_ready")).get(PAGE).status_code == 200

    def test_what_is_copied_into_a_terminal_is_one_harmless_line(self):
        def pull(reference):
            return ImageView(actor="learner", reference=reference, digest="", platforms=()).pull

        assert pull("127.0.0.1:5073/a/b:c") == "docker pull 127.0.0.1:5073/a/b:c"
        assert pull("[::1]:5073/a/b@sha256:ab") == "docker pull [::1]:5073/a/b@sha256:ab"
        for bad in ("127.0.0.1:1/a; rm -rf ~", "127.0.0.1:1/a\nid", "-v/:/x.y", "127.0.0.1:1/$(id)", "a.b/`id`"):
            assert pull(bad) == ""
        assert words.line("a\nb\x1b[0m") == r"a\nb\x1b[0m"


class TestWithoutJavaScript:
    def test_while_it_runs_the_page_renews_itself_and_is_whole(self):
        until = next(at for at, one in enumerate(STORIES["success"]) if one["stage"] == "fetch")
        html = pages(Kept(STORIES["success"][: until + 1])).get(PAGE).text
        assert '<noscript><meta http-equiv="refresh"' in html
        seen = Seen(html)
        rows = {one["data-stage"]: one["class"] for one in seen.all("li") if "data-stage" in one}
        assert rows["1/fetch"] == "running"
        assert rows["1/resolve"] == "done"
        assert rows["1/push"] == "waiting"
        assert seen.all("form", action=f"{PAGE}/cancel", method="post")
        assert "psutil" in seen.text
        assert "the index is slow" in seen.text

    @pytest.mark.parametrize(("code", "cells"), [("ADDED", ("\u2013", "any")), ("REMOVED", ("any", "\u2013"))])
    def test_a_requirement_without_a_version_is_added_or_taken_out(self, code, cells):
        changed = {**events.ADJUSTMENT, "code": code, "before": "", "after": ""}
        html = pages(Kept(events.numbered(events.make("resolve", "adjusted", data=changed)))).get(PAGE).text
        assert "".join(f"<td><code>{cell}</code></td>" for cell in cells) in html

    def test_afterwards_it_stands_still(self):
        html = page_of("success")
        assert "http-equiv" not in html
        seen = Seen(html)
        assert seen.all("form", action=f"{PAGE}/again", method="post")
        assert not seen.all("form", action=f"{PAGE}/cancel")
        assert f"docker pull 127.0.0.1:5073/acme/digits/learner:{events.COMMIT}" in seen.text
        assert "150.0 MB" in seen.text

    def test_a_builder_that_is_still_to_be_removed_is_waited_for(self):
        kept = Kept(STORIES["success"], state="images_ready", builder="removing")
        assert "http-equiv" in pages(kept).get(PAGE).text

    def test_a_failure_tells_place_line_and_what_to_write(self):
        seen = Seen(page_of("failure"))
        assert [one["class"] for one in seen.all("article")] == ["card error", "card error", "card remedy"]
        assert "model_manager.py:7" in seen.text
        assert "class ModelManager:" in seen.text
        assert {"data-copy": "add it"}.items() <= seen.all("button", data_copy="add it")[0].items()
        assert "Failed in check." in seen.text

    def test_a_patch_is_shown_as_one(self):
        finding = {**events.FINDING, "hint": "write new"}
        error = {
            "code": "X",
            "message": finding["message"],
            "hint": f"write new; as a patch:\n{PATCH}",
            "findings": [finding],
        }
        told = events.numbered(events.make("resolve", "failed", "x", data={"error": error}))
        seen = Seen(pages(Kept(told, state="failed")).get(PAGE).text)
        assert seen.all("button", data_copy=PATCH + "\n")
        assert len(seen.all("span", **{"class": "add"})) == 1
        assert seen.text.count("write new") == 2, "the card and what it copies; the patch needs no repetition"

    def test_state_is_told_in_words_and_in_the_title(self):
        for story, name in (("success", "images ready"), ("failure", "failed"), ("cancelled", "cancelled")):
            html = page_of(story)
            assert name in re.search(r"<title>(.*?)</title>", html)[1]
            assert name in re.search(r'class="badge[^"]*">(.*?)</dd>', html)[1]

    def test_both_attempts_are_shown(self):
        seen = Seen(page_of("second"))
        assert "Attempt 1" in seen.text
        assert {"1/resolve", "2/resolve"} <= {one.get("data-stage") for one in seen.all("li")}

    def test_a_long_log_begins_with_its_end(self):
        told = events.numbered(*(events.make("queue", "warning", f"line {n}") for n in range(LINES + 20)))
        web = pages(Kept(told))
        html = web.get(PAGE).text
        assert html.count("data-sequence=") == LINES
        assert "20 earlier lines are left out" in html
        assert web.get(f"{PAGE}?log=all").text.count("data-sequence=") == LINES + 20

    def test_each_line_of_the_log_can_be_linked_to(self):
        seen = Seen(page_of("success"))
        lines = {one["id"] for one in seen.all("li") if "data-sequence" in one}
        links = {one["href"] for one in seen.all("a") if one["href"].startswith("#line-")}
        assert len(lines) > 20
        assert links == {f"#{line}" for line in lines}

    def test_the_tabs_icon_tells_the_state(self):
        icons = set()
        for story in ("success", "failure"):
            web = pages(Kept(STORIES[story], state=STATES[story]))
            seen = Seen(web.get(PAGE).text)
            (icon,) = seen.all("link", rel="icon")
            assert seen.all("div", data_icon=icon["href"]), "what a page that is open changes to"
            icons.add(web.get(icon["href"]).text)
        assert len(icons) == 2

    def test_what_a_project_waits_for_is_said(self):
        def facts(**fields):
            page = pages(Kept(events.success()[:1], **fields)).get(PAGE).text
            return dict(re.findall(r"<div><dt>(.*?)</dt><dd.*?>(?:<.*?>)?(.*?)<", page))

        waiting = facts(state="accepted", builder="queued")
        assert waiting["Builder"] == "queued"
        assert "So far" in waiting
        assert facts(state="accepted", builder="none", waits_for="b" * 24)["Waits for"] == "another project's builder"
        running, over = facts(attempt=2), facts(state="failed", attempt=2)
        assert (running["Builder"], running["Attempt"], "Waits for" in running) == ("running", "2", False)
        assert "Running for" in running
        assert ("Builder" in over, "Took" in over, over["Attempt"]) == (False, True, "2")

    def test_warnings_stand_beside_the_notes_once_and_messages_in_the_log_alone(self):
        told = events.numbered(
            events.make("queue", "warning", "SLA: /foo is unknown and ignored"),
            events.make("resolve", "warning", "the index is slow", hint="wait"),
            events.make("resolve", "warning", "the index is slow", hint="wait", attempt=2),
            events.make("resolve", "warning", "training has begun", code=MESSAGE, attempt=2),
        )
        page = pages(Kept(told)).get(PAGE).text
        notes, log = page.split('aria-label="Notes"')[1].split('aria-label="Log"')
        assert [notes.count(text) for text in ("/foo is unknown", "index is slow", "training has")] == [1, 1, 0]
        assert [log.count(text) for text in ("/foo is unknown", "index is slow", "training has")] == [1, 2, 1]
        assert len(Seen(notes).all("button", data_copy="wait")) == 1

    def test_words_between_programs_are_no_part_of_the_log(self):
        page = page_of("success")
        assert "tags move" in page
        assert TAGGING not in page
        assert "PIN_RELAXED" in page


class TestParts:
    def test_only_lines_that_are_new(self):
        web = pages(Kept(STORIES["success"], state="images_ready"))
        html = web.get(f"{PAGE}/live?after=10").text
        assert [int(n) for n in re.findall(r'data-sequence="(\d+)"', html)] == list(
            range(11, max(one["sequence"] or 0 for one in STORIES["success"]) + 1)
        )
        assert "<html" not in html
        full = web.get(PAGE).text
        assert set(re.findall(r'data-part="(\w+)"', html)) == set(re.findall(r'data-part="(\w+)"', full))

    @pytest.mark.parametrize("after", ["", "-1", "x", "9" * 400, "²"])
    def test_odd_places(self, after):
        assert pages(Kept(STORIES["success"])).get(f"{PAGE}/live?after={after}").status_code == 200

    def test_unknown(self):
        web = pages(Kept())
        assert web.get(f"/projects/{'0' * 24}/live").status_code == 404
        answer = web.get(f"/projects/{'0' * 24}")
        assert (answer.status_code, "No such project" in answer.text) == (404, True)
        assert web.post(f"/projects/{'0' * 24}/cancel").status_code == 404

    def test_each_state_is_drawn_once(self):
        kept = Kept(STORIES["success"][:4])
        shelf, drawn = FeedCache(kept), []

        def draw(feed):
            drawn.append(feed.last)
            return f"drawing {len(drawn)}"

        def shown(*key):
            return shelf.draw(events.PROJECT, key, draw)

        assert [shown(0), shown(0), shown(4), shown(0)] == ["drawing 1", "drawing 1", "drawing 2", "drawing 1"]
        kept.told = STORIES["success"][:6]
        assert shown(0) == "drawing 3"
        assert shelf.draw(events.PROJECT, None, draw) == "drawing 4"
        assert drawn == [4, 4, 6, 6]

    def test_what_changes_without_an_event_is_seen(self):
        kept = Kept(STORIES["cancelled"][:2], state="accepted", commit=None)
        web = pages(kept)
        assert events.COMMIT not in web.get(f"{PAGE}/live").text
        kept.documents = [document(waits_for="b" * 24)]
        html = web.get(f"{PAGE}/live").text
        assert events.COMMIT in html
        assert "/projects/" + "b" * 24 in html

    def test_many_events_are_read_in_pages_and_once(self):
        told = events.numbered(*(events.make("queue", "warning", f"{n}") for n in range(1200)))
        kept = Kept(told)
        web = pages(kept)
        web.get(f"{PAGE}/live?after=1190")
        assert kept.reads == 3
        web.get(f"{PAGE}/live?after=1190")
        assert kept.reads == 4


class TestPace:
    def test_one_viewer_hardly_waits_and_many_ask_seldom(self):
        for viewers, least, most in ((1, 150, 300), (200, 1500, 3000)):
            now = [0.0]
            pace = Pace(partial(now.__getitem__, 0))
            due = [0.0] * viewers
            asked = 0
            while now[0] < 60:
                viewer = min(range(viewers), key=due.__getitem__)
                now[0] = due[viewer]
                wait = pace.step()
                due[viewer] += wait / 1000
                asked += now[0] >= 30
            assert least <= wait <= most
            assert asked / 30 < 110

    def test_it_is_told_and_forgotten(self):
        now = [0.0]
        pace = Pace(lambda: now[0])
        assert max(pace.step() for _ in range(10_000)) == 10_000
        now[0] = 60
        assert pace.step() < 200
        answer = pages(Kept(STORIES["success"])).get(f"{PAGE}/live")
        assert int(answer.headers["Flops-Settle"]) >= 150


class TestList:
    def test_five_hundred_in_pages(self):
        kept = Kept()
        kept.documents = [document("failed", id=f"{n:024x}") for n in range(500)]
        web = pages(kept)
        found, address = [], "/projects"
        while address:
            html = web.get(address).text
            found += re.findall(r'href="/projects/([0-9a-f]{24})"', html)
            following = Seen(html).all("a", rel="next")
            address = following[0]["href"] if following else None
        assert found == [f"{n:024x}" for n in range(500)]
        assert "page 1 of 10" in web.get("/projects").text
        assert "<title>Projects, page 2 - " in web.get("/projects?page=2").text
        assert web.get("/projects").text.count("<tr>") == PER_PAGE + 1

    def test_filters_stay_through_the_pages(self):
        kept = Kept()
        kept.documents = [document("failed", id=f"{n:024x}") for n in range(60)]
        html = pages(kept).get("/projects?state=failed&q=acme%26b%3Dc").text
        assert "No project fits" in html
        html = pages(kept).get("/projects?state=failed&q=acme").text
        assert Seen(html).all("a", rel="next")[0]["href"] == "/projects?state=failed&q=acme&page=2"
        assert Seen(html).all("option", value="failed", selected=None)

    @pytest.mark.parametrize("query", ["page=0", "page=x", "page=99999999", "state=odd", "page=²", "q=" + "a" * 5000])
    def test_odd_questions(self, query):
        assert pages(Kept()).get(f"/projects?{query}").status_code == 200

    def test_one_row(self):
        seen = Seen(pages(Kept(state="failed")).get("/projects").text)
        assert "STRUCTURE" in seen.text
        assert "acme/digits" in seen.text
        assert events.COMMIT[:9] in seen.text
        assert "40.0 s" in seen.text

    def test_it_renews_itself_only_while_something_runs(self):
        assert "http-equiv" in pages(Kept()).get("/projects").text
        assert "http-equiv" not in pages(Kept(state="failed")).get("/projects").text

    def test_none(self):
        kept = Kept()
        kept.documents = []
        html = pages(kept).get("/projects").text
        assert "No project yet" in html
        example = unescape(re.search(r"<pre[^>]*>(.*?)</pre>", html, re.DOTALL)[1])
        found = parse_sla(json.loads(example), names=CredentialNames())
        assert not found.warnings


class TestChanging:
    def test_cancel_and_again_lead_to_a_page(self):
        web = pages(Kept())
        answer = web.post(f"{PAGE}/cancel")
        assert (answer.status_code, answer.headers["location"]) == (303, PAGE)
        answer = web.post(f"{PAGE}/again")
        assert (answer.status_code, answer.headers["location"]) == (303, f"/projects/{'a' * 24}")
        assert web.get(f"{PAGE}/cancel").status_code == 405

    @pytest.mark.parametrize(
        ("error", "status"),
        [(ProjectDecided("too <late>", hint="wait"), 409), (TooMany("full"), 429), (ProjectNotFound("gone"), 404)],
    )
    def test_a_refusal_is_told_on_the_page(self, error, status):
        kept = Kept(STORIES["success"])
        kept.refusal = error
        answer = pages(kept).post(f"{PAGE}/cancel")
        assert answer.status_code == status
        assert error.message.replace("<", "&lt;").replace(">", "&gt;") in answer.text

    def test_too_late_to_cancel(self):
        until = next(at for at, one in enumerate(STORIES["success"]) if one["code"] == "TAGGING")
        seen = Seen(pages(Kept(STORIES["success"][: until + 1])).get(PAGE).text)
        assert "disabled" in seen.all("button", **{"class": "danger"})[0]


class TestFiles:
    def test_addresses_change_with_their_content_and_are_kept(self):
        web = pages(Kept())
        html = web.get("/projects").text
        for name in ("observer.css", "observer.js", "favicon.svg"):
            assert address(name) in html
            answer = web.get(address(name))
            assert answer.status_code == 200
            assert "immutable" in answer.headers["cache-control"]
            assert re.fullmatch(rf"/static/[0-9a-f]{{12}}\.{re.escape(name)}", address(name))
        assert web.get("/static/000000000000.observer.css").status_code == 404

    def test_nothing_comes_from_elsewhere(self):
        web = pages(Kept(STORIES["success"]), login=True)
        for html in (web.get("/projects").text, web.get(PAGE).text):
            seen = check_harmless(html)
            for tag in ("link", "img", "script"):
                assert all((one.get("href") or one.get("src")).startswith("/static/") for one in seen.all(tag))
            assert seen.all("form", action="/logout")
        style, module = (web.get(address(name)).text for name in ("observer.css", "observer.js"))
        assert "url(" not in style
        assert "@import" not in style
        assert not re.search(r"innerHTML\s*=|insertAdjacentHTML|document\.write|\beval\(", module)


class TestTimeline:
    @pytest.mark.parametrize("story", STORIES)
    def test_bars_lie_on_the_scale_after_every_event(self, story):
        told = STORIES[story]
        for until in range(len(told) + 1):
            feed = Feed(told[:until])
            for lane in timeline(feed.attempts, now=NOW).lanes:
                assert [row.stage for row in lane.rows if row.stage != "start"] == list(STAGES)
                for row in lane.rows:
                    if row.begin is not None:
                        assert 0 <= row.start < LANE_WIDTH
                        assert 0 < row.length <= LANE_WIDTH + 4
                        assert (row.end is None) == (row.state == "running")
                        assert row.end is None or row.end >= row.begin

    def test_the_builders_own_start_is_a_row(self):
        told = STORIES["success"]
        (lane,) = timeline(Feed(told[:4]).attempts, now=words.epoch(told[3]["time"]) + 3).lanes
        start = next(row for row in lane.rows if row.stage == "start")
        assert (start.state, start.end, start.started) == ("running", None, told[3]["time"])
        (lane,) = timeline(Feed(told[:5]).attempts, now=NOW).lanes
        start = next(row for row in lane.rows if row.stage == "start")
        assert (start.state, start.seconds) == ("done", 1.0)
        (lane,) = timeline(Feed(events.numbered(*events.stage("clone"))).attempts, now=NOW).lanes
        assert next(row for row in lane.rows if row.stage == "start").state == "waiting"

    def test_what_runs_has_its_seconds_without_javascript_too(self):
        for until, name in ((1, "queue"), (5, "clone")):
            told = STORIES["success"][:until]
            (lane,) = timeline(Feed(told).attempts, now=words.epoch(told[-1]["time"]) + 7).lanes
            assert next(row for row in lane.rows if row.stage == name).seconds == 7

    def test_a_further_attempt_does_not_wait_for_its_turn(self):
        until = next(at for at, one in enumerate(STORIES["second"]) if one["attempt"] == 2)
        _, second = timeline(Feed(STORIES["second"][: until + 1]).attempts, now=NOW).lanes
        states = {row.stage: row.state for row in second.rows}
        assert (states["queue"], states["deploy"], states["clone"]) == ("skipped", "running", "waiting")

    def test_a_builder_that_was_lost_before_it_told_anything_failed_at_its_start(self):
        first, second = timeline(Feed(events.lost_at_once()).attempts, now=NOW).lanes
        assert [row.stage for row in first.rows if row.state == "failed"] == ["start"]
        assert first.lost
        assert next(row for row in first.rows if row.stage == "start").begin is not None
        assert not second.lost

    def test_what_a_cancelled_build_was_at_shows_its_time(self):
        (lane,) = timeline(Feed(STORIES["cancelled"]).attempts, now=NOW).lanes
        states = {row.stage: row.state for row in lane.rows}
        assert (states["clone"], states["check"]) == ("stopped", "skipped")
        clone = next(row for row in lane.rows if row.stage == "clone")
        assert (clone.seconds, clone.end - clone.begin) == (1.0, 1.0)
        assert '<li class="stopped"' in page_of("cancelled")

    def test_a_lost_attempt_ends_where_its_removal_began(self):
        first, second = timeline(Feed(STORIES["second"]).attempts, now=NOW).lanes
        resolve = next(row for row in first.rows if row.stage == "resolve")
        assert (resolve.state, resolve.end - resolve.begin) == ("failed", 2.0)
        assert min(row.begin for row in second.rows if row.begin is not None) > resolve.end

    def test_nothing_yet(self):
        found = timeline(Feed().attempts, now=NOW)
        assert found.first is None
        assert all(row.begin is None for row in found.lanes[0].rows)


class TestWords:
    @pytest.mark.parametrize(
        ("repository", "name", "home"),
        [
            ("https://git.example.org/acme/digits.git", "acme/digits", "git.example.org"),
            ("ssh://git@git.example.org:22/acme/digits", "acme/digits", "git.example.org:22"),
            ("/srv/repos/digits/", "digits", "/srv/repos"),
            ("https://git.example.org/", "https://git.example.org/", "git.example.org"),
            ("https://[bad/x", "https://[bad/x", "[bad"),
        ],
    )
    def test_names_of_repositories(self, repository, name, home):
        assert (places.name(repository), places.home(repository)) == (name, home)

    def test_pages_of_well_known_hosts_only(self):
        commit = "a" * 40
        assert places.line_page("https://github.com/acme/digits.git", commit, "a b/conda.yaml", 9) == (
            f"https://github.com/acme/digits/blob/{commit}/a%20b/conda.yaml#L9"
        )
        assert (
            places.line_page("https://gitlab.com/a/b/c", commit, "x.py", 0)
            == f"https://gitlab.com/a/b/c/-/blob/{commit}/x.py"
        )
        assert places.commit_page("https://codeberg.org/a/b", commit) == f"https://codeberg.org/a/b/commit/{commit}"
        for repository in (
            "https://git.example.org/a/b",
            "http://github.com/a/b",
            "ssh://git@github.com/a/b",
            "/srv/a",
        ):
            assert places.line_page(repository, commit, "x.py", 1) == places.commit_page(repository, commit) == ""
        assert places.line_page("https://github.com/a/b", "main", "x.py", 1) == ""

    def test_a_hint_and_its_patch(self):
        found = advice(f"write new; as a patch:\n{PATCH}")
        assert (found.words, found.patch) == ("write new", PATCH)
        assert [line.kind for line in found.lines] == ["at", "at", "at", "same", "del", "add"]
        assert advice("as a patch:\nof something") == advice("as a patch:\nof something")
        assert advice("as a patch:\nof something").patch == ""

    @pytest.mark.parametrize(
        ("words", "code"),
        [
            ("write def fit_model(self) -> int: (or rename fit_modl)", "def fit_model(self) -> int:"),
            ("write def f(self, x: dict[str, int]):", "def f(self, x: dict[str, int]):"),
            ("write middle==0.2.4 (requirements.txt:1)", "middle==0.2.4"),
            ("write torch[cuda]>=2.1,<3 instead of torch (conda.yaml:4)", "torch[cuda]>=2.1,<3"),
            ("write class ModelManager(ModelManagerTemplate):", "class ModelManager(ModelManagerTemplate):"),
            ("write def __init__(self): and give every other argument a default", "def __init__(self):"),
            ("write flower instead of lower (a.txt:5)", None),
            ("write a==1; write b==2", None),
            ("write it relative to its root", None),
        ],
    )
    def test_code_is_copied_without_the_words_around_it(self, words, code):
        found = advice(words)
        assert found.code == (code or words)
        assert "".join(part for part, _ in found.parts) == words
        assert [part for part, is_code in found.parts if is_code] == ([code] if code else [])

    @pytest.mark.parametrize(
        ("commit", "told"),
        [
            (events.COMMIT, "0123456789ab"),
            (f"{events.COMMIT}-dirty-e3fac89f4193", "0123456789ab, dirty e3fac89f4193"),
            (f"{'0' * 40}-dirty-e3fac89f4193", "dirty e3fac89f4193"),
            (None, ""),
        ],
    )
    def test_files_of_no_commit_are_told_apart(self, commit, told):
        assert words.revision(commit) == told

    def test_numbers(self):
        assert [words.amount(n) for n in (0, 999, 1500, 2.5e9, None)] == ["0 B", "999 B", "1.5 kB", "2.5 GB", ""]
        assert [words.span(n) for n in (0.44, 200, 7500)] == ["0.4 s", "3 min 20 s", "2 h 5 min"]
        assert [words.span(n) for n in (59.96, 3599.7, 86_399.9)] == ["1 min 0 s", "1 h 0 min", "1 d 0 h"]
        assert words.span(3 * 86_400 + 4 * 3600) == "3 d 4 h"
        assert words.ago("2026-01-01T12:00:00Z", NOW) == "30 min ago"
        assert words.ago("2026-01-01T13:00:00Z", NOW) == "just now"


class TestSizes:
    def test_layers_and_what_is_shared(self):
        def image(*entries):
            return {"layer_sizes": [{"digest": digest, "bytes": size, "title": digest} for digest, size in entries]}

        result = events.result()
        result["images"]["learner"]["platforms"] = {"linux/amd64": image(("base", 400), ("numpy", 100), ("actor", 1))}
        result["images"]["aggregator"]["platforms"] = {"linux/amd64": image(("base", 400), ("other", 2))}
        learner, aggregator = layers(result)
        assert [(bar.title, bar.length, bar.others) for bar in learner.bars] == [
            ("base", LANE_WIDTH, ("aggregator",)),
            ("numpy", 250, ()),
            ("actor", 2, ()),
        ]
        assert (learner.bytes, learner.shared_bytes, aggregator.shared_bytes) == (501, 400, 400)
        told = events.numbered(events.make("push", "succeeded", data={"result": result}))
        html = pages(Kept(told, state="images_ready")).get(PAGE).text
        assert html.count('<details class="layers">') == 2
        assert "3 layers, 501 B, 400 B of it in the aggregator too" in re.sub("<.*?>", "", html)

    def test_what_platforms_share_is_not_shared_by_actors(self):
        """A node has one platform: of its images, only another actor's can have brought a layer."""
        result = events.result()
        for actor, image in result["images"].items():
            for one in image["platforms"].values():
                one["layer_sizes"] = [{"digest": digest, "bytes": 8, "title": digest} for digest in ("base", actor)]
        learner = layers(result)[0]
        assert [bar.others for bar in learner.bars] == [("aggregator",), ()]
        assert (learner.bytes, learner.shared_bytes) == (16, 8)
        told = events.numbered(events.make("push", "succeeded", data={"result": result}))
        html = pages(Kept(told, state="images_ready")).get(PAGE).text
        assert html.count('class="shared"') == html.count('class="own"') == 4
        assert Seen(html).all("button", data_copy=learner.digest), "each platform's digest can be copied"

    @pytest.mark.parametrize(
        "odd",
        [
            None,
            7,
            [7],
            [{"digest": 7, "bytes": 1}],
            [{"digest": "a", "bytes": -1}],
            [{"digest": "a", "bytes": float("nan")}],
        ],
    )
    def test_odd_sizes_are_none(self, odd):
        assert layers({"images": {"learner": {"platforms": {"linux/amd64": {"layer_sizes": odd}}}}}) == ()


def _credential(host):
    return {"host": host, "username": "robot", "password": "secret-of-the-robot"}


class TestTheManagersProjects:
    """Through the whole application, guard and database included."""

    @pytest.fixture
    def world(self, tmp_path):
        world = World(tmp_path / "projects.sqlite3")
        yield world
        world.close()

    @pytest.fixture
    def web(self, world):
        return Web(
            create_app(world.manager, open_access(), pages=ObserverPages(ManagerProjects(world.manager)).routes())
        )

    def test_from_accepted_to_the_end(self, world, web):
        project = world.submit()
        page = f"/projects/{project.id}"
        assert 'data-state="accepted"' in web.get(page).text
        world.steps(4)
        assert 'data-state="building"' in web.get(f"{page}/live").text
        world.post(project, tagging())
        assert "disabled" in web.get(f"{page}/live").text
        assert web.post(f"{page}/cancel", headers={"Origin": web.url}).status_code == 409
        world.succeed(project)
        html = web.get(f"{page}/live").text
        assert 'data-state="images_ready"' in html
        assert "data-still" not in html
        world.settle()
        assert "data-still" in web.get(f"{page}/live").text
        assert "Content-Security-Policy" in web.get(page).headers

    def test_cancel(self, world, web):
        project = world.submit()
        assert web.post(f"/projects/{project.id}/cancel", headers={"Origin": "https://evil.example"}).status_code == 403
        assert world.now(project).state.value == "accepted"
        assert web.post(f"/projects/{project.id}/cancel", headers={"Origin": web.url}).status_code == 303
        assert world.now(project).state.value == "cancelled"
        assert "Cancelled." in web.get(f"/projects/{project.id}").text

    def test_build_again_asks_for_the_very_same(self, world, web):
        names = CredentialNames(
            git=NamedCredentials.parse(json.dumps({"ours": _credential("git.example.com")}), "FLOPS_GIT_CREDENTIALS"),
            registry=NamedCredentials.parse(
                json.dumps({"store": _credential("127.0.0.1:5073")}), "FLOPS_REGISTRY_CREDENTIALS"
            ),
        )
        world.restart(credentials=names)
        app = create_app(world.manager, open_access(), pages=ObserverPages(ManagerProjects(world.manager)).routes())
        web = Web(app)
        more = {
            "ml_repo_ref": "release/1",
            "ml_repo_subdir": "models/a",
            "python": "3.11",
            "policy": "strict",
            "compression": "zstd",
            "groups": ["train"],
            "verbose": True,
            "git_credential": "ours",
            "registry_credential": "store",
            "supported_platforms": ["linux/arm64"],
        }
        for asked in ({}, more):
            project = world.submit(**asked)
            world.steps(4)
            world.post(project, failed())
            answer = web.post(f"/projects/{project.id}/again", headers={"Origin": web.url})
            assert answer.status_code == 303, answer.text
            new = world.manager.project(answer.headers["location"].rpartition("/")[2])
            old = world.now(project)
            assert new.id != old.id
            assert new.force
            for name in ("sla", "recipe", "platforms", "ref", "subdir", "repository"):
                assert getattr(new, name) == getattr(old, name), name
            assert not [one for one in new.warnings if one not in old.warnings]

    def test_what_can_no_longer_be_asked_for_is_told(self, world, web):
        project = world.submit()
        world.manager.cancel(project.id)
        world.restart(projects=0)
        app = create_app(world.manager, open_access(), pages=ObserverPages(ManagerProjects(world.manager)).routes())
        answer = Web(app).post(f"/projects/{project.id}/again", headers={"Origin": web.url})
        assert answer.status_code == 429
        assert "projects have not ended" in answer.text
