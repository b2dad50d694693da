"""What admins read: how far, how fast, how long still."""

import pytest

from bot.admin import wording as admin_wording
from bot.admin.preferences import Chosen
from bot.ingest.backfill import Progress, _left
from bot.ingest.history import Place
from bot.ingest.jobs import Job, State


def job(channel: int, *, share: float, messages: int, state: State = State.WAITING) -> Job:
    span = 1_000_000
    return Job(
        place=Place(guild_id="1", channel_id=str(channel), name="maps"),
        state=state,
        threads_listed=True,
        newest_id=channel + span,
        before_id=channel + round(span * (1 - share)),
        messages=messages,
        pictures=messages // 2,
        reason="Why not." if state is State.FAILED else "",
    )


def progress(*jobs: Job, paused: bool = False, speed: float | None = None) -> Progress:
    return Progress(
        paused=paused,
        jobs=list(jobs),
        waiting=0,
        set_aside=0,
        messages_per_s=speed,
        left_s=_left(list(jobs)) / speed if speed else None,
    )


def test_what_is_left_is_what_the_past_was_like() -> None:
    assert _left([job(1, share=0.25, messages=100)]) == pytest.approx(300)
    # A channel that has not begun is taken for one like the others.
    assert _left([job(1, share=0.5, messages=100), job(2, share=0, messages=0)]) == pytest.approx(
        100 + 200
    )
    assert _left([job(1, share=1, messages=50, state=State.DONE)]) == pytest.approx(0)
    assert _left([job(1, share=0, messages=0)]) == 0


def test_rate_and_time_left_are_told_while_it_runs() -> None:
    text = admin_wording.progress(progress(job(7, share=0.5, messages=3000), speed=10))
    assert text.startswith("**Indexing** <#7>\n0 of 1 channels and threads · 3,000 messages read")
    assert text.endswith("10 messages/s · about 5 minutes left")
    paused = admin_wording.progress(
        progress(job(7, share=0.5, messages=3000), paused=True, speed=10)
    )
    assert "messages/s" not in paused


def test_channels_that_failed_are_named_and_many_are_cut_short() -> None:
    failed = [job(number, share=0, messages=0, state=State.FAILED) for number in range(1, 30)]
    text = admin_wording.progress(progress(*failed))
    assert "<#1> was left out: Why not." in text
    assert text.endswith("and 21 more")
    assert len(text) < 2000


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "a minute"), (200, "3 minutes"), (5400, "1.5 hours")]
)
def test_durations_are_rough(seconds: float, words: str) -> None:
    assert admin_wording.duration(seconds) == words


def test_the_choices_of_a_server_with_many_channels_fit_into_a_message() -> None:
    many = frozenset(str(10**18 + number) for number in range(500))
    text = admin_wording.chosen(Chosen(watch_all=False, watched=many, reposts=many))
    assert "and 492 more" in text
    assert len(text) < 2000
