import asyncio

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inference.admission import Admission
from inference.errors import OverloadedError, ShuttingDownError
from inference.lanes import Lane
from tests.inference.core.conftest import quiet

INTERACTIVE, BULK = Lane.INTERACTIVE, Lane.BULK


def test_the_last_slot_is_given_and_the_next_caller_is_told_when_to_return() -> None:
    admission = Admission(2, reserved=0)
    admission.try_enter(INTERACTIVE)
    admission.try_enter(BULK)

    with pytest.raises(OverloadedError, match="full: it is working on 2 items") as refused:
        admission.try_enter(INTERACTIVE)
    assert refused.value.retry_after_ms == 500  # nothing is known yet
    admission.leave(BULK)
    admission.try_enter(INTERACTIVE)
    assert admission.inside == 2


def test_several_slots_are_given_together_or_not_at_all() -> None:
    admission = Admission(4, reserved=1)
    admission.try_enter(BULK, 2)
    for lane in (BULK, INTERACTIVE):
        with pytest.raises(OverloadedError):
            admission.try_enter(lane, 3)
    with pytest.raises(OverloadedError):
        admission.try_enter(BULK, 2)
    admission.try_enter(INTERACTIVE, 2)
    assert admission.inside == 4


def test_bulk_never_takes_the_reserved_slots_and_interactive_may_take_all() -> None:
    admission = Admission(3, reserved=2)
    admission.try_enter(BULK)
    with pytest.raises(OverloadedError):
        admission.try_enter(BULK)
    admission.try_enter(INTERACTIVE)
    admission.try_enter(INTERACTIVE)
    admission.leave(BULK)

    admission.try_enter(INTERACTIVE)


@pytest.mark.parametrize(
    ("between_s", "inside", "advised_ms"), [(0.1, 8, 400), (1e-6, 8, 20), (60.0, 8, 10_000)]
)
def test_the_advice_is_half_of_the_present_work_within_bounds(
    between_s: float, inside: int, advised_ms: int
) -> None:
    now = 0.0
    admission = Admission(100, reserved=0, clock=lambda: now)
    for _ in range(inside + 65):  # more than are remembered
        admission.try_enter(INTERACTIVE)
    for _ in range(65):
        admission.leave(INTERACTIVE)
        now += between_s

    assert admission.retry_after_ms() == pytest.approx(advised_ms, abs=1)


async def test_who_waits_is_let_in_in_order_interactive_first() -> None:
    admission = Admission(1, reserved=0)
    admission.try_enter(BULK)
    entered: list[str] = []

    async def pass_through(name: str, lane: Lane) -> None:
        await admission.enter(lane)
        entered.append(name)
        await quiet()
        admission.leave(lane)

    lanes = {"b0": BULK, "b1": BULK, "i0": INTERACTIVE, "i1": INTERACTIVE}
    async with asyncio.TaskGroup() as group:
        for name, lane in lanes.items():
            group.create_task(pass_through(name, lane))
        await quiet()
        assert entered == []
        admission.leave(BULK)

    assert entered == ["i0", "i1", "b0", "b1"]
    assert admission.inside == 0


async def test_bulk_gets_its_share_of_the_slots_while_interactive_never_stops_waiting() -> None:
    admission = Admission(4, reserved=2, bulk_share=0.25)
    for _ in range(4):
        admission.try_enter(INTERACTIVE)
    entered: list[Lane] = []

    async def enter(lane: Lane) -> None:
        await admission.enter(lane)
        entered.append(lane)

    tasks = [asyncio.create_task(enter(lane)) for lane in [BULK] * 4 + [INTERACTIVE] * 40]
    await quiet()
    for number in range(16):
        # Whoever has been in longest leaves.
        admission.leave(entered[number - 4] if number >= 4 else INTERACTIVE)
        await quiet()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    assert entered.count(BULK) == 4
    assert entered[:4].count(BULK) == 1


async def test_a_freed_slot_belongs_to_who_waits_and_not_to_who_comes_next() -> None:
    admission = Admission(1, reserved=0)
    admission.try_enter(BULK)
    waiting = asyncio.create_task(admission.enter(BULK))
    await quiet()
    admission.leave(BULK)

    with pytest.raises(OverloadedError):
        admission.try_enter(INTERACTIVE)
    await waiting


async def test_a_slot_that_is_granted_to_a_caller_in_the_instant_it_leaves_goes_on() -> None:
    admission = Admission(1, reserved=0)
    admission.try_enter(BULK)
    gone, next_one = (asyncio.create_task(admission.enter(BULK)) for _ in range(2))
    await quiet()
    admission.leave(BULK)
    gone.cancel()
    await quiet()

    assert gone.cancelled()
    assert next_one.done()
    assert admission.inside == 1


@pytest.mark.parametrize("how", ["leave", "close"])
async def test_a_caller_that_has_just_been_cancelled_is_passed_over(how: str) -> None:
    admission = Admission(1, reserved=0)
    admission.try_enter(BULK)
    gone = asyncio.create_task(admission.enter(BULK))
    await quiet()
    gone.cancel()  # it does not run before the slot is given back
    admission.leave(BULK) if how == "leave" else admission.close()
    await quiet()

    assert gone.cancelled()
    assert admission.inside == (0 if how == "leave" else 1)


