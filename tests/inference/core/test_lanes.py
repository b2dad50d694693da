import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.lanes import Lane, LaneQueue

INTERACTIVE, BULK = Lane.INTERACTIVE, Lane.BULK


def filled(interactive: int, bulk: int, *, share: float = 0.25) -> LaneQueue[str]:
    queue: LaneQueue[str] = LaneQueue(bulk_share=share)
    for number in range(interactive):
        queue.put(f"i{number}", INTERACTIVE)
    for number in range(bulk):
        queue.put(f"b{number}", BULK)
    return queue


def test_interactive_goes_first() -> None:
    queue = filled(0, 1)
    queue.put("i0", INTERACTIVE)

    assert queue.take(2) == ["i0", "b0"]


def test_each_lane_is_first_in_first_out() -> None:
    assert filled(2, 2).take(4) == ["i0", "i1", "b0", "b1"]


def test_bulk_gets_its_share_of_a_batch_while_both_wait() -> None:
    assert filled(20, 20).take(8) == ["i0", "i1", "i2", "i3", "i4", "i5", "b0", "b1"]


def test_bulk_gets_its_share_even_where_places_are_taken_one_at_a_time() -> None:
    queue = filled(20, 20)

    assert [queue.take(1) for _ in range(4)] == [["i0"], ["i1"], ["i2"], ["b0"]]


def test_a_lane_that_waits_alone_takes_every_place() -> None:
    assert filled(0, 9).take(8) == [f"b{number}" for number in range(8)]
    assert filled(9, 0).take(8) == [f"i{number}" for number in range(8)]


def test_what_bulk_was_owed_is_forgotten_once_none_waits() -> None:
    queue = filled(3, 1)
    queue.take(1)
    queue.take(1)
    assert queue.discard("b0", BULK)
    queue.take(1)
    for number in range(4):
        queue.put(f"j{number}", INTERACTIVE)
    queue.put("b1", BULK)

    assert queue.take(1) == ["j0"]


def test_items_that_are_put_back_come_first_again() -> None:
    queue = filled(2, 2)
    taken = queue.take(4)
    for item in reversed(taken):
        queue.put_back(item, INTERACTIVE if item.startswith("i") else BULK)

    assert queue.take(4) == taken


def test_an_item_that_left_is_not_taken() -> None:
    queue = filled(2, 0)

    assert queue.discard("i0", INTERACTIVE)
    assert not queue.discard("i0", INTERACTIVE)
    assert queue.take(2) == ["i1"]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_that_starves_a_lane_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        LaneQueue(bulk_share=share)


@given(
    share=st.floats(0.05, 0.95),
    takes=st.lists(st.integers(1, 16), min_size=1, max_size=60),
)
def test_neither_lane_starves_under_any_sequence_of_takes(share: float, takes: list[int]) -> None:
    queue = filled(2_000, 2_000, share=share)

    taken = [item for places in takes for item in queue.take(places)]

    places = sum(takes)
    bulk = sum(item.startswith("b") for item in taken)
    assert len(taken) == places
    assert bulk > places * share - 1
    assert bulk <= places * share + 1e-6


@given(
    operations=st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.sampled_from(list(Lane))),
            st.tuples(st.just("take"), st.integers(0, 6)),
            st.tuples(st.just("discard"), st.integers(0, 30)),
        ),
        max_size=60,
    )
)
def test_every_item_comes_out_once_and_in_the_order_of_its_lane(
    operations: list[tuple[str, Lane | int]],
) -> None:
    queue: LaneQueue[tuple[Lane, int]] = LaneQueue(bulk_share=0.25)
    inside: list[tuple[Lane, int]] = []
    out: list[tuple[Lane, int]] = []
    for number, (name, value) in enumerate(operations):
        if name == "put":
            assert isinstance(value, Lane)
            queue.put((value, number), value)
            inside.append((value, number))
        elif name == "take":
            assert isinstance(value, int)
            taken = queue.take(value)
            assert len(taken) == min(value, len(inside))
            out += taken
            inside = [item for item in inside if item not in taken]
        elif inside:
            assert isinstance(value, int)
            gone = inside.pop(value % len(inside))
            assert queue.discard(gone, gone[0])
        assert len(queue) == len(inside)
    for lane in Lane:
        numbers = [number for item_lane, number in out if item_lane is lane]
        assert numbers == sorted(set(numbers))
