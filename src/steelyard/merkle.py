"""RFC 6962 Merkle tree hashing, inclusion and consistency proofs. Pure: hashes in, hashes out.

leaf hash = SHA-256(0x00 || entry); node hash = SHA-256(0x01 || left || right); the empty tree's root is SHA-256("").
The two prefixes keep an inner node from being passed off as an entry. A tree of n entries splits at the largest
power of two below n, so it is covered from the left by complete subtrees of falling height.

Sources: RFC 6962 sections 2.1 to 2.1.2 (hashes, paths), RFC 9162 sections 2.1.3.2 and 2.1.4.2 (checking them).
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from steelyard.errors import Untrusted

HASH_BYTES = 32
MAX_SIZE = (1 << 63) - 1
MAX_PATH = 64  # a tree of MAX_SIZE entries is 63 high; a consistency path adds one
EMPTY_ROOT = hashlib.sha256(b"").digest()

Nodes: TypeAlias = Callable[[int, int], bytes]
"""(height, index) -> the root of the complete subtree over entries [index << height, (index + 1) << height)."""


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def leaf_hashes(entries: Sequence[bytes]) -> list[bytes]:
    sha256 = hashlib.sha256
    return [sha256(b"\x00" + entry).digest() for entry in entries]


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def complete_root(hashes: Sequence[bytes]) -> bytes:
    """Root over 2**k neighbouring hashes, k >= 0."""
    row = list(hashes)
    if not row or len(row) & (len(row) - 1):
        raise ValueError(f"{len(row)} hashes are not a complete subtree")
    sha256 = hashlib.sha256
    while len(row) > 1:
        row = [sha256(b"\x01" + row[i] + row[i + 1]).digest() for i in range(0, len(row), 2)]
    return row[0]


def ragged_root(subtrees: Sequence[bytes]) -> bytes:
    """Root of a tree from the roots of its complete subtrees, highest (leftmost) first."""
    if not subtrees:
        return EMPTY_ROOT
    root = subtrees[-1]
    for left in reversed(subtrees[:-1]):
        root = node_hash(left, root)
    return root


def root_of(nodes: Nodes, size: int) -> bytes:
    """Tree head of the first `size` entries."""
    return _range_root(nodes, 0, size)


def inclusion_path(nodes: Nodes, index: int, size: int) -> tuple[bytes, ...]:
    """Audit path of entry `index` in the tree of `size` entries, from the leaf's sibling upwards."""
    if not 0 <= index < size:
        raise ValueError(f"entry {index} is not in a tree of {size}")
    path: list[bytes] = []
    start, stop = 0, size
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            path.append(_range_root(nodes, middle, stop))
            stop = middle
        else:
            path.append(_range_root(nodes, start, middle))
            start = middle
    return tuple(reversed(path))


def consistency_path(nodes: Nodes, old: int, new: int) -> tuple[bytes, ...]:
    """Proof that the tree of `old` entries is a prefix of the tree of `new`. Empty when old is 0 or new."""
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {old} is no prefix of a tree of {new}")
    if old in (0, new):
        return ()
    path: list[bytes] = []
    start, stop = 0, new
    while stop != old:
        middle = start + _split(stop - start)
        if old <= middle:
            path.append(_range_root(nodes, middle, stop))
            stop = middle
        else:
            path.append(_range_root(nodes, start, middle))
            start = middle
    if start:  # with start 0 the subtree is the old tree itself, whose root the verifier has
        path.append(_range_root(nodes, start, stop))
    return tuple(reversed(path))


def check_inclusion(leaf: bytes, index: int, size: int, root: bytes, path: Sequence[bytes]) -> None:
    """Raise Untrusted unless `path` proves that `leaf` (a leaf hash) is entry `index` under `root`."""
    place = f"inclusion of entry {index} in a tree of {size}"
    if not 0 <= index < size <= MAX_SIZE or len(leaf) != HASH_BYTES:
        raise Untrusted(f"{place}: no such entry, or not a leaf hash")
    position, last, found = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            raise Untrusted(f"{place}: the proof has too many hashes")
        if position & 1 or position == last:
            found = node_hash(sibling, found)
            position, last = _skip_missing(position, last)
        else:
            found = node_hash(found, sibling)
        position, last = position >> 1, last >> 1
    if last:
        raise Untrusted(f"{place}: the proof has too few hashes")
    if found != root:
        raise Untrusted(f"{place}: the proof gives root {found.hex()}, the tree has {root.hex()}")


def check_consistency(old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]) -> None:
    """Raise Untrusted unless the tree (new, new_root) begins with every entry of the tree (old, old_root).

    Every tree continues the empty one, so old = 0 says nothing about new_root.
    """
    place = f"consistency of trees of {old} and {new}"
    if not 0 <= old <= new <= MAX_SIZE:
        raise Untrusted(f"{place}: the later tree is smaller")
    if old in (0, new):
        if path or (old == new and old_root != new_root) or (old == 0 and old_root != EMPTY_ROOT):
            raise Untrusted(f"{place}: the roots differ or the proof is not empty")
        return
    hashes = list(path) if old & (old - 1) else [old_root, *path]
    if not hashes:
        raise Untrusted(f"{place}: the proof has too few hashes")
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    found_old = found_new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise Untrusted(f"{place}: the proof has too many hashes")
        if position & 1 or position == last:
            found_old, found_new = node_hash(sibling, found_old), node_hash(sibling, found_new)
            position, last = _skip_missing(position, last)
        else:
            found_new = node_hash(found_new, sibling)
        position, last = position >> 1, last >> 1
    if last:
        raise Untrusted(f"{place}: the proof has too few hashes")
    if found_old != old_root or found_new != new_root:
        which = "earlier" if found_old != old_root else "later"
        raise Untrusted(f"{place}: the proof does not give the {which} root")


def _skip_missing(position: int, last: int) -> tuple[int, int]:
    # A right-hand edge node without a sibling is carried up unchanged: those heights take no hash from the path.
    while position and not position & 1:
        position, last = position >> 1, last >> 1
    return position, last


def _split(size: int) -> int:
    return 1 << ((size - 1).bit_length() - 1)


def _range_root(nodes: Nodes, start: int, stop: int) -> bytes:
    return ragged_root([nodes(height, index) for height, index in _subtrees(start, stop)])


def _subtrees(start: int, stop: int) -> Iterator[tuple[int, int]]:
    # Every `start` met in RFC 6962's recursion is a multiple of the largest power of two in the range.
    while start < stop:
        height = (stop - start).bit_length() - 1
        yield height, start >> height
        start += 1 << height
