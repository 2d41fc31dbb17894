"""Grok-1's int8 weights times their scales, as bfloat16, a few rows at a time.

Weights (.., K, N) and scales (.., G, N): each row k of the contracting axis takes the scales of group k * G // K. The
product of an int8 and a bfloat16 fits in float32 exactly and is then rounded once, to nearest, ties to even: the very
numbers the released model computes before each product of matrices. float32 tensors stay float32.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from steelyard.admit.from_grok import Checkpoint, Exact, Piece, check_finite, with_framing
from steelyard.admit.to_safetensors import open_input, pieces
from steelyard.admit.to_safetensors_plan import Feed, Range, Source, Tensor
from steelyard.errors import Refused, Untrusted

BLOCK_ELEMENTS = 1 << 17
THREADS = 2
LARGEST_SCALE = 2.0**120  # times 128 still fits a bfloat16

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Dequantised:
    """One quantised shard as a single bfloat16 tensor."""

    piece: Piece

    @property
    def path(self) -> str:
        return self.piece.path

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (Tensor(self.piece.leaf.name, "BF16", self.piece.shard.weight.shape),)

    @property
    def reads(self) -> int:
        return self.piece.shard.size

    @property
    def whole(self) -> bool:
        return True

    @property
    def ranges(self) -> tuple[Range, ...]:
        return ()

    def open(self) -> int:
        return open_input(self.piece.root / self.piece.path, self.piece.shard.size)

    def blocks(self, descriptor: int, feed: Feed) -> Iterator[bytes]:
        scales = self.piece.shard.scales
        assert scales is not None  # `sources` keeps float32 shards as they are
        first = b"".join(pieces(descriptor, scales.offset, scales.size))
        check_finite(self.piece, first)
        factors = _floats(first).reshape(-1, scales.shape[-1])  # (batch * groups, N)
        if np.abs(factors).max(initial=0.0) > LARGEST_SCALE:
            raise Refused(f"{self.piece.path} has scales above {LARGEST_SCALE:g}, whose products overflow")
        for array in with_framing(self.piece, descriptor, feed):
            if array.dtype == "I8":
                yield from self._products(descriptor, feed, factors)
            else:
                again = b"".join(pieces(descriptor, array.offset, array.size))
                if again != first:
                    raise Untrusted(f"{self.piece.path} changed while it was converted")
                feed(again)

    def _products(self, descriptor: int, feed: Feed, factors: Floats) -> Iterator[bytes]:
        """Blocks of rows within one group, computed on a few threads, in order."""
        weight = self.piece.shard.weight
        columns = weight.shape[-1]
        rows = prod(weight.shape[:-1]) // len(factors)  # rows that share their scales
        step = max(1, BLOCK_ELEMENTS // columns)
        waiting: deque[Future[bytes]] = deque()
        with ThreadPoolExecutor(THREADS) as pool:
            for group, factor in enumerate(factors):
                for start in range(0, rows, step):
                    count = min(step, rows - start)
                    at = weight.offset + (group * rows + start) * columns
                    data = b"".join(pieces(descriptor, at, count * columns))
                    feed(data)
                    waiting.append(pool.submit(product, data, factor))
                    if len(waiting) > THREADS:
                        yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def product(weights: bytes, factor: Floats) -> bytes:
    """int8 rows times the scales (N,) of their group, as little-endian bfloat16."""
    values = np.frombuffer(weights, dtype=np.int8).reshape(-1, len(factor)).astype(np.float32)
    values *= factor
    bits = values.view(np.uint32)
    odd = bits >> 16
    odd &= 1
    bits += odd
    bits += 0x7FFF
    return bits.view("<u2").reshape(-1, 2)[:, 1].tobytes()


def _floats(data: bytes) -> Floats:
    return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)


def sources(checkpoint: Checkpoint) -> list[Source]:
    """One source a shard: products where it is quantised, the float32 array as it is elsewhere."""
    return [Exact(piece) if piece.shard.scales is None else Dequantised(piece) for piece in checkpoint.pieces]
