"""JAX, Flax and Optax in a pickle: arrays, frozen dicts and the state of optimisers.

A JAX array is written as the parts of a numpy array, and its rebuild function calls the function it is handed: that
must be numpy's own, and arguments and state are judged as if numpy had been called. The states of Optax are
namedtuples, whose names lie in `data/pickles/optax.json`.

Source: jax/_src/array.py of jax 0.10, jax/_src/device_array.py of jax 0.3, flax/core/frozen_dict.py of flax 0.12.
"""

from collections.abc import Mapping, Sequence

from steelyard.formats.pickle_values import Node, Spec, Value, node_of
from steelyard.formats.pickled_numpy import array_state, reconstruct
from steelyard.formats.pickled_shapes import fit, holding, is_global, is_kind, items_of, pairs_of


def _array(args: Sequence[Value]) -> Value:
    """`_reconstruct_array(numpy's _reconstruct, its arguments, the array's state, {'weak_type': flag})`."""
    fit(len(args) == 4, "(function, arguments, state, flags)")
    fit(is_global(args[0], *_NUMPY), "numpy's _reconstruct")
    node = reconstruct(items_of(args[1], "the arguments"))
    array_state(node, args[2])
    for name, value in pairs_of(args[3], "the flags"):
        fit(name in {"weak_type", "named_shape"}, "the flag weak_type")
        fit(type(value) is bool or is_kind(value, "dict"), "a flag")
    return node_of("ndarray")


_NUMPY = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")


def _frozen(args: Sequence[Value]) -> Value:
    fit(len(args) == 1 and isinstance(args[0], Node) and args[0].kind == "dict", "(dict,)")
    return holding("object", args)


JAX: Mapping[str, Spec] = {
    "jax._src.array._reconstruct_array": Spec(_array),
    "jax._src.device_array.reconstruct_device_array": Spec(_array),
    "flax.core.frozen_dict.FrozenDict": Spec(_frozen),
}
