"""What must hold for any bytes at all: no exception, no side effect, bounded work, one verdict, the loaders' view."""

import gc
import os
import re
import resource
import signal
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType

import steelyard
from steelyard.errors import SteelyardError
from steelyard.formats.base import BytesSource, Report, Severity
from steelyard.formats.registry import Registry

MAX_CPU_S = 2.0
MAX_GROWTH_BYTES = 150 << 20

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_FORBIDDEN = re.compile(
    r"subprocess\.|socket\.|ctypes\.|pickle\.|shutil\.|winreg\.|urllib\.|ftplib\.|smtplib\.|http\.|webbrowser\."
    r"|os\.(system|exec|posix_spawn|spawn|startfile|fork|forkpty|remove|rename|link|symlink|mkdir|rmdir|chmod|chown"
    r"|truncate|kill|killpg|putenv|utime|mkfifo)"
)
_PACKAGES = frozenset({"steelyard", "jinja2", "markupsafe"})
_TEMPLATE = "<template>"  # what Jinja makes of a template is run in its sandbox, to see what it renders
_RAISES = ("__jinja_exception__",)  # one line of Jinja's, which raises a template's error anew
_PARSED = (
    "<unknown>"  # CPython's parser looks for the source line of a syntax error under the name it was given
)
_ROOTS = tuple(
    str(Path(place).resolve())
    for place in (
        Path(steelyard.__file__).parent,
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
    )
)


class Stopped(BaseException):
    """The reading was ended from outside: too slow, or about to do what no parser may."""


@dataclass(slots=True)
class _Watch:
    """What the audit hook saw while it was on. Hooks cannot be taken off again, so there is one for the process."""

    on: bool = False
    installed: bool = False
    seen: list[str] = field(default_factory=list)

    def hear(self, event: str, args: tuple[object, ...]) -> None:
        if not self.on:
            return
        offence = _offence(event, args)
        if offence:
            self.seen.append(offence)
            raise Stopped(offence)


_WATCH = _Watch()


def _offence(event: str, args: tuple[object, ...]) -> str | None:
    """A sentence when a parser may not do this: only our own package and the standard library may be read."""
    if event == "open":
        return _opens(args)
    if event == "exec":
        return _executes(args[0])
    if event == "import":
        top = str(args[0]).partition(".")[0]
        known = top in sys.stdlib_module_names or top in _PACKAGES or str(args[0]) in sys.modules
        return None if known else f"imports {args[0]}"
    if _FORBIDDEN.match(event):
        return f"raises the audit event {event}{args!r:.120}"
    return None


def _executes(code: object) -> str | None:
    if not isinstance(code, CodeType):
        return f"executes {code!r:.120}"
    name = code.co_filename
    known = name.startswith("<frozen ") or name == _TEMPLATE or code.co_names == _RAISES or _is_ours(name)
    return None if known else f"executes code from {name}"


def _opens(args: tuple[object, ...]) -> str | None:
    path, mode, flags = args
    if not isinstance(path, str | bytes | os.PathLike):
        return None  # a descriptor that is already open
    name = os.fsdecode(path)
    writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    if writes:  # a folder can be opened for writing only as a file without a name
        return None if os.path.isdir(name) else f"opens {name} for writing"
    if name == _PARSED:
        return None
    return None if _is_ours(name) else f"opens {name} ({mode})"


def _is_ours(name: str) -> bool:
    return os.path.realpath(name).startswith(_ROOTS)


@dataclass(frozen=True, slots=True)
class Harness:
    """Reads bytes by `registry` and says what went wrong.

    loaders: for each format's name, what the real library must see in an admitted file.
    """

    registry: Registry
    loaders: Mapping[str, Callable[[bytes], str | None]] = field(default_factory=dict)
    max_cpu_s: float = MAX_CPU_S
    max_growth_bytes: int = MAX_GROWTH_BYTES

    def failures(self, data: bytes, name: str) -> list[str]:
        """One sentence for each broken property; none for a parser that behaves."""
        first, wrong = self._watched(data, name)
        if first is None or wrong:
            return wrong
        second, wrong = self._watched(data, name)
        if second is None or wrong:
            return [f"the second reading: {reason}" for reason in wrong]
        if first.to_json() != second.to_json():
            return [f"two readings differ: {first.to_json()!r:.300} and {second.to_json()!r:.300}"]
        check = self.loaders.get(first.format)
        if check is not None and self.admits(first):
            return self._compared(check, data, first.format)
        return []

    def admits(self, report: Report) -> bool:
        rules = self.registry.rules()
        return all(rules[finding.rule].severity is Severity.NOTE for finding in report.findings)

    def _compared(self, check: Callable[[bytes], str | None], data: bytes, what: str) -> list[str]:
        try:
            difference = check(data)
        except Exception as error:  # noqa: BLE001 - any exception of a foreign library is its refusal
            return [
                f"admitted as {what}, and the real loader refuses: {type(error).__name__}: {error!s:.200}"
            ]
        return [f"admitted as {what}, and {difference}"] if difference else []

    def _watched(self, data: bytes, name: str) -> tuple[Report | None, list[str]]:
        """The report, and what the reading did that no reading may do."""
        wrong: list[str] = []
        report = None
        before = _reset_peak_bytes()
        began = time.process_time()
        try:
            with _watching(self.max_cpu_s):
                report = self.registry.read(BytesSource(data), name)
        except Stopped as stopped:
            wrong.append(str(stopped))
        except SteelyardError as error:
            wrong.append(f"raises {type(error).__name__}: {error.message}")
        except BaseException as error:  # that is what is looked for
            if isinstance(error, KeyboardInterrupt):
                raise
            wrong.append(f"raises {type(error).__name__}: {error!s:.200} at {_where(error)}")
        spent, grown = time.process_time() - began, _peak_bytes() - before
        if not wrong and spent > self.max_cpu_s:
            wrong.append(f"takes {spent:.1f} s of CPU time")
        if grown > self.max_growth_bytes:
            wrong.append(f"takes {grown >> 20} MB")
        wrong.extend(offence for offence in _WATCH.seen if offence not in wrong)
        return report, wrong


@contextmanager
def _watching(max_cpu_s: float) -> Iterator[None]:
    if not _WATCH.installed:
        sys.addaudithook(_WATCH.hear)
        _WATCH.installed = True
    _WATCH.seen.clear()
    previous = signal.signal(signal.SIGPROF, _too_slow)
    signal.setitimer(signal.ITIMER_PROF, max_cpu_s)
    _WATCH.on = True
    try:
        yield
    finally:
        _WATCH.on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
        if not gc.isenabled():
            gc.enable()


def _too_slow(number: int, frame: FrameType | None) -> None:
    _WATCH.on = False  # to show the line, its file is opened: by us, not by the parser
    raise Stopped(
        "takes more CPU time than allowed, now at " + "".join(traceback.format_stack(frame, 1)).strip()
    )


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


def _reset_peak_bytes() -> int:
    """Forget the highest memory so far where the system can (Linux); the new mark."""
    with suppress(OSError):
        _CLEAR.write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    try:
        found = re.search(rb"VmHWM:\s*(\d+) kB", _STATUS.read_bytes())
    except OSError:
        found = None
    if found:
        return int(found[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