@pytest.mark.parametrize("how", ["refused", "waiting"])
async def test_a_crowd_has_passed_when_nobody_is_inside(how: str) -> None:
    admission = Admission(2, reserved=0)
    admission.try_enter(INTERACTIVE)
    admission.leave(INTERACTIVE)
    passed = asyncio.create_task(admission.many_passed())
    await quiet()
    assert not passed.done(), "one item is no crowd"
    admission.try_enter(INTERACTIVE, 2)
    inside = 2
    if how == "refused":
        with pytest.raises(OverloadedError):
            admission.try_enter(BULK)
    else:
        waiting = asyncio.create_task(admission.enter(BULK))
        await quiet()
        admission.leave(INTERACTIVE)
        await waiting
        admission.leave(BULK)
        inside = 1
    for _ in range(inside):
        await quiet()
        assert not passed.done()
        admission.leave(INTERACTIVE)
    await passed

    again = asyncio.create_task(admission.many_passed())
    await quiet()
    assert not again.done(), "that was another crowd"
    for count in (999, 1):
        assert not again.done()
        for _ in range(count):
            admission.try_enter(INTERACTIVE)
            admission.leave(INTERACTIVE)
        await quiet()
    assert again.done(), "a thousand one by one are many, too"


async def test_a_few_large_items_are_many() -> None:
    admission = Admission(2, reserved=0)
    passed = asyncio.create_task(admission.many_passed())
    for _ in range(16):
        await quiet()
        assert not passed.done()
        admission.try_enter(INTERACTIVE)
        admission.leave(INTERACTIVE, 16 * 1024 * 1024)
    await passed

    again = asyncio.create_task(admission.many_passed())
    admission.try_enter(INTERACTIVE)
    admission.leave(INTERACTIVE, 16 * 1024 * 1024)
    await quiet()
    assert not again.done(), "those before have been counted"
    again.cancel()


async def test_a_crowd_that_is_still_inside_at_the_thousandth_has_yet_to_pass() -> None:
    admission = Admission(2, reserved=0)
    for _ in range(998):
        admission.try_enter(INTERACTIVE)
        admission.leave(INTERACTIVE)
    admission.try_enter(INTERACTIVE, 2)
    with pytest.raises(OverloadedError):
        admission.try_enter(BULK)
    admission.leave(INTERACTIVE)
    admission.try_enter(INTERACTIVE)
    admission.leave(INTERACTIVE)
    await admission.many_passed()
    admission.leave(INTERACTIVE)
    await asyncio.wait_for(admission.many_passed(), 5)


async def test_closing_refuses_all_who_wait_or_come_and_waits_for_all_inside() -> None:
    admission = Admission(1, reserved=0)
    await admission.empty()
    admission.try_enter(INTERACTIVE)
    waiting = [asyncio.create_task(admission.enter(lane)) for lane in Lane]
    empty = asyncio.create_task(admission.empty())
    await quiet()
    admission.close()
    await quiet()

    assert all(isinstance(caller.exception(), ShuttingDownError) for caller in waiting)
    with pytest.raises(ShuttingDownError, match="send the request to another one"):
        admission.try_enter(INTERACTIVE)
    with pytest.raises(ShuttingDownError):
        await admission.enter(BULK)
    assert not empty.done()
    admission.leave(INTERACTIVE)
    await empty


@pytest.mark.parametrize(("slots", "reserved"), [(1, 1), (4, 5), (4, -1), (0, 0)])
def test_slots_that_leave_none_for_bulk_are_refused(slots: int, reserved: int) -> None:
    with pytest.raises(ValueError, match="leave none for bulk"):
        Admission(slots, reserved=reserved)


OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(["enter", "try"]), st.sampled_from(list(Lane))),
    st.tuples(st.sampled_from(["leave", "cancel"]), st.integers(0, 30)),
    st.tuples(st.just("quiet"), st.none()),
)


@settings(max_examples=200, deadline=None)
@example(
    slots=2,
    reserved=0,
    operations=[
        *[("enter", INTERACTIVE)] * 3,
        ("quiet", None),
        ("enter", INTERACTIVE),
        *[("leave", 0)] * 2,
    ],
)
@given(
    slots=st.integers(1, 5),
    reserved=st.integers(0, 4),
    operations=st.lists(OPERATIONS, max_size=60),
)
def test_no_slot_is_lost_or_given_twice_whatever_happens(
    slots: int, reserved: int, operations: list[tuple[str, object]]
) -> None:
    asyncio.run(_play(slots, min(reserved, slots - 1), operations))


async def _play(slots: int, reserved: int, operations: list[tuple[str, object]]) -> None:
    admission = Admission(slots, reserved=reserved)
    inside: list[Lane] = []
    order: dict[Lane, list[int]] = {lane: [] for lane in Lane}
    tasks: list[asyncio.Task[None]] = []

    async def enter(lane: Lane, number: int) -> None:
        await admission.enter(lane)
        inside.append(lane)
        order[lane].append(number)

    for name, value in operations:
        if name == "enter":
            assert isinstance(value, Lane)
            tasks.append(asyncio.create_task(enter(value, len(tasks))))
            # It asks now: before that it has no place in the order.
            await asyncio.sleep(0)
        elif name == "try":
            assert isinstance(value, Lane)
            try:
                admission.try_enter(value)
            except OverloadedError:
                # Slots that were granted count, even if their takers do not know it yet.
                assert admission.inside == slots or value is BULK
            else:
                inside.append(value)
        elif name == "leave" and inside:
            assert isinstance(value, int)
            admission.leave(inside.pop(value % len(inside)))
        elif name == "cancel" and tasks:
            assert isinstance(value, int)
            tasks[value % len(tasks)].cancel()
        else:
            await quiet()
            assert admission.inside == len(inside) <= slots
            waiting = [task for task in tasks if not task.done()]
            # Someone waits only where there is no room for bulk at least.
            assert not waiting or len(inside) == slots or inside.count(BULK) == slots - reserved
        assert inside.count(BULK) <= slots - reserved

    await quiet()
    while inside:
        admission.leave(inside.pop())
        await quiet()
    assert all(task.done() for task in tasks)
    assert admission.inside == 0
    assert all(numbers == sorted(numbers) for numbers in order.values())
