"""Reloading: sound changes come into force, broken ones do not, and the ledger is told once."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.digest import Digest
from steelyard.errors import Unavailable, WrongUsage
from steelyard.serve.reload import Announced, Reloader

A, B = Digest("oms-sha256", "aa" * 32), Digest("oms-sha256", "bb" * 32)
P, Q = Digest("sha256", "01" * 32), Digest("sha256", "02" * 32)
AT = "2026-11-23T05:00:00.000Z"


class Number:
    """A number in a file; in force is what was read last."""

    name = "number"

    def __init__(self, path):
        self.path = path
        self.in_force = int(path.read_text())
        self.failures = 0

    def paths(self):
        return [self.path]

    def load(self):
        if self.failures:
            self.failures -= 1
            raise Unavailable("the disk is away")
        try:
            value = int(self.path.read_text())
        except ValueError as error:
            raise WrongUsage("not a number") from error

        def into_force():
            self.in_force = value

        return into_force


@pytest.fixture
def number(tmp_path):
    path = tmp_path / "number"
    path.write_text("1")
    return Number(path)


async def test_a_sound_change_comes_into_force(number):
    reloader = Reloader([number])
    number.path.write_text("22")
    await reloader.look()
    assert (number.in_force, reloader.broken) == (22, {})


async def test_a_broken_file_leaves_the_old_one_in_force_and_says_so_until_mended(number):
    reloader = Reloader([number])
    number.path.write_text("nonsense")
    await reloader.look()
    assert (number.in_force, reloader.broken) == (1, {"number": "not sound"})
    await reloader.look()
    assert reloader.broken == {"number": "not sound"}
    number.path.write_text("3")
    await reloader.look()
    assert (number.in_force, reloader.broken) == (3, {})


async def test_what_could_not_be_read_is_tried_again_without_a_change(number):
    reloader = Reloader([number])
    number.failures = 1
    number.path.write_text("22")
    await reloader.look()
    assert (number.in_force, reloader.broken) == (1, {"number": "unreadable"})
    await reloader.look()
    assert (number.in_force, reloader.broken) == (22, {})


async def test_a_file_replaced_within_the_same_second_and_size_is_seen(number):
    reloader = Reloader([number])
    new = number.path.with_suffix(".new")
    new.write_text("7")
    new.replace(number.path)
    await reloader.look()
    assert number.in_force == 7


async def test_sighup_reads_all_anew_at_once(number):
    reloader = Reloader([number], interval_s=60)
    reloader.start()
    await asyncio.sleep(0)
    number.in_force = 0  # as if what is in force came from elsewhere
    reloader.ask()
    async with asyncio.timeout(5):
        while number.in_force != 1:  # noqa: ASYNC110 - what is watched has no event
            await asyncio.sleep(0.01)
    await reloader.close()


async def test_the_watcher_finds_a_change_by_itself(number):
    reloader = Reloader([number], interval_s=0.02)
    reloader.start()
    number.path.write_text("22")
    async with asyncio.timeout(5):
        while number.in_force != 22:  # noqa: ASYNC110 - what is watched has no event
            await asyncio.sleep(0.01)
    await reloader.close()


# What the ledger is told.


async def announced(folder, policy, aliases, entries):
    one = Announced(folder)

    async def enter(entry):
        entries.append(json.loads(entry))

    try:
        return await one.announce(policy, aliases, enter, AT)
    finally:
        one.close()


async def test_each_change_of_policy_and_alias_is_entered_once(tmp_path):
    entries = []
    await announced(tmp_path, P, {"gpt-4o": A}, entries)
    assert await announced(tmp_path, P, {"gpt-4o": A}, entries) == 0
    await announced(tmp_path, Q, {"gpt-4o": B, "mini": A}, entries)
    await announced(tmp_path, Q, {"mini": A}, entries)
    assert entries == [
        {"kind": "policy", "from": None, "to": str(P), "at": AT},
        {"kind": "alias", "alias": "gpt-4o", "from": None, "to": str(A), "at": AT},
        {"kind": "policy", "from": str(P), "to": str(Q), "at": AT},
        {"kind": "alias", "alias": "gpt-4o", "from": str(A), "to": str(B), "at": AT},
        {"kind": "alias", "alias": "mini", "from": None, "to": str(A), "at": AT},
        {"kind": "alias", "alias": "gpt-4o", "from": str(B), "to": None, "at": AT},
    ]


async def test_of_several_workers_one_enters(tmp_path):
    entries = []
    await asyncio.gather(*(announced(tmp_path, P, {"m": A}, entries) for _ in range(4)))
    assert [entry["kind"] for entry in entries] == ["policy", "alias"]


async def test_a_change_the_ledger_did_not_take_is_entered_the_next_time(tmp_path):
    one = Announced(tmp_path)

    async def refuse(_entry):
        raise Unavailable("disk full")

    with pytest.raises(Unavailable):
        await one.announce(P, {}, refuse, AT)
    one.close()
    entries = []
    assert await announced(tmp_path, P, {}, entries) == 1


@settings(max_examples=25)  # each step is on the disk
@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.sampled_from([A, B]), max_size=3), max_size=5))
def test_replaying_the_entries_gives_the_aliases_in_force(tmp_path_factory, steps):
    folder, entries = tmp_path_factory.mktemp("home"), []
    for aliases in steps:
        asyncio.run(announced(folder, P, aliases, entries))
    replayed = {}
    for entry in entries:
        if entry["kind"] == "alias":
            assert replayed.get(entry["alias"]) == entry["from"]
            replayed[entry["alias"]] = entry["to"]
    wanted = {name: str(digest) for name, digest in (steps[-1] if steps else {}).items()}
    assert {name: digest for name, digest in replayed.items() if digest is not None} == wanted
