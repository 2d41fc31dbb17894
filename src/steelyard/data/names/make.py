"""Make first.txt.xz and last.txt.xz from the name files of the 1990 US census (public domain).

They are dist.female.first, dist.male.first and dist.all.last, as the Census Bureau published them; the PyPI package
`names` 0.3.0 carries them unchanged. The commonest surnames are taken, every first name, lower case, one a line.

python make.py FOLDER_WITH_THE_THREE_FILES
"""

import lzma
import sys
from pathlib import Path

SURNAMES = 30_000


def names(path: Path) -> list[str]:
    return [line.split()[0].lower() for line in path.read_text().splitlines()]


def main() -> None:
    source, here = Path(sys.argv[1]), Path(__file__).parent
    first = {*names(source / "dist.female.first"), *names(source / "dist.male.first")}
    last = names(source / "dist.all.last")[:SURNAMES]
    for name, found in (("first", first), ("last", set(last))):
        data = lzma.compress("\n".join(sorted(found)).encode(), format=lzma.FORMAT_XZ, preset=9)
        (here / f"{name}.txt.xz").write_bytes(data)
        print(f"{name}: {len(found)} names, {len(data)} bytes")


if __name__ == "__main__":
    main()
