from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.admit.rules import registry
from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.msgpack_file import FORMAT as MSGPACK
from steelyard.formats.r_data import FORMAT as R_DATA
from steelyard.formats.xgboost_model import FORMAT as XGBOOST

REGISTRY = registry()
DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gbdt/poisson.json", "xgboost"),
        ("gbdt/poisson.ubj", "xgboost"),
        ("gbdt/linear.ubj", "xgboost"),
        ("gbdt/lightgbm.txt", "lightgbm"),
        ("msgpack/tree.msgpack", "msgpack"),
        ("r/list.rds", "r-data"),
        ("r/df.rds", "compressed"),
        ("r/defer.rds", "compressed"),
        ("r/xy.RData", "compressed"),
        ("skops/lr.skops", "skops"),
        ("skops/iso.skops", "skops"),
        ("skops/sparse.skops", "skops"),
    ],
)
def test_honest_file_is_claimed_once_and_clean(name: str, kind: str) -> None:
    report = REGISTRY.read(BytesSource((DATA / name).read_bytes()), name)
    assert (report.format, report.findings) == (kind, ())


@pytest.mark.parametrize("name", ["gbdt/poisson.json", "gbdt/poisson.ubj"])
def test_both_forms_of_xgboost_give_the_same_facts(name: str) -> None:
    facts = XGBOOST.read(BytesSource((DATA / name).read_bytes()), name).facts
    assert dict(facts) == {"objective": "count:poisson", "booster": "gbtree", "features": 4, "trees": 3}


def test_flax_tree_is_counted() -> None:
    facts = MSGPACK.read(BytesSource((DATA / "msgpack/tree.msgpack").read_bytes()), "tree.msgpack").facts
    assert facts["data_bytes"] == 2 * 3 * 2 + 7 * 8 + 8 + 4


@pytest.mark.parametrize("name", ["gbdt/poisson.ubj", "msgpack/tree.msgpack", "r/list.rds"])
def test_every_truncation_refuses(name: str) -> None:
    raw = (DATA / name).read_bytes()
    formats = {"ubj": XGBOOST, "msgpack": MSGPACK, "rds": R_DATA}
    for size in range(16, len(raw), max(1, len(raw) // 300)):
        with pytest.raises(Malformed):
            formats[name.rpartition(".")[2]].read(BytesSource(raw[:size]), name)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_flipped_bit_never_escapes_the_rules(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["gbdt/poisson.ubj", "msgpack/tree.msgpack", "r/list.rds"]))
    raw = bytearray((DATA / name).read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    kind = {"ubj": XGBOOST, "msgpack": MSGPACK, "rds": R_DATA}[name.rpartition(".")[2]]
    try:
        found = {finding.rule for finding in kind.read(BytesSource(bytes(raw)), name).findings}
    except Malformed as broken:
        found = {broken.rule}
    assert found <= set(kind.rules)
