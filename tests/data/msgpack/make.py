"""Write the Flax fixture: pip install flax jax numpy==2.4.6 && python make.py"""

import jax.numpy as jnp
import numpy as np
from flax import serialization

tree = {
    "step": 1, "rate": 1.5, "name": "x", "none": None, "flag": True, "scalar": np.float32(2), "complex": 1 + 2j,
    "half": jnp.ones((2, 3), jnp.bfloat16), "nested": {"0": np.arange(7), "zero_rank": np.array(3)},
}  # fmt: skip
with open("tree.msgpack", "wb") as file:
    file.write(serialization.msgpack_serialize(tree))
