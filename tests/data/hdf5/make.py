"""Write the HDF5 fixtures: honest files of several library settings, and one file for each way out of the file.

pip install h5py==3.16.0 numpy==2.4.6 && python make.py
"""

import h5py
import numpy as np


def fill(file: h5py.File) -> None:
    file.attrs["keras_version"] = "2.15.0"
    file.attrs["layer_names"] = [b"dense", b"dense_1"]
    file.attrs["texts"] = np.array(["aa", "bbb"], dtype=h5py.string_dtype())
    file.attrs["nothing"] = h5py.Empty("f")
    for index in range(3):
        layer = file.create_group(f"layer_{index}")
        layer.create_dataset("kernel:0", data=np.arange(6, dtype="f4").reshape(2, 3))
    many = file.create_group("many")
    for index in range(20):
        many.create_dataset(f"d{index}", data=np.int8(index))
    file["words"] = ["x", "yy"]
    file["record"] = np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")])
    file["switches"] = np.array([True, False])
    file.create_dataset("unwritten", shape=(10, 3), dtype="f4")
    file.create_dataset("chunks", data=np.arange(40).reshape(8, 5), chunks=(4, 5))
    file.create_dataset(
        "packed",
        data=np.arange(400).reshape(40, 10),
        chunks=(20, 10),
        compression="gzip",
        shuffle=True,
        fletcher32=True,
    )


def main() -> None:
    for name, libver in (("earliest", "earliest"), ("v110", ("v110", "v110")), ("latest", "latest")):
        with h5py.File(f"{name}.h5", "w", libver=libver) as file:
            fill(file)
    with h5py.File("dense.h5", "w", libver="v110") as file:
        for index in range(60):
            file.attrs[f"a{index}"] = "x" * index
            file.create_group(f"g{index}")
    with h5py.File("soft_link.h5", "w") as file:
        file["a"] = h5py.SoftLink("/etc")
    with h5py.File("external_link.h5", "w") as file:
        file["a"] = h5py.ExternalLink("/etc/passwd", "/x")
    with h5py.File("external_data.h5", "w") as file:
        file.create_dataset("d", (16,), "u1", external=[("/etc/passwd", 0, 16)])
    with h5py.File("virtual.h5", "w") as file:
        layout = h5py.VirtualLayout(shape=(4,), dtype="i4")
        layout[:] = h5py.VirtualSource("other.h5", "d", shape=(4,))
        file.create_virtual_dataset("v", layout)
    with h5py.File("cycle.h5", "w") as file:
        file.create_group("a")["back"] = file["/"]
    with h5py.File("huge.h5", "w") as file:
        file.create_dataset("d", (1 << 40,), "f8")
    with h5py.File("committed.h5", "w") as file:
        file["t"] = np.dtype("f4")
    with h5py.File("pytables.h5", "w") as file:
        file.attrs["PYTABLES_FORMAT_VERSION"] = "2.1"
    with h5py.File("deleted.h5", "w") as file:
        file["kept"], file["gone"] = np.arange(4), np.arange(1, 600)
    with h5py.File("deleted.h5", "a") as file:
        del file["gone"]


if __name__ == "__main__":
    main()
