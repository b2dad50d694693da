"""What is kept of a question, for how long, and what a button says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.answering.questions import Action, Press, Question, Questions, is_ours, press_of
from bot.search import Look
from inference.client import Embedded, Timings


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def question(guild_id: int = 1, shown: bytes | None = None) -> Question:
    timings = Timings(decode_ms=0, queue_ms=0, inference_ms=0, batch_size=1)
    vector = np.zeros(4, np.float32)
    return Question(
        owner_id=1,
        guild_id=guild_id,
        channel_id=1,
        looks=(Look(Embedded(embedding=vector, model_id="toy", timings=timings)),),
        thresholds=None,
        shown=shown,
    )


def test_a_question_lives_as_long_as_it_is_used() -> None:
    clock = Clock()
    questions = Questions(life_s=10, clock=clock)
    asked = question()
    token = questions.keep(asked)
    for _ in range(3):
        clock.now_s += 9
        assert questions.recall(token) is asked
    clock.now_s += 11
    assert questions.recall(token) is None
    assert questions.recall(token) is None
    assert questions.recall("") is None


def test_no_more_is_kept_than_may_be_and_what_is_over_goes_first() -> None:
    clock = Clock()
    questions = Questions(most=3, life_s=10, clock=clock)
    tokens = [questions.keep(question()) for _ in range(3)]
    assert questions.recall(tokens[0])
    tokens.append(questions.keep(question()))
    kept = [questions.recall(token) is not None for token in tokens]
    assert kept == [True, False, True, True]
    clock.now_s += 11
    questions.keep(question())
    assert len(questions._kept) == 1


def test_a_guild_that_asks_a_lot_pushes_out_its_own_questions_only() -> None:
    questions = Questions(most=10, most_of_a_guild=4, clock=Clock())
    here = questions.keep(question(guild_id=1))
    there = [questions.keep(question(guild_id=2)) for _ in range(50)]
    assert questions.recall(here)
    assert [questions.recall(token) is not None for token in there] == [False] * 46 + [True] * 4


def test_large_pictures_push_out_the_longest_unused() -> None:
    questions = Questions(most_bytes=100, clock=Clock())
    tokens = [questions.keep(question(shown=bytes(40))) for _ in range(3)]
    assert questions.recall(tokens[0]) is None
    assert questions.recall(tokens[1])
    tokens.append(questions.keep(question(shown=bytes(1))))
    tokens.append(questions.keep(question(shown=bytes(40))))
    kept = [questions.recall(token) is not None for token in tokens]
    assert kept == [False, True, False, True, True]


def test_tokens_cannot_be_guessed() -> None:
    questions = Questions()
    tokens = {questions.keep(question()) for _ in range(100)}
    assert len(tokens) == 100
    assert min(map(len, tokens)) >= 16


@given(
    action=st.sampled_from(Action),
    token=st.from_regex(r"[A-Za-z0-9_-]{1,32}", fullmatch=True),
    page=st.integers(0, 999),
)
def test_what_a_button_says_is_understood_and_fits(action: Action, token: str, page: int) -> None:
    press = Press(action=action, token=token, page=page)
    assert press_of(str(press)) == press
    assert is_ours(str(press))
    assert len(str(press)) <= 100


@given(st.text(max_size=100))
def test_what_is_made_up_means_nothing(text: str) -> None:
    press = press_of(f"mapseek:find:{text}")
    assert press is None or str(press).startswith("mapseek:find:")


@pytest.mark.parametrize("text", ["", "other", "mapseek:index:pause", "xmapseek:find:page:a:0"])
def test_the_components_of_others_are_left_alone(text: str) -> None:
    assert not is_ours(text)
