"""The writer: any plan gives the bytes safetensors expects, whatever is killed on the way."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from steelyard.admit import to_safetensors
from steelyard.admit.to_safetensors import INDEX, JOURNAL, open_input, pieces, write
from steelyard.admit.to_safetensors_plan import Range, Tensor, is_safe_name, plan_of
from steelyard.errors import Malformed, Refused, Unavailable, Untrusted, WrongUsage


@dataclass(frozen=True)
class Slice:
    """A source over part of a file, read as a whole file with nothing around its tensor."""

    file: Path
    tensors: tuple[Tensor, ...]
    whole: bool = True
    slow_s: float = 0.0

    @property
    def path(self):
        return self.file.name

    @property
    def reads(self):
        return sum(tensor.size for tensor in self.tensors)

    @property
    def ranges(self):
        at, found = 0, []
        for tensor in self.tensors:
            found.append(Range(at, tensor.size))
            at += tensor.size
        return tuple(found)

    def open(self):
        return open_input(self.file, self.reads)

    def blocks(self, descriptor, feed):
        for block in pieces(descriptor, 0, self.reads):
            time.sleep(self.slow_s)
            feed(block)
            yield block


def sources(folder, *shapes, dtype="U8", slow_s=0.0):
    found = []
    for number, shape in enumerate(shapes):
        tensor = Tensor(f"layer.{number}.weight", dtype, shape)
        file = folder / f"in{number}"
        file.write_bytes(hashlib.shake_128(bytes([number])).digest(tensor.size))
        found.append(Slice(file, (tensor,), slow_s=slow_s))
    return found


def tree(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@given(st.lists(st.integers(0, 60), min_size=1, max_size=9), st.integers(1, 6000))
@settings(max_examples=25, deadline=None)
def test_any_plan_holds_every_tensor_once_within_the_shard_size(sizes, shard_bytes):
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given_sources = sources(folder, *((size,) for size in sizes))
        plan = plan_of(given_sources, mode="exact", shard_bytes=shard_bytes)
        for shard in plan.shards:
            tensors = [tensor for source in shard.sources for tensor in source.tensors]
            assert shard.size <= shard_bytes or len(tensors) == 1
        written = write(plan, folder / "out")
        found = {}
        for file in written.files:
            data = (folder / "out" / file.path).read_bytes()
            assert hashlib.sha256(data).hexdigest() == file.sha256
            if file.path != INDEX:
                with safe_open(folder / "out" / file.path, "np") as opened:
                    found |= {key: opened.get_tensor(key).tobytes() for key in opened.keys()}  # noqa: SIM118
        assert found == {s.tensors[0].name: s.file.read_bytes() for s in given_sources}
        inputs = {file.path: file.sha256 for file in written.consumed}
        assert inputs == {s.path: hashlib.sha256(s.file.read_bytes()).hexdigest() for s in given_sources}


def test_a_copy_inside_the_kernel_gives_the_same_bytes(tmp_path):
    plan = plan_of(sources(tmp_path, (3000,), (70, 50)), mode="exact", shard_bytes=4000)
    write(plan, tmp_path / "hashed")
    write(plan, tmp_path / "plain", digests=False)
    assert tree(tmp_path / "hashed") == tree(tmp_path / "plain")


def test_wide_elements_come_first_so_that_all_stay_aligned(tmp_path):
    odd, wide = sources(tmp_path, (3,)), sources(tmp_path / "..", (5,), dtype="F32")
    renamed = Slice(wide[0].file, (Tensor("wide", "F32", (5,)),))
    plan = plan_of([*odd, renamed], mode="exact")
    assert [tensor.name for tensor in plan.tensors] == ["wide", "layer.0.weight"]
    (shard,) = plan.shards
    assert (len(shard.header) % 8, shard.size) == (0, len(shard.header) + 23)


def test_an_index_names_the_shard_of_every_tensor(tmp_path):
    write(plan_of(sources(tmp_path, (10,), (10,), (10,)), mode="exact", shard_bytes=1200), tmp_path / "out")
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"] == {"total_size": 30}
    assert index["weight_map"]["layer.2.weight"] == "model-00002-of-00002.safetensors"
    assert not (tmp_path / "out" / JOURNAL).exists()


_KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_to_safetensors import sources, plan_of, write
folder = Path({folder!r})
write(plan_of(sources(folder, *[(400_000,)] * 12, slow_s=0.1), mode="exact", shard_bytes=500_000), folder / "out")
"""


def test_killed_in_the_middle_and_run_again_gives_the_same_bytes(tmp_path):
    """SIGKILL after some shards are finished; the second run weighs those and writes the rest."""
    (tmp_path / "a").mkdir()
    code = _KILLED.format(here=str(Path(__file__).parent), folder=str(tmp_path / "a"))
    child = subprocess.Popen([sys.executable, "-c", code])
    out = tmp_path / "a" / "out"
    deadline = time.monotonic() + 60
    while len(list(out.glob("model-*"))) < 3 and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (out / JOURNAL).exists(), "the child finished before it was killed"
    finished = len(list(out.glob("model-*")))
    plan = plan_of(sources(tmp_path / "a", *[(400_000,)] * 12), mode="exact", shard_bytes=500_000)
    again = write(plan, out)
    assert finished - 1 <= again.resumed <= finished < 12
    (tmp_path / "b").mkdir()
    straight = write(
        plan_of(sources(tmp_path / "b", *[(400_000,)] * 12), mode="exact", shard_bytes=500_000),
        tmp_path / "b" / "out",
    )
    assert {name: data for name, data in tree(out).items() if not name.startswith(".")} == tree(
        tmp_path / "b" / "out"
    )
    assert again.files == straight.files
    assert again.consumed == straight.consumed


