"""OSV matching: the schema's own rules, checked against version lists and against `packaging`'s order."""

import json
import zipfile
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from packaging.version import Version

from steelyard.admit.advisories import Package, dumps, loads, normalised, packages_of, read_dump
from steelyard.errors import Malformed, WrongUsage

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def record(id_="PYSEC-2026-1", package="Some_Package", events=None, versions=(), **fields):
    return {
        "id": id_,
        "modified": "2026-11-20T10:00:00Z",
        "summary": "reads what it should not",
        "affected": [
            {
                "package": {"ecosystem": "PyPI", "name": package},
                "ranges": [{"type": "ECOSYSTEM", "events": events}] if events else [],
                "versions": list(versions),
            }
        ],
        **fields,
    }


def database(tmp_path, *records):
    folder = tmp_path / "dump"
    folder.mkdir(exist_ok=True)
    for index, entry in enumerate(records):
        (folder / f"{index}.json").write_text(json.dumps(entry))
    return read_dump(folder)


def found(tmp_path, version, **fields):
    matches = database(tmp_path, record(**fields)).match([Package("some-package", version, "environment")])
    return [match.is_certain for match in matches]


# The rows are the cases of the schema's section on evaluation.
@pytest.mark.parametrize(
    ("events", "affected", "unaffected"),
    [
        ([{"introduced": "0"}, {"fixed": "1.5"}], ["0.1", "1.4.9", "1.5rc1"], ["1.5", "2.0"]),
        ([{"introduced": "1.0"}, {"last_affected": "1.5"}], ["1.0", "1.5"], ["0.9", "1.5.1"]),
        (
            [{"introduced": "1.0"}, {"fixed": "1.2"}, {"introduced": "2.0"}, {"fixed": "2.0.3"}],
            ["1.1", "2.0", "2.0.2"],
            ["0.9", "1.2", "1.9", "2.0.3"],
        ),
        ([{"introduced": "3"}], ["3", "99"], ["2.9"]),
        ([{"fixed": "2.0"}, {"introduced": "0"}], ["1"], ["2.0"]),  # in any order
    ],
)
def test_ranges_are_evaluated_as_the_schema_says(tmp_path, events, affected, unaffected):
    for version in affected:
        assert found(tmp_path, version, events=events) == [True], version
    for version in unaffected:
        assert found(tmp_path, version, events=events) == [], version


def test_listed_versions_match_in_any_spelling(tmp_path):
    assert found(tmp_path, "1.0", versions=["1.0.0"]) == [True]
    assert found(tmp_path, "1.1", versions=["1.0.0"]) == []


def test_unknown_version_is_possible_and_never_clear(tmp_path):
    base = database(tmp_path, record(events=[{"introduced": "0"}, {"fixed": "2"}]))
    body = base.predicate([Package("Some.Package", None, "requirements.txt")], NOW)
    assert (body["verdict"], body["matches"][0]["certain"]) == ("possible", False)
    assert body["matches"][0]["fixed"] == ["2"]


def test_range_that_cannot_be_ordered_affects_everything(tmp_path):
    assert found(tmp_path, "1.0", events=[{"introduced": "0"}, {"fixed": "not-a-version"}]) == [True]


@pytest.mark.parametrize(
    "fields",
    [
        {"withdrawn": "2026-11-21T00:00:00Z"},
        {"affected": [{"package": {"ecosystem": "npm", "name": "some-package"}, "versions": ["1.0"]}]},
        {"package": "another"},
    ],
    ids=["withdrawn", "another ecosystem", "another package"],
)
def test_records_about_something_else_do_not_count(tmp_path, fields):
    other = record("PYSEC-2026-2", "unrelated", versions=["1"])
    entry = {**record(versions=["1.0"], **{k: v for k, v in fields.items() if k == "package"})}
    entry |= {k: v for k, v in fields.items() if k != "package"}
    base = database(tmp_path, entry, other)
    assert base.match([Package("some-package", "1.0", "environment")]) == ()
    assert base.predicate([Package("some-package", "1.0", "environment")], NOW)["verdict"] == "clear"


versions = st.builds(
    lambda parts, tail: ".".join(map(str, parts)) + tail,
    st.lists(st.integers(0, 30), min_size=1, max_size=3),
    st.sampled_from(["", "rc1", "a2", ".post1", ".dev3"]),
)


@given(low=versions, high=versions, version=versions)
def test_affected_is_between_introduced_and_fixed(tmp_path_factory, low, high, version):
    if Version(low) >= Version(high):
        low, high = high, low
    assume(Version(low) != Version(high) and low != "0")  # "0" is the schema's word for the beginning
    events = [{"introduced": low}, {"fixed": high}]
    is_found = bool(found(tmp_path_factory.mktemp("d"), version, events=events))
    assert is_found == (Version(low) <= Version(version) < Version(high))


@given(st.text(alphabet="Aa-_.1", min_size=1, max_size=12))
def test_names_match_as_pep_503_says(name):
    import re

    assert normalised(name) == re.sub(r"[-_.]+", "-", name).lower()


def test_kept_database_is_the_dump(tmp_path):
    base = database(
        tmp_path,
        record(events=[{"introduced": "0"}, {"fixed": "2"}], aliases=["CVE-2026-1"]),
        record("PYSEC-2026-2", "other", versions=["1.0", "1.1"]),
    )
    assert loads(dumps(base)) == base


def test_zip_and_folder_are_the_same_database(tmp_path):
    entries = [record(versions=["1.0"]), record("PYSEC-2026-2", "other", versions=["1"])]
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for entry in entries:
            target.writestr(f"{entry['id']}.json", json.dumps(entry))
    assert read_dump(archive) == database(tmp_path, *entries)


def test_age_is_that_of_the_newest_record(tmp_path):
    base = database(
        tmp_path, record(versions=["1"]), record("OLD", modified="2020-01-01T00:00:00Z", versions=["1"])
    )
    assert base.newest == datetime(2026, 11, 20, 10, tzinfo=UTC)
    assert not base.is_stale(NOW, timedelta(days=3))
    assert base.is_stale(NOW, timedelta(days=2))


def test_requirements_of_the_model_are_read_from_its_evidence():
    predicate = {
        "files": [
            {
                "path": "requirements.txt",
                "facts": {"requirements": [{"name": "torch", "version": "2.4.0"}, {"name": "x"}]},
            },
            {"path": "a.safetensors", "facts": {}},
        ]
    }
    assert packages_of(predicate) == (
        Package("torch", "2.4.0", "requirements.txt"),
        Package("x", None, "requirements.txt"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"id": "x", "modified": "soon"}',
        '{"modified": "2026-01-01T00:00:00Z", "affected": [1]}',
    ],
)
def test_what_is_no_record_is_malformed(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(Malformed) as caught:
        read_dump(tmp_path)
    assert caught.value.rule == "advisory/record"


def test_nothing_on_pypi_is_wrong_usage(tmp_path):
    with pytest.raises(WrongUsage):
        read_dump(tmp_path)
    with pytest.raises(WrongUsage):
        read_dump(tmp_path / "none")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(Malformed):
        read_dump(tmp_path / "text.zip")
