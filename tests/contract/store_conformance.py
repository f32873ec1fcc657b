"""What every `Store` must do. A test module makes a subclass of `StoreConformance` and says how its store is opened."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvm.model.errors import Conflict, InvalidInput
from mvm.store.base import MAX_KEY_LENGTH, MAX_VALUE_BYTES, Change, RevisionConflict, Store, Write

PATIENCE = 10.0

json_values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=30),
    lambda inner: st.lists(inner | st.none(), max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = st.text("-/_=.abcXYZ019", min_size=1, max_size=40).filter(lambda key: key[0] != "." and key[-1] != ".")


async def take(changes: AsyncIterator[Change], count: int) -> list[Change]:
    """The next `count` changes of a watch."""
    async with asyncio.timeout(PATIENCE):
        return [await anext(changes) for _ in range(count)]


class StoreConformance(ABC):
    """The promises of `mvm.store.base.Store`, one test each."""

    @abstractmethod
    def open_store(self) -> Any:
        """An async context manager that gives an empty store and closes it."""

    @pytest.fixture
    async def store(self) -> AsyncIterator[Store]:
        async with self.open_store() as store:
            yield store

    async def test_what_was_put_is_there(self, store: Store) -> None:
        revision = await store.put("tenants/alice", {"name": "Alice", "tags": ["a", None, 1.5]})
        document = await store.get("tenants/alice")
        assert document is not None
        assert document.key == "tenants/alice"
        assert document.value == {"name": "Alice", "tags": ["a", None, 1.5]}
        assert document.revision == revision > 0

    async def test_an_unknown_key_has_no_document(self, store: Store) -> None:
        assert await store.get("tenants/nobody") is None

    async def test_revisions_grow_over_the_whole_store(self, store: Store) -> None:
        revisions = [
            await store.put("a", 1),
            await store.put("b", 1),
            await store.put("a", 2),
            *await store.put_many([Write("c", 1), Write("a", 3)]),
            await store.put("b", 2, durable=False),
        ]
        assert revisions == sorted(set(revisions))

    async def test_a_key_is_created_once(self, store: Store) -> None:
        await store.put("a", 1, expected=0)
        with pytest.raises(RevisionConflict) as conflict:
            await store.put("a", 2, expected=0)
        assert conflict.value.key == "a"
        assert (await store.list(""))[0].value == 1

    async def test_only_the_expected_revision_is_replaced(self, store: Store) -> None:
        first = await store.put("a", 1)
        second = await store.put("a", 2, expected=first)
        with pytest.raises(RevisionConflict, match=r"'a'") as conflict:
            await store.put("a", 3, expected=first)
        assert (conflict.value.expected, conflict.value.found) == (first, second)
        assert isinstance(conflict.value, Conflict)

    async def test_a_document_that_is_not_there_has_no_revision_to_expect(self, store: Store) -> None:
        with pytest.raises(RevisionConflict):
            await store.put("a", 1, expected=7)
        with pytest.raises(RevisionConflict):
            await store.delete("a", expected=7)
        assert await store.list("") == []

    async def test_a_deleted_document_is_gone_and_may_be_created_again(self, store: Store) -> None:
        revision = await store.put("a", 1)
        assert await store.delete("a", expected=revision) is True
        assert await store.get("a") is None
        assert await store.list("") == []
        assert await store.delete("a") is False
        assert await store.put("a", 2, expected=0) > revision

    async def test_of_many_writes_all_happen_or_none(self, store: Store) -> None:
        revision = await store.put("a", 1)
        with pytest.raises(RevisionConflict):
            await store.put_many([Write("b", 1), Write("a", None, expected=revision), Write("c", 1, expected=99)])
        assert [(d.key, d.value) for d in await store.list("")] == [("a", 1)]
        revisions = await store.put_many([Write("b", 1), Write("a", None, expected=revision), Write("gone", None)])
        assert [(d.key, d.value) for d in await store.list("")] == [("b", 1)]
        assert revision < revisions[0] < revisions[1]
        assert revisions[2] == 0

    async def test_many_writes_name_a_key_once(self, store: Store) -> None:
        with pytest.raises(InvalidInput, match="twice"):
            await store.put_many([Write("a", 1), Write("a", 2)])
        assert await store.put_many([]) == []

    async def test_a_list_is_what_begins_with_the_prefix_in_order(self, store: Store) -> None:
        for key in ("pools/b/x", "pools/a/y", "pools/a/x", "pools/ab", "poolsa", "tenants/a"):
            await store.put(key, key)
        assert [d.key for d in await store.list("pools/a")] == ["pools/a/x", "pools/a/y", "pools/ab"]
        assert [d.key for d in await store.list("pools/a/")] == ["pools/a/x", "pools/a/y"]
        assert len(await store.list("")) == 6
        assert await store.list("none/") == []

    @pytest.mark.parametrize("key", ["", "a b", "a\n", "ä", "a*", "a>", "a%", ".a", "a.", "k" * (MAX_KEY_LENGTH + 1)])
    async def test_keys_that_not_every_store_can_hold_are_refused(self, store: Store, key: str) -> None:
        for attempt in (store.put(key, 1), store.get(key), store.delete(key), store.put_many([Write(key, 1)])):
            with pytest.raises(InvalidInput):
                await attempt
        assert await store.list("") == []

    @pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "\ud800", {"a": b"bytes"}, object()])
    async def test_values_that_are_not_json_are_refused(self, store: Store, value: Any) -> None:
        with pytest.raises(InvalidInput):
            await store.put("a", value)
        assert await store.get("a") is None

    async def test_values_of_a_mebibyte_are_refused(self, store: Store) -> None:
        largest = "x" * (MAX_VALUE_BYTES - 2)
        await store.put("a", largest)
        with pytest.raises(InvalidInput, match="may have"):
            await store.put("a", largest + "x")
        document = await store.get("a")
        assert document is not None
        assert document.value == largest

    async def test_a_watch_begins_with_what_exists(self, store: Store) -> None:
        await store.put("x/a", 1)
        await store.put("x/b", 1)
        await store.put("x/a", 2)
        await store.put("y/a", 1)
        await store.put("x/gone", 1)
        await store.delete("x/gone")
        async with aclosing(store.watch("x/")) as changes:
            assert [(c.key, c.value) for c in await take(changes, 2)] == [("x/b", 1), ("x/a", 2)]
            await store.put("x/c", 3)
            assert [(c.key, c.value) for c in await take(changes, 1)] == [("x/c", 3)]

    async def test_a_watch_since_a_revision_tells_what_came_after_it(self, store: Store) -> None:
        await store.put("a", 1)
        since = await store.put("b", 1)
        await store.put("a", 2)
        await store.delete("b")
        async with aclosing(store.watch("", since=since)) as changes:
            assert [(c.key, c.value) for c in await take(changes, 2)] == [("a", 2), ("b", None)]

    async def test_a_watch_follows_writes_and_deletions_in_order(self, store: Store) -> None:
        async with aclosing(store.watch("")) as changes:
            following = asyncio.create_task(take(changes, 5))
            await store.put("a", 1)
            await store.put_many([Write("b", 1), Write("c", 1)])
            await store.put("a", 2, durable=False)
            await store.delete("b")
            told = await following
        # Two changes to one key made before the watch began reading may be told as one: none was here.
        assert [(c.key, c.value) for c in told][-4:] == [("b", 1), ("c", 1), ("a", 2), ("b", None)]
        assert [c.revision for c in told] == sorted({c.revision for c in told})

    async def test_nothing_is_lost_between_replay_and_following(self, store: Store) -> None:
        """Watches that begin at any moment of a stream of writes all see every key, once, in order."""
        total = 200

        async def write() -> None:
            for index in range(total):
                await store.put(f"k/{index:04}", index, durable=False)

        async def watch() -> list[Change]:
            async with aclosing(store.watch("k/")) as changes:
                return await take(changes, total)

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            watches = []
            for _ in range(8):
                watches.append(group.create_task(watch()))
                await store.get("k/0000")  # let some writes happen before the next one begins
        for task in watches:
            assert [change.value for change in task.result()] == list(range(total))

    async def test_a_slow_watcher_misses_no_key(self, store: Store) -> None:
        total = 3000  # more than a store keeps for a watcher
        async with aclosing(store.watch("k/")) as changes:
            await store.put("k/first", 0)
            assert [c.key for c in await take(changes, 1)] == ["k/first"]
            for start in range(0, total, 500):
                await store.put_many([Write(f"k/{n}", n) for n in range(start, start + 500)], durable=False)
            await store.delete("k/first")
            told = await take(changes, total + 1)
        assert {c.key: c.value for c in told} == {"k/first": None} | {f"k/{n}": n for n in range(total)}
        assert [c.revision for c in told] == sorted({c.revision for c in told})

    async def test_closing_ends_watches(self, store: Store) -> None:
        async with aclosing(store.watch("")) as changes:
            await store.put("a", 1)
            await take(changes, 1)
            waiting = asyncio.create_task(anext(changes, None))
            await store.close()
            async with asyncio.timeout(PATIENCE):
                assert await waiting is None

    async def test_concurrent_counting_loses_no_increment(self, store: Store) -> None:
        await store.put("n", 0)

        async def increment() -> None:
            while True:
                document = await store.get("n")
                assert document is not None
                assert isinstance(document.value, int)
                try:
                    await store.put("n", document.value + 1, expected=document.revision)
                except RevisionConflict:
                    continue
                return

        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(increment())
        document = await store.get("n")
        assert document is not None
        assert document.value == 20

    async def test_a_cancelled_caller_leaves_the_store_usable(self, store: Store) -> None:
        tasks = [asyncio.create_task(store.put("a", n)) for n in range(10)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await store.put("b", 1)
        assert (await store.get("b")) is not None

    async def test_a_value_that_was_read_is_the_readers_own(self, store: Store) -> None:
        await store.put("a", {"list": [1]})
        document = await store.get("a")
        assert document is not None
        document.value["list"].append(2)  # type: ignore[call-overload, index, union-attr]
        again = await store.get("a")
        assert again is not None
        assert again.value == {"list": [1]}

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.tuples(keys, st.none() | json_values), max_size=30))
    async def test_it_behaves_like_a_dictionary_whose_changes_are_numbered(
        self, operations: list[tuple[str, Any]]
    ) -> None:
        async with self.open_store() as store:
            model: dict[str, tuple[Any, int]] = {}
            for key, value in operations:
                if value is None:
                    assert await store.delete(key) is (key in model)
                    model.pop(key, None)
                else:
                    model[key] = (value, await store.put(key, value, expected=model.get(key, (None, 0))[1]))
            assert [(d.key, d.value, d.revision) for d in await store.list("")] == [
                (key, *model[key]) for key in sorted(model)
            ]
            async with aclosing(store.watch("")) as changes:
                replay = await take(changes, len(model))
            assert {c.key: (c.value, c.revision) for c in replay} == model


@asynccontextmanager
async def closing(store: Store) -> AsyncIterator[Store]:
    """Close a store at the end of a block."""
    try:
        yield store
    finally:
        await store.close()