class Stopped(Exception):
    pass


def stop_after(shards):
    """A progress hook that raises once so many bytes were written."""
    seen = 0

    def advance(count):
        nonlocal seen
        seen += count
        if seen > shards * 1000:
            raise Stopped

    return advance


def begun(folder):
    """Three of five shards are finished."""
    plan = plan_of(sources(folder, *[(900,)] * 5), mode="exact", shard_bytes=900)
    with pytest.raises(Stopped):
        write(plan, folder / "out", progress=stop_after(3))
    return plan


def test_a_finished_shard_that_was_damaged_since_is_written_again(tmp_path):
    plan = begun(tmp_path)
    shard = tmp_path / "out" / "model-00001-of-00005.safetensors"
    right = shard.read_bytes()
    shard.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    written = write(plan, tmp_path / "out")
    assert shard.read_bytes() == right
    assert written.resumed == 2


def test_half_a_line_in_the_journal_counts_for_nothing(tmp_path):
    plan = begun(tmp_path)
    journal = tmp_path / "out" / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-10])
    assert write(plan, tmp_path / "out").resumed == 2


def test_a_journal_that_is_none_is_refused(tmp_path):
    plan = begun(tmp_path)
    journal = tmp_path / "out" / JOURNAL
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0] + b'{"file": ["x", "y"]}\n')
    with pytest.raises(Malformed) as caught:
        write(plan, tmp_path / "out")
    assert caught.value.rule == "conversion/journal"


def test_another_plan_does_not_take_up_the_work(tmp_path):
    begun(tmp_path)
    other = plan_of(sources(tmp_path, (900,), (900,)), mode="exact", shard_bytes=900)
    with pytest.raises(WrongUsage, match="another plan"):
        write(other, tmp_path / "out")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(WrongUsage, match="not empty"):
        write(plan_of(sources(tmp_path, (9,)), mode="exact"), tmp_path / "out")
    assert tree(tmp_path / "out") == {"precious": b"x"}


def test_two_at_once_are_refused(tmp_path):
    import fcntl

    plan = begun(tmp_path)
    with (tmp_path / "out" / JOURNAL).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(WrongUsage, match="another process"):
            write(plan, tmp_path / "out")


def test_a_full_disk_is_said_before_a_byte_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: type("Usage", (), {"free": to_safetensors.SPARE_BYTES})
    )
    with pytest.raises(Unavailable, match="are free"):
        write(plan_of(sources(tmp_path, (9,)), mode="exact"), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_an_input_that_shrank_is_refused(tmp_path):
    plan = plan_of(sources(tmp_path, (900,)), mode="exact")
    os.truncate(tmp_path / "in0", 500)
    with pytest.raises(Untrusted, match="no longer has 900 bytes"):
        write(plan, tmp_path / "out")


@pytest.mark.parametrize("name", ["", " a", "a\n", "a\u202eb", "__metadata__", "a" * 257, "e\u0301", "a\x00"])
def test_an_unsafe_name_is_refused(name, tmp_path):
    assert not is_safe_name(name)
    with pytest.raises(Refused, match="tensor name"):
        plan_of([Slice(tmp_path, (Tensor(name, "U8", (1,)),))], mode="exact")


def test_the_longest_name_is_taken(tmp_path):
    assert is_safe_name("a" * 256)


def test_one_name_twice_is_refused(tmp_path):
    one = Slice(tmp_path, (Tensor("a", "U8", (1,)),))
    with pytest.raises(Refused, match="two tensors"):
        plan_of([one, one], mode="exact")


_MEASURED = """
from pathlib import Path
from steelyard.admit.to_safetensors import write
from steelyard.admit.to_safetensors_plan import plan_of
from steelyard.admit.from_grok import Exact, Expected, Piece
from steelyard.formats.grok import shard_of
class Source:
    file = Path({file!r})
    size = file.stat().st_size
    def read(self, offset, size):
        with self.file.open("rb") as file:
            file.seek(offset)
            return file.read(size)
shard = shard_of(Source())
piece = Piece(Source.file.parent, Source.file.name, Expected("w", shard.weight.shape, True), shard)
write(plan_of([Exact(piece)], mode="exact"), Path({out!r}))
status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent's pages too
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def test_a_shard_of_100_mb_is_copied_and_hashed_within_64_mb(tmp_path):
    from steelyard.formats.grok_pickle import CORES, Sentence, framing_of

    file = tmp_path / "tensor00002_000"
    with file.open("wb") as out:
        for stretch in framing_of(Sentence(CORES[0], True, ((1, 1600, 65536), (1, 1, 65536)), 0x40)):
            out.write(stretch.framing)
            out.seek(stretch.payload_bytes or 0, os.SEEK_CUR)
    code = _MEASURED.format(file=str(file), out=str(tmp_path / "out"))
    peak = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    assert file.stat().st_size > 100_000_000
    assert int(peak) * 1024 <= 64_000_000
