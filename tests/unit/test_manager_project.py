"""The state machine and the judgement over a builder's standing: pure, so anything can be tried."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flops.errors import InternalError
from flops.orchestrators import BuilderPhase, Status
from flops.service import project as projects
from flops.service.decision import ATTEMPTS, TAGGING_SECONDS, Verdict, decide
from flops.service.project import BUILDER_MOVES, STATE_MOVES, BuilderState, Project, State

SECONDS = 100.0
ERROR = {"code": "STRUCTURE", "message": "model_manager.py is missing", "hint": "", "findings": []}


def a_project(**more):
    given = {
        "id": "0" * 24,
        "repository": "https://git.example.com/acme/digits",
        "recipe": "sha256:1",
        "platforms": ("linux/amd64",),
        "sla": {},
        "created": 0.0,
        "commit": "c" * 40,
    }
    return Project(**{**given, **more})


def deployed(**more):
    return projects.running(projects.deploying(projects.queued(a_project(**more)), 1.0))


statuses = st.builds(
    Status,
    phase=st.sampled_from(BuilderPhase),
    exit_code=st.sampled_from([None, 0, 1, 70, 137, 143]),
    reason=st.sampled_from(["", "ContainerCannotRun"]),
    evicted=st.booleans(),
    failed=st.booleans(),
    no_capacity=st.booleans(),
)
happenings = st.one_of(
    st.tuples(st.just("status"), statuses),
    st.tuples(st.just("nothing known"), st.none()),
    st.tuples(st.just("time"), st.floats(0, 60)),
    st.sampled_from(["tagging", "sign of life", "succeeded", "failed", "cancelled", "place", "removed", "proved"]).map(
        lambda name: (name, None)
    ),
)


class Life:
    """One project through whatever happens to it, by the rules of `ledger` and `steps`."""

    def __init__(self):
        self.project = projects.queued(a_project())
        self.now = 0.0
        self.ends = 0
        self.deployments = 0
        self.proof = False

    @property
    def lives(self):
        return self.project.builder in (BuilderState.DEPLOYING, BuilderState.RUNNING)

    def end(self, state, **more):
        self.project = projects.ended(self.project, state, self.now, **more)
        self.ends += 1

    def happen(self, name, value):
        project = self.project
        match name:
            case "time":
                self.now += value
            case "place" if project.builder is BuilderState.QUEUED and not project.state.ended:
                self.project = projects.deploying(project, self.now)
                self.deployments += 1
            case "sign of life" if self.lives and not project.state.ended:
                self.project = projects.running(project)
            case "tagging" if self.lives and not project.state.ended:
                self.project = projects.move(projects.running(project), tagging=True)
            case "proved":
                self.proof = True
            case "succeeded" if self.lives and not project.state.ended:
                self.end(State.IMAGES_READY, result={"images": {}})
            case "failed" if self.lives and not project.state.ended:
                self.end(State.FAILED, error=ERROR)
            case "cancelled" if not project.state.ended and not project.tagging:
                self.end(State.CANCELLED)
            case "removed" if project.builder is BuilderState.REMOVING:
                self.project = projects.removed(project)
            case "status" | "nothing known" if self.lives and not project.state.ended:
                self.judge(value)

    def judge(self, status):
        decision = decide(self.project, status, now=self.now, seconds=SECONDS, trouble="" if status else "no answer")
        match decision.verdict:
            case Verdict.RUNNING:
                self.project = projects.running(self.project)
            case Verdict.RETRY:
                assert not self.project.tagging
                assert self.project.attempt < ATTEMPTS
                self.project = projects.retried(self.project)
            case Verdict.PROVE:
                assert self.project.tagging
                if self.proof:
                    self.end(State.IMAGES_READY, result={"images": {}})
                else:
                    self.end(State.FAILED, error=decision.error.to_json())
            case Verdict.FAIL:
                assert not self.project.tagging
                self.end(State.FAILED, error=decision.error.to_json())


@given(st.lists(happenings, max_size=40))
def test_whatever_happens_there_is_one_outcome_and_nothing_is_left(story):
    life = Life()
    for name, value in story:
        before = life.project
        life.happen(name, value)
        if before.state.ended:
            assert life.project.state is before.state
            assert life.project.ended == before.ended
    # and then nothing more comes from outside: places get free, time passes, removals succeed
    for _ in range(10):
        life.happen("place", None)
        life.happen("time", SECONDS + TAGGING_SECONDS)
        life.happen("nothing known", None)
        life.happen("removed", None)
    assert life.project.state.ended
    assert life.ends == 1
    assert life.project.builder in (BuilderState.NONE, BuilderState.REMOVED)
    assert life.deployments <= ATTEMPTS
    assert (life.project.error is not None) == (life.project.state is State.FAILED)
    assert (life.project.result is not None) == (life.project.state is State.IMAGES_READY)


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(State, 2)))
def test_states_move_only_forward(before, after):
    project = a_project(state=before)
    if after in STATE_MOVES[before]:
        assert projects.move(project, state=after).state is after
    else:
        with pytest.raises(InternalError):
            projects.move(project, state=after)


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(BuilderState, 2)))
def test_builders_move_only_as_they_may(before, after):
    project = a_project(builder=before)
    if after in BUILDER_MOVES[before]:
        assert projects.move(project, builder=after).builder is after
    else:
        with pytest.raises(InternalError):
            projects.move(project, builder=after)


def test_a_lost_builder_gets_a_second_attempt_and_no_third():
    gone = Status(phase=BuilderPhase.ENDED, exit_code=1)
    first = deployed()
    assert decide(first, gone, now=2, seconds=SECONDS).verdict is Verdict.RETRY
    second = projects.running(projects.deploying(projects.removed(projects.retried(first)), 5.0))
    assert second.attempt == 2
    assert second.started == 1.0
    decision = decide(second, gone, now=6, seconds=SECONDS)
    assert (decision.verdict, decision.error.code) == (Verdict.FAIL, "BUILDER_LOST")
    assert "exit code 1" in decision.error.message


def test_a_second_builder_that_is_killed_for_memory_is_told_as_such():
    second = deployed(attempt=1)
    decision = decide(second, Status(phase=BuilderPhase.ENDED, exit_code=137), now=6, seconds=SECONDS)
    assert decision.error.code == "OOM_KILLED"


def test_one_that_never_ran_gets_no_second_attempt():
    project = projects.deploying(projects.queued(a_project()), 1.0)
    for no_capacity, code in ((False, "DEPLOY_FAILED"), (True, "NO_CAPACITY")):
        status = Status(phase=BuilderPhase.ENDED, failed=True, no_capacity=no_capacity, reason="ImagePullFailed")
        decision = decide(project, status, now=2, seconds=SECONDS)
        assert (decision.verdict, decision.error.code) == (Verdict.FAIL, code)
        assert "ImagePullFailed" in decision.error.message


def test_time_counts_from_the_first_deployment_and_tags_get_a_moment_more():
    project = deployed()
    alive = Status(phase=BuilderPhase.RUNNING)
    assert decide(project, alive, now=SECONDS, seconds=SECONDS).verdict is Verdict.STAY
    late = decide(project, alive, now=SECONDS + 1, seconds=SECONDS)
    assert (late.verdict, late.error.code) == (Verdict.FAIL, "DEADLINE_EXCEEDED")
    tagging = projects.move(project, tagging=True)
    assert decide(tagging, alive, now=SECONDS + 2, seconds=SECONDS).verdict is Verdict.STAY
    late = decide(tagging, alive, now=SECONDS + TAGGING_SECONDS + 1, seconds=SECONDS)
    assert (late.verdict, late.error.code) == (Verdict.PROVE, "DEADLINE_EXCEEDED")


def test_outcomes_are_shared_by_those_who_wanted_no_more_and_gave_the_same_credentials():
    both = ("linux/amd64", "linux/arm64")
    ready = a_project(state=State.IMAGES_READY, platforms=both)
    failed = a_project(state=State.FAILED, platforms=both)
    one = a_project()
    assert one.shares(ready)
    assert not one.shares(failed), "what failed may be the other platform's"
    assert a_project(platforms=both).shares(failed)
    assert not a_project(platforms=both).shares(a_project(state=State.IMAGES_READY))
    assert not a_project(force=True).shares(ready)
    assert not a_project(sla={"git_credential": "theirs"}).shares(ready)
    assert not one.shares(a_project(state=State.CANCELLED))


def test_directories_take_turns_and_share_nothing():
    assert a_project().key is not None
    assert a_project(commit=None).key is None
    assert a_project(subdir="a").key != a_project().key
    one = a_project(repository="/srv/digits", commit=None)
    assert one.key == a_project(repository="/srv/../srv/digits/", commit="c" * 40).key, "its commit is known at its end"
    assert one.key != a_project(repository="/srv/other", commit=None).key
    assert one.key != a_project(repository="/srv/digits", commit=None, subdir="a").key
    for state in (State.IMAGES_READY, State.FAILED):
        assert not one.shares(a_project(repository="/srv/digits", state=state))
