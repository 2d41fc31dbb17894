"""Accounts: no window ever holds more than its limit, whoever asks when; kills and power cuts forget nothing."""

import json
import multiprocessing
import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.access import Budget, Limits, Price
from steelyard.disk import Disk
from steelyard.errors import Exhausted, Malformed, Refused, Unavailable
from steelyard.serve.accounts import MAX_TOKENS, MAX_WAITING, Accounts
from steelyard.serve.accounts_table import (
    MAX_RECORDS,
    MAX_WORKERS,
    SPAN_S,
    TICKETS,
    Table,
    boot_id,
    end_of_month,
    month_of,
    usage_in,
)
from steelyard.serve.auth import Caller
from steelyard.serve.limits import INSTALLATION, KEY, TEAM, Allowance, Scope, allowance_of, installation
from steelyard.serve.prices import Prices

NOON = 1_795_348_800  # 2026-11-22T12:00:00Z
DAY = 86_400
PRICES = Prices([Price.parse("*", {"prompt": 1, "completion": 10})])


class Clock:
    def __init__(self, now=NOON):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_(tmp_path, clock):
    """Opens a worker's accounts; all are closed in the end."""
    opened = []

    def open_accounts(boot="one", prices=PRICES, **options):
        accounts = Accounts(tmp_path / "accounts", prices, clock=clock, boot=boot, **options)
        opened.append(accounts)
        if accounts.replay_from is not None:
            accounts.replay([])
        return accounts

    yield open_accounts
    for accounts in opened:
        if accounts in opened:
            accounts.close()


NONE = Limits()


def caller(key=NONE, team=None, everyone=None, name="app"):
    scopes = [Scope(KEY, name, key)]
    if team is not None:
        scopes.append(Scope(TEAM, "claims", team))
    if everyone is not None:
        scopes.append(installation(everyone))
    return Caller(name, limits=allowance_of(*scopes))


def ask(accounts, who, tokens=1, alias="gpt-4o"):
    return accounts.take(who, alias, tokens)


def used(tmp_path, label, second):
    return usage_in(tmp_path / "accounts", [label], second)[label]


# The law.


@st.composite
def histories(draw):
    """Steps of time, and requests with a bound, what they use of it and for how long they run."""
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from([0, 0, 0, 0.25, 1, 7, 29.5, 30.25, 59, 59.75, 60, 60.5, 61, 50_000]),
                st.integers(0, 40),
                st.integers(0, 100),
                st.sampled_from([0, 1, 3, 61, 100]),
                st.integers(0, 1),
            ),
            max_size=60,
        )
    )


