"""Names of strangers in an answer, and the limits that Discord sets to it."""

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.answering.hits import Hit
from bot.answering.wording import answer_text, explain, link_rows, plain, turning_row
from bot.archive.port import Match, Picture, PictureKey
from bot.search import Verdict
from inference.errors import UnsupportedError
from tests.bot.discord.limits import problem_of

HOSTILE = [
    "@everyone",
    "<@123>",
    "<@&1>",
    "<#10>",
    "<t:0:R>",
    "<:x:1>",
    "**bold** __u__ ~~s~~ `c` ||spoiler||",
    "[free nitro](https://evil.example)",
    "https://evil.example/x",
    "discord.gg/evil",
    "# heading\n> quote\n- list",
    "\u202etxt.exe",
    "مرحبا بالعالم",
    "z" + "\u0351" * 200,
    "\u200b\u2060",
    "x" * 5000,
    "_" * 5000,
    "👨‍👩‍👧 家族",
    "",
]


def hit(author: str, number: int = 1, *, spoiler: bool = False) -> Hit:
    picture = Picture(
        key=PictureKey(message_id=str(1 << 62 | number), attachment_id=str(1 << 62)),
        guild_id=str(1 << 62),
        channel_id=str(1 << 62),
        user_id="1",
        message_link="javascript:alert(1)",
        image_url="",
        posted_at=datetime(2024, 5, 1, tzinfo=UTC),
        width=1,
        height=1,
        file_size=1,
        content_hash="",
        author=author,
        spoiler=spoiler,
    )
    return Hit(match=Match(picture=picture, score=0.987654), now=None)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_and_nothing_else(name: str) -> None:
    shown = plain(name)
    assert "\n" not in shown
    assert len(shown) <= 70
    assert "://" not in shown
    for mention in ("@everyone", "<@", "<#", "<t:", "<:", "gg/evil"):
        assert mention not in shown
    # Every sign that means something to Discord is escaped.
    assert not re.search(r"(?<!\\)[*_~`|]", shown.replace("\\\\", ""))
    assert "\u202e" not in shown
    assert shown.count("\u0351") <= 2


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Alice", "Alice"),
        ("Zoë 地图 🗺", "Zoë 地图 🗺"),
        ("👨‍👩‍👧", "👨‍👩‍👧"),
        ("हिन्दी", "हिन्दी"),
        ("مرحبا", "\u2068مرحبا\u2069"),  # noqa: RUF001
        ("\u200b", "somebody"),
    ],
)
def test_a_name_in_any_script_stays_what_it_is(name: str, shown: str) -> None:
    assert plain(name) == shown


@given(st.text(max_size=200))
def test_no_name_breaks_out_of_its_place(name: str) -> None:
    shown = plain(name)
    assert shown
    assert len(shown) <= 70
    assert len(shown.splitlines()) == 1
    assert not re.search(r"<[@#:t]|@everyone|@here|://", shown)


@given(
    authors=st.lists(st.text(max_size=60) | st.sampled_from(HOSTILE), min_size=1, max_size=10),
    words=st.none() | st.text(max_size=200),
    page=st.integers(0, 19),
    shared_by=st.none() | st.sampled_from(HOSTILE),
)
def test_an_answer_always_fits(
    authors: list[str], words: str | None, page: int, shared_by: str | None
) -> None:
    hits = [hit(author, number, spoiler=True) for number, author in enumerate(authors)]
    verdicts = [Verdict.NOTHING if number % 2 else None for number in range(len(hits))]
    first = 1 + page * len(hits)
    text = answer_text(hits, verdicts, page=page, first=first, words=words, shared_by=shared_by)
    rows = [
        *link_rows(hits, first),
        *turning_row("x" * 16, page, more=True, shareable=True, shared=False),
    ]
    payload = {"content": text, "components": [row.to_component_dict() for row in rows]}
    assert problem_of(payload, {}) is None
    assert len(rows) <= 4, "there is room for the select"


def test_all_hits_of_a_usual_answer_are_said() -> None:
    hits = [hit("y" * 32, number) for number in range(10)]
    text = answer_text(hits, [Verdict.SAME] * 10, page=0, first=1, words=None, shared_by=None)
    assert "**10.** same map, similarity 0.99 by yyy" in text


def test_a_button_leads_into_discord_whatever_was_imported() -> None:
    (row,) = link_rows([hit("a")], 1)
    button = row.to_component_dict()["components"][0]
    assert button["url"].startswith("https://discord.com/channels/")  # type: ignore[typeddict-item]


def test_scores_without_thresholds_claim_nothing() -> None:
    text = answer_text([hit("a")], [None], page=0, first=1, words=None, shared_by=None)
    assert text.startswith("**The most similar maps:**\n**1.** similarity 0.99 by a, ")
    assert "not measured" in text
    by_words = answer_text([hit("a")], [None], page=0, first=1, words="a dragon", shared_by=None)
    assert by_words.startswith("**The maps that fit “a dragon” best:**\n**1.** by a, ")
    assert "0.99" not in by_words


def test_a_model_without_text_is_explained() -> None:
    said = explain(UnsupportedError("The model has no text tower."), "42")
    assert (
        said == "The model of this bot reads no text. Ask with a picture instead. (Reference: `42`)"
    )
