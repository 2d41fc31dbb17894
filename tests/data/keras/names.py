"""Write src/steelyard/formats/keras_names.py from the sources of Keras releases; nothing of them is run.

    python names.py WHEEL... > keras_names.py

Each wheel is read as text: a class or function decorated with `keras_export` has the public names that the
decorator lists, and each operation of `keras.ops` and layer of `keras.applications` is a public class of its file.

Run on 2026-11-23 with the wheels keras 2.10.0, 2.11.0, 2.12.0, 2.13.1, 2.14.0, 2.15.0, 3.0.5, 3.1.1, 3.2.1,
3.3.3, 3.4.1, 3.5.0, 3.6.0, 3.7.0, 3.8.0, 3.9.2, 3.10.0, 3.11.3, 3.12.0, 3.15.1 and tf_keras 2.16.0, 2.19.0.
"""

import ast
import sys
import textwrap
import zipfile
from collections.abc import Iterator

KINDS = {
    "activations", "constraints", "dtype_policies", "initializers", "layers", "losses", "metrics",
    "mixed_precision", "models", "optimizers", "quantizers", "random", "regularizers",
}  # fmt: skip
# They run code, import a module or open a file that the configuration names.
REFUSED = {
    "Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "NnxLayer", "SavedModelLayer", "Map",
    "VectorizedMap", "Cond", "WhileLoop", "Scan", "AssociativeScan", "ForiLoop", "Switch",
    "CustomGradient", "Function", "Variable", "DenseFeatures", "SequenceFeatures",
}  # fmt: skip
LOOKUPS = {"get", "deserialize", "serialize", "from_config"}


def exported(node: ast.ClassDef | ast.FunctionDef) -> Iterator[str]:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "keras_export":
            for constant in ast.walk(decorator):
                if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                    yield constant.value.removeprefix("keras.")


def of_wheel(path: str) -> tuple[set[str], set[str]]:
    """Plain names of classes and of functions."""
    classes, functions = set(), set()
    with zipfile.ZipFile(path) as wheel:
        for name in wheel.namelist():
            if not name.endswith(".py") or name.endswith("_test.py"):
                continue
            is_own = "/src/ops/" in name or "/applications/" in name
            for node in ast.parse(wheel.read(name)).body:
                if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                    continue
                public = [e for e in exported(node) if e.split(".")[0] in KINDS or "." not in e]
                names = {each.rpartition(".")[2] for each in public}
                if isinstance(node, ast.ClassDef):
                    classes |= names | ({node.name} if is_own and node.name[0] != "_" else set())
                elif any(each.split(".")[0] in {"activations", "losses", "metrics"} for each in public):
                    functions |= names
    classes.add("Functional")  # never exported, always written
    return {each for each in classes - REFUSED if each[0].isupper()}, functions - LOOKUPS


def printed(name: str, members: set[str]) -> str:
    # As one text: a list of 500 quoted words is no easier to check.
    body = textwrap.fill(" ".join(sorted(members)), 110, break_long_words=False)
    return f'{name}: Final = frozenset(\n    """\n{textwrap.indent(body, "    ")}\n    """.split()  # noqa: SIM905\n)'


def main() -> None:
    classes, functions = set(), set()
    for path in sys.argv[1:]:
        found = of_wheel(path)
        classes |= found[0]
        functions |= found[1]
    print('"""Names that Keras itself builds from a configuration. Written by tests/data/keras/names.py.')
    print("\nLeft out: whatever runs code, imports a module or opens a file that the configuration names.")
    print("Source: keras 2.10 to 2.15, keras 3.0 to 3.15 and tf_keras 2.16, 2.19; read on 2026-11-23.")
    print('"""\n\nfrom typing import Final\n')
    print(printed("CLASSES", classes))
    print("\n" + printed("FUNCTIONS", functions))


if __name__ == "__main__":
    main()