@settings(max_examples=70, deadline=None)
@given(
    steps=histories(),
    rpm=st.integers(0, 4),
    tpm=st.integers(0, 120),
    rpd=st.integers(0, 12),
    tpd=st.integers(0, 300),
)
def test_no_window_holds_more_than_its_limit(tmp_path_factory, steps, rpm, tpm, rpd, tpd):
    clock = Clock()
    folder = tmp_path_factory.mktemp("law")
    workers = [Accounts(folder, Prices(), clock=clock, boot="b") for _ in range(2)]
    workers[0].replay([])
    who = [caller(Limits(rpm, tpm, rpd, tpd)) for _ in workers]
    asked, ended, running = [], [], []
    for step, bound, share, seconds, worker in steps:
        clock.now += step
        for ticket, until, use in [item for item in running if item[1] <= clock.now]:
            ticket.settle(use, 0)
            ended.append((clock.now, use))
            running.remove((ticket, until, use))
        try:
            ticket = ask(workers[worker], who[worker], bound)
        except Exhausted:
            continue
        asked.append(clock.now)
        running.append((ticket, clock.now + seconds, bound * share // 100))
    for workers_accounts in workers:
        workers_accounts.close()
    for at in {*asked, *(second for second, _ in ended)}:
        assert sum(at - 60 <= second <= at for second in asked) <= rpm
        assert sum(second // DAY == at // DAY for second in asked) <= rpd
        assert sum(use for second, use in ended if at - 60 <= second <= at) <= tpm
        assert sum(use for second, use in ended if second // DAY == at // DAY) <= tpd


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20), st.integers(0, 20)), max_size=30),
    st.sampled_from(["day", "month"]),
)
def test_money_never_passes_its_budget_and_is_counted_to_the_nano(tmp_path_factory, requests, period):
    clock = Clock()
    accounts = Accounts(tmp_path_factory.mktemp("money"), PRICES, clock=clock, boot="b", is_alone=True)
    who = caller(Limits(budget=Budget(500_000, period)))
    spent = 0
    for more, prompt, completion in requests:
        bound = prompt + completion + more
        if spent + bound * 10_000 > 500_000:
            with pytest.raises(Exhausted, match="money"):
                ask(accounts, who, bound)
            continue
        ticket = ask(accounts, who, bound)
        ticket.settle(prompt, completion)
        spent += prompt * 1_000 + completion * 10_000
    accounts.flush()
    label = next(iter(who.limits.scopes)).label
    found = usage_in(accounts._path.parent, [label], NOON).get(label)
    accounts.close()
    assert spent == (0 if found is None else found[5])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-300, 300), st.integers(0, 9)), max_size=40))
def test_a_clock_that_jumps_never_gives_more_than_the_limit_between_jumps(tmp_path_factory, steps):
    clock = Clock()
    accounts = Accounts(tmp_path_factory.mktemp("jump"), Prices(), clock=clock, boot="b", is_alone=True)
    who = caller(Limits(rpm=5))
    let_in = 0  # since time last passed for real: jumping back and forth earns nothing
    for back, step, count in steps:
        if back:
            clock.now -= abs(step)
        for _ in range(count):
            try:
                ask(accounts, who).release()
                let_in += 1
            except Exhausted:
                pass
    accounts.close()
    assert let_in <= 5


# Limits one by one, at the limit and one past it.


@pytest.mark.parametrize(
    ("limits", "each", "fit", "limit", "retry_after_s"),
    [
        (Limits(rpm=3), 5, 3, "rpm", SPAN_S),
        (Limits(tpm=20), 5, 4, "tpm", SPAN_S),
        (Limits(rpd=3), 5, 3, "rpd", DAY // 2),
        (Limits(tpd=20), 5, 4, "tpd", DAY // 2),
        (Limits(budget=Budget(200_000, "day")), 5, 4, "budget", DAY // 2),
        (Limits(budget=Budget(200_000, "month")), 5, 4, "budget", 8 * DAY + DAY // 2),
        (Limits(rpm=0), 5, 0, "rpm", None),
    ],
)
def test_a_limit_is_met_exactly_and_says_when_to_come_again(
    open_, clock, limits, each, fit, limit, retry_after_s
):
    accounts = open_()
    who = caller(limits)
    for _ in range(fit):
        ask(accounts, who, each).settle(0, each)
    with pytest.raises(Exhausted) as caught:
        ask(accounts, who, each)
    assert (caught.value.limit, caught.value.retry_after_s) == (limit, retry_after_s)
    assert caught.value.rules == (f"limit/{limit}",)
    assert caught.value.code == ("insufficient_quota" if limit == "budget" else "rate_limit_exceeded")
    if retry_after_s is not None:
        clock.now += retry_after_s - 1
        with pytest.raises(Exhausted):
            ask(accounts, who, each)
        clock.now += 1
        ask(accounts, who, each)


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (Limits(tpm=10), "tpm"),
        (Limits(tpd=10), "tpd"),
        (Limits(budget=Budget(100_000, "month")), "budget"),
    ],
)
def test_a_request_larger_than_the_limit_itself_is_told_that_waiting_is_no_use(open_, limits, limit):
    accounts = open_()
    ask(accounts, caller(limits), 10)
    with pytest.raises(Exhausted, match="ever allows") as caught:
        ask(accounts, caller(limits, name="other"), 11)
    assert (caught.value.limit, caught.value.retry_after_s) == (limit, None)


def test_waiting_is_as_long_as_the_oldest_request_needs_to_leave_the_minute(open_, clock):
    accounts = open_()
    who = caller(Limits(rpm=2))
    ask(accounts, who)
    clock.now += 20
    ask(accounts, who)
    clock.now += 10
    with pytest.raises(Exhausted) as caught:
        ask(accounts, who)
    assert caught.value.retry_after_s == SPAN_S - 30


def test_a_minute_slides_no_burst_passes_around_its_border(open_, clock):
    accounts = open_()
    who = caller(Limits(rpm=10))
    clock.now = NOON + 59
    for _ in range(10):
        ask(accounts, who)
    clock.now = NOON + 60
    with pytest.raises(Exhausted):
        ask(accounts, who)


@pytest.mark.parametrize("begin", [0.0, 0.25, 0.9375])
def test_a_minute_is_sixty_seconds_whatever_the_fraction_it_begins_at(open_, clock, begin):
    accounts = open_()
    who = caller(Limits(rpm=1))
    clock.now = NOON + begin
    ask(accounts, who)
    clock.now = NOON + begin + 60
    with pytest.raises(Exhausted):
        ask(accounts, who)
    clock.now = NOON + begin + 61
    ask(accounts, who)


def test_of_key_team_and_installation_the_tightest_wins_and_a_refusal_counts_nowhere(open_, tmp_path):
    accounts = open_()
    one = caller(Limits(rpm=5), Limits(rpm=3), Limits(rpm=100), name="one")
    two = caller(Limits(rpm=5), Limits(rpm=3), Limits(rpm=100), name="two")
    ask(accounts, one)
    ask(accounts, two)
    ask(accounts, one)
    for who in (one, two):
        with pytest.raises(Exhausted, match="of the team claims") as caught:
            ask(accounts, who, 7)
        assert caught.value.limit == "rpm"
    assert used(tmp_path, "key:one", NOON)[0] == 2
    assert used(tmp_path, "key:two", NOON)[0] == 1
    assert used(tmp_path, "team:claims", NOON)[0] == 3
    assert used(tmp_path, "installation:all", NOON)[0] == 3


def test_what_is_held_counts_until_it_is_settled_and_then_what_was_used(open_, tmp_path):
    accounts = open_()
    who = caller(Limits(tpm=100))
    ticket = ask(accounts, who, 90)
    with pytest.raises(Exhausted):
        ask(accounts, who, 11)
    ticket.settle(10, 5)
    ticket.settle(1000, 1000)  # a second word counts for nothing
    ask(accounts, who, 85).release()
    accounts.flush()
    assert used(tmp_path, "key:app", NOON)[1] == 15


def test_an_answer_without_counts_is_charged_what_was_held(open_, tmp_path):
    accounts = open_()
    ask(accounts, caller(), 90).settle(None, None)
    ask(accounts, caller(), 90).settle(7, None)
    accounts.flush()
    assert used(tmp_path, "key:app", NOON)[1] == 97


@pytest.mark.parametrize("count", [-5, -(10**30), 10**30, MAX_TOKENS + 1])
def test_counts_an_engine_invents_neither_give_back_nor_break(open_, tmp_path, count):
    accounts = open_()
    ask(accounts, caller(), 90).settle(count, 3)
    accounts.flush()
    assert used(tmp_path, "key:app", NOON)[1] == (3 if count < 0 else MAX_TOKENS + 3)


def test_a_bound_beyond_all_bounds_is_the_largest_one(open_):
    accounts = open_()
    ask(accounts, caller(Limits(tpm=MAX_TOKENS)), 10**40).release()
    with pytest.raises(Exhausted):
        ask(accounts, caller(Limits(tpm=MAX_TOKENS - 1), name="b"), 10**40)


def test_a_budget_without_a_price_is_a_refusal_and_a_free_model_needs_no_money(open_):
    accounts = open_(prices=Prices([Price.parse("free", {"prompt": 0, "completion": 0})]))
    who = caller(Limits(budget=Budget(0, "month")))
    with pytest.raises(Refused, match="has no price"):
        ask(accounts, who, 5)
    ask(accounts, who, 5, alias="free").settle(5, 5)
    ask(accounts, caller(Limits(), name="unlimited"), 5).settle(5, 5)


def test_nobody_in_particular_is_counted_nowhere(open_):
    accounts = open_()
    ticket = accounts.take(Caller(), "gpt-4o", 10**9)
    ticket.settle(1, 1)
    assert ticket.headers() == ()


def test_headers_are_openais_for_the_level_with_the_least_room(open_, clock):
    accounts = open_()
    who = caller(Limits(rpm=10, tpm=1000), Limits(rpm=3, tpm=5000), Limits(rpm=100, rpd=1000))
    first = ask(accounts, who, 400)
    assert dict(first.headers()) == {
        b"x-ratelimit-limit-requests": b"3",
        b"x-ratelimit-remaining-requests": b"2",
        b"x-ratelimit-reset-requests": b"1m1s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"600",
        b"x-ratelimit-reset-tokens": b"1m1s",
    }
    ask(accounts, who, 1)
    ask(accounts, who, 1)
    with pytest.raises(Exhausted) as caught:
        ask(accounts, who, 1)
    assert dict(caught.value.fields)[b"x-ratelimit-remaining-requests"] == b"0"
    daily = ask(accounts, caller(Limits(rpd=50), name="daily"))
    assert dict(daily.headers()) == {
        b"x-ratelimit-limit-requests": b"50",
        b"x-ratelimit-remaining-requests": b"49",
        b"x-ratelimit-reset-requests": b"12h0m0s",
    }
    assert ask(accounts, caller(name="none")).headers() == ()


def test_a_caller_with_other_limits_keeps_what_it_has_used(open_):
    accounts = open_()
    ask(accounts, caller(Limits(rpm=5)))
    ask(accounts, caller(Limits(rpm=5)))
    with pytest.raises(Exhausted):
        ask(accounts, caller(Limits(rpm=2)))


def test_tickets_are_bounded_and_a_refused_one_counts_nowhere(open_, tmp_path):
    accounts = open_()
    who = caller(Limits(tpm=10 * TICKETS))
    tickets = [ask(accounts, who) for _ in range(TICKETS)]
    with pytest.raises(Unavailable, match="in work"):
        ask(accounts, who)
    assert used(tmp_path, "key:app", NOON)[0] == TICKETS
    tickets[0].settle(1, 0)
    ask(accounts, who)


def test_settled_tickets_do_not_pile_up_without_a_next_request(open_, tmp_path):
    accounts = open_()
    tickets = [ask(accounts, caller(), 5) for _ in range(MAX_WAITING)]
    for ticket in tickets:
        ticket.settle(2, 2)
    assert used(tmp_path, "key:app", NOON)[1] == 4 * MAX_WAITING


def test_records_are_bounded(open_):
    accounts = open_()
    with accounts._table.locked():
        for i in range(MAX_RECORDS):
            accounts._table.base_of(f"key:{i}")
    with pytest.raises(Unavailable, match="are counted"):
        ask(accounts, caller(name="one too many"))


def test_settling_late_counts_in_the_minute_the_answer_ended(open_, clock):
    accounts = open_()
    who = caller(Limits(tpm=100))
    slow = ask(accounts, who, 80)
    clock.now += 300
    with pytest.raises(Exhausted):
        ask(accounts, who, 30)
    slow.settle(80, 0)
    with pytest.raises(Exhausted) as caught:
        ask(accounts, who, 30)
    assert caught.value.retry_after_s == SPAN_S
    clock.now += SPAN_S
    ask(accounts, who, 100)


def test_tokens_settled_after_a_quiet_minute_count_now_not_when_they_were_asked(open_, clock):
    accounts = open_()
    who = caller(Limits(tpm=100))
    slow = ask(accounts, who, 80)
    clock.now += 300
    slow.settle(80, 0)
    with pytest.raises(Exhausted):
        ask(accounts, who, 30)


def test_a_refusal_by_the_team_holds_nothing_of_the_keys(open_):
    accounts = open_()
    limits = Limits(tpm=100, budget=Budget(1_000_000, "day"))
    ask(accounts, caller(limits, Limits(rpm=1)), 10)
    with pytest.raises(Exhausted, match="team claims"):
        ask(accounts, caller(limits, Limits(rpm=1)), 80)
    ask(accounts, caller(limits), 90)


# Clocks.


@pytest.mark.parametrize("back_s", [1, 60, 61, 62, 4000, 100 * DAY, 3000 * DAY])
def test_a_clock_going_back_gives_nothing_and_blocks_nobody_for_long(open_, clock, back_s):
    accounts = open_()
    who = caller(Limits(rpm=3, rpd=4))
    for _ in range(3):
        ask(accounts, who)
    clock.now -= back_s
    with pytest.raises(Exhausted):
        ask(accounts, who)
    clock.now += 2 * SPAN_S
    ask(accounts, who)
    with pytest.raises(Exhausted) as caught:
        ask(accounts, who)
    assert caught.value.limit == "rpd"


def test_a_clock_going_back_into_any_second_finds_the_whole_minute_counted(open_, clock):
    accounts = open_()
    for back_s in range(SPAN_S + 1, 2 * SPAN_S + 2):
        who = caller(Limits(rpm=3), name=f"app {back_s}")
        clock.now = NOON
        ask(accounts, who)
        ask(accounts, who)
        clock.now = NOON + 40
        ask(accounts, who)
        clock.now -= back_s
        with pytest.raises(Exhausted):
            ask(accounts, who)


@pytest.mark.parametrize(
    ("day", "year", "month"), [(0, 1970, 1), (19_782, 2024, 2), (20_453, 2025, 12), (20_454, 2026, 1)]
)
def test_months_are_the_calendars(day, year, month):
    assert datetime.fromtimestamp(day * DAY, UTC).timetuple()[:2] == (year, month)
    assert month_of(day) == year * 12 + month - 1
    ends = datetime.fromtimestamp(end_of_month(day), UTC)
    assert (ends.month, ends.day, ends.hour) == (month % 12 + 1, 1, 0)


# Several workers.


def test_workers_see_each_others_requests_at_once_and_settlements_after_a_flush(open_):
    one, two = open_(), open_()
    limits = Limits(rpm=3, tpm=100)
    ticket = ask(one, caller(limits), 90)
    with pytest.raises(Exhausted):
        ask(two, caller(limits), 11)
    ticket.settle(5, 5)
    one.flush()
    ask(two, caller(limits), 90)
    ask(one, caller(limits), 0)
    with pytest.raises(Exhausted):
        ask(two, caller(limits), 0)


def _hammer(folder, begin, results):
    accounts = Accounts(folder, PRICES, clock=Clock(), boot="one")
    who = caller(Limits(rpm=20_000, tpm=10**6, budget=Budget(10**15, "month")), Limits(rpd=15_000))
    begin.wait()
    taken = 0
    for i in range(8000):
        try:
            ask(accounts, who, 7).settle(i % 3, i % 4)
            taken += 1
        except Exhausted:
            break
    accounts.close()
    results.put((taken, sum(i % 3 + i % 4 for i in range(taken))))


def test_counts_stay_exact_with_several_processes_at_once(open_, tmp_path):
    open_()
    context = multiprocessing.get_context("fork")
    results, begin = context.Queue(), context.Event()
    workers = [
        context.Process(target=_hammer, args=(tmp_path / "accounts", begin, results)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    begin.set()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert sum(taken for taken, _ in found) == 15_000
    assert used(tmp_path, "key:app", NOON)[:2] == (15_000, sum(tokens for _, tokens in found))
    assert used(tmp_path, "team:claims", NOON)[0] == 15_000


def test_places_for_workers_are_bounded_and_given_back(tmp_path, clock):
    folder = tmp_path / "accounts"
    tables = [Table(folder, "b", lambda table: None, is_alone=False) for _ in range(MAX_WORKERS)]
    assert sorted(table.worker for table in tables) == list(range(MAX_WORKERS))
    with pytest.raises(Unavailable, match="count here already"):
        Table(folder, "b", lambda table: None, is_alone=False)
    tables.pop(5).close()
    tables.append(Table(folder, "b", lambda table: None, is_alone=False))
    assert tables[-1].worker == 5
    for table in tables:
        table.close()


def test_one_that_is_alone_stays_alone(tmp_path, clock):
    first = Accounts(tmp_path, PRICES, clock=clock, boot="b", is_alone=True)
    for alone in (True, False):
        with pytest.raises(Unavailable, match="another gateway"):
            Accounts(tmp_path, PRICES, clock=clock, boot="b", is_alone=alone)
    first.close()
    second = Accounts(tmp_path, PRICES, clock=clock, boot="b")
    with pytest.raises(Unavailable, match="another gateway"):
        Accounts(tmp_path, PRICES, clock=clock, boot="b", is_alone=True)
    second.close()


VICTIM = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from test_accounts import PRICES, Clock, Limits, ask, caller
    from steelyard.serve.accounts import Accounts
    accounts = Accounts(Path(sys.argv[1]), PRICES, clock=Clock(), boot="one")
    who = caller(Limits(tpm=1000))
    ask(accounts, who, 100).settle(10, 20)
    ask(accounts, who, 100).settle(1, 2)      # settled, not folded
    ask(accounts, who, 500)                   # in work
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_keeps_what_was_settled_and_lets_go_what_was_held(open_, tmp_path):
    survivor = open_()
    code = textwrap.dedent(VICTIM)
    argv = [sys.executable, "-c", code, str(tmp_path / "accounts"), os.path.dirname(__file__)]
    assert subprocess.run(argv, check=False, timeout=60).returncode == -signal.SIGKILL
    who = caller(Limits(tpm=1000))
    with pytest.raises(Exhausted):
        ask(survivor, who, 500)
    open_()  # the worker that takes the dead one's place
    assert used(tmp_path, "key:app", NOON)[:2] == (3, 33)
    ask(survivor, who, 1000 - 33)
    with pytest.raises(Exhausted):
        ask(survivor, who, 1)


def test_counts_outlive_the_gateway_within_one_boot(open_, tmp_path):
    first = open_()
    ask(first, caller(), 9).settle(4, 5)
    first.close()
    again = Accounts(tmp_path / "accounts", PRICES, clock=Clock(), boot="one")
    assert again.replay_from is None
    assert used(tmp_path, "key:app", NOON)[:2] == (1, 9)
    again.close()


# Power cuts.


def entry(second, prompt=0, completion=0, key="app", **more):
    at = datetime.fromtimestamp(second, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {
        "kind": "answer", "key": key, "alias": "gpt-4o", "at": at,
        "prompt_tokens": prompt, "completion_tokens": completion, **more,
    }  # fmt: skip


def cut(tmp_path):
    """The folder as the machine finds it when power is back: nobody has closed anything."""
    shutil.copytree(tmp_path / "accounts", tmp_path / "back" / "accounts")
    return tmp_path / "back"


def reopened(tmp_path, clock, boot="two"):
    return Accounts(tmp_path / "accounts", PRICES, clock=clock, boot=boot)


def test_after_a_power_cut_snapshot_and_ledger_give_the_same_counts(tmp_path, clock):
    first = reopened(tmp_path, clock, "one")
    assert first.replay_from == 0
    first.replay([])
    who = caller(Limits(rpm=100, budget=Budget(10**12, "month")), Limits())
    ask(first, who, 50).settle(10, 20)
    clock.now += 10
    ask(first, who, 50).settle(1, 2)
    first.snapshot(41)
    ask(first, who, 50).settle(3, 4)
    first.flush()
    before = used(tmp_path, "key:app", clock.now)
    back = cut(tmp_path)
    again = reopened(back, clock)
    assert again.replay_from == 41
    assert (
        again.replay([{"kind": "decision"}, entry(clock.now, 3, 4, team="claims"), {"kind": "resumed"}]) == 1
    )
    assert used(back, "key:app", clock.now) == before
    assert used(back, "team:claims", clock.now) == before
    again.close()
    first.close()


def test_settled_but_not_folded_is_in_the_snapshot(tmp_path, clock):
    first = reopened(tmp_path, clock, "one")
    first.replay([])
    ask(first, caller(), 50).settle(10, 20)
    first.snapshot(1)
    back = cut(tmp_path)
    again = reopened(back, clock)
    assert used(back, "key:app", clock.now)[1] == 30
    again.close()
    first.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40 * DAY), st.integers(0, 50)), max_size=20), st.integers(0, 40 * DAY)
)
def test_a_replay_counts_each_entry_in_the_windows_it_belongs_to(tmp_path_factory, ago, asked_ago):
    clock = Clock()
    folder = tmp_path_factory.mktemp("replay")
    accounts = Accounts(folder, PRICES, clock=clock, boot="b")
    clock.now = NOON - asked_ago
    ask(accounts, caller(), 5).settle(5, 0)  # a request before the replay must not make old entries new
    accounts.flush()
    clock.now = NOON
    ago = [*sorted(ago, reverse=True)]
    accounts.replay(entry(NOON - seconds, tokens) for seconds, tokens in ago)
    found = usage_in(folder, ["key:app"], NOON)["key:app"]
    accounts.close()
    items = [*ago, (asked_ago, 5)]
    today = [tokens for seconds, tokens in items if (NOON - seconds) // DAY == NOON // DAY]
    month = [
        tokens for seconds, tokens in items if month_of((NOON - seconds) // DAY) == month_of(NOON // DAY)
    ]
    minute = [tokens for seconds, tokens in items if seconds < 60]
    assert found[2:] == (len(today), sum(today), sum(today) * 1000, sum(month) * 1000)
    assert sum(minute) <= found[1] <= sum(tokens for s, tokens in items if s <= 2 * SPAN_S)


def test_a_refusal_in_the_ledger_counts_as_a_request(tmp_path, clock):
    accounts = reopened(tmp_path, clock)
    accounts.replay([{"kind": "refusal", "key": "app", "alias": "x", "at": "2026-11-22T12:00:00.000Z"}])
    assert used(tmp_path, "key:app", NOON)[:2] == (1, 0)
    accounts.close()


def test_a_replay_knows_the_teams_of_keys_that_entries_do_not_name(tmp_path, clock):
    accounts = reopened(tmp_path, clock)
    accounts.replay(
        [entry(NOON, 5), entry(NOON, 5, key="other"), entry(NOON, 5, key=None)], {"app": "claims"}
    )
    assert used(tmp_path, "team:claims", NOON)[:2] == (1, 5)
    assert used(tmp_path, "installation:all", NOON)[:2] == (3, 15)
    accounts.close()


def test_a_replay_that_was_cut_short_begins_anew(tmp_path, clock):
    first = reopened(tmp_path, clock)
    with pytest.raises(KeyError):
        first.replay([entry(NOON, 5, 0), {"kind": "answer", "key": "app"}])
    first.snapshot(99)  # nothing is written of half a count
    first.close()
    again = reopened(tmp_path, clock)
    assert again.replay_from == 0
    again.replay([entry(NOON, 5, 0)])
    assert used(tmp_path, "key:app", NOON)[:2] == (1, 5)
    again.close()


def test_without_a_boot_id_only_workers_alive_keep_the_counts(tmp_path, clock):
    first = reopened(tmp_path, clock, "")
    first.replay([])
    second = reopened(tmp_path, clock, "")
    assert second.replay_from is None
    first.close()
    second.close()
    third = reopened(tmp_path, clock, "")
    assert third.replay_from == 0
    third.close()


def test_a_damaged_snapshot_is_said_and_never_taken_for_zero(tmp_path, clock):
    first = reopened(tmp_path, clock, "one")
    first.replay([])
    ask(first, caller(), 5).settle(5, 0)
    first.snapshot(7)
    first.close()
    path = tmp_path / "accounts" / "snapshot"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for _ in range(2):  # nor at the second try
        with pytest.raises(Malformed, match="delete it"):
            reopened(tmp_path, clock)
    path.unlink()
    again = reopened(tmp_path, clock)
    assert again.replay_from == 0
    again.close()


def test_one_worker_a_second_writes_a_snapshot(open_, clock, tmp_path):
    class Counting(Disk):
        steps = 0

        def step(self, name):
            self.steps += name == "rename"

    disk = Counting()
    one, two = open_(disk=disk), open_(disk=disk)
    for _ in range(3):
        ask(one, caller())
        one.snapshot(1)
        two.snapshot(1)
    assert disk.steps == 1
    clock.now += 1
    two.snapshot(2)
    assert disk.steps == 2
    clock.now += 1
    two.snapshot(2)  # nothing is new
    assert disk.steps == 2


def test_a_full_disk_at_a_snapshot_is_said_and_the_counts_go_on(open_, clock):
    class Full(Disk):
        def write(self, fd, data):
            raise OSError(28, "No space left on device")

    accounts = open_(disk=Full())
    ask(accounts, caller())
    with pytest.raises(Unavailable, match="No space"):
        accounts.snapshot(1)
    ask(accounts, caller())


def test_usage_is_read_beside_the_workers_and_absent_before_the_first(tmp_path, open_, clock):
    assert usage_in(tmp_path / "accounts", ["key:app"], NOON) == {}
    accounts = open_()
    ask(accounts, caller(), 5).settle(2, 3)
    accounts.flush()
    found = usage_in(tmp_path / "accounts", ["key:app", "key:nobody"], NOON)
    assert found == {"key:app": (1, 5, 1, 5, 32_000, 32_000)}
    assert used(tmp_path, "key:app", NOON + SPAN_S) == (0, 0, 1, 5, 32_000, 32_000)
    assert used(tmp_path, "key:app", NOON + DAY) == (0, 0, 0, 0, 0, 32_000)
    assert used(tmp_path, "key:app", NOON + 30 * DAY) == (0, 0, 0, 0, 0, 0)
    (tmp_path / "accounts" / "counters").write_bytes(struct.pack("=q", 1))
    assert usage_in(tmp_path / "accounts", ["key:app"], NOON) == {}


def test_the_boot_is_named():
    assert boot_id() == boot_id()


def test_an_installation_without_limits_is_not_counted():
    assert allowance_of(installation(Limits())).scopes == ()
    scopes = allowance_of(Scope(KEY, "a", Limits()), installation(Limits(rpm=1))).scopes
    assert [scope.kind for scope in scopes] == [KEY, INSTALLATION]
    assert Allowance() != Allowance()
    json.dumps(scopes[1].limits.to_json())
