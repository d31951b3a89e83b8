# SPDX-License-Identifier: Apache-2.0
"""Facts about the machine that a figure is worth nothing without."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

from ..errors import BbsError
from ..toolchain import find_compiler

#: Instruction sets worth naming, as /proc/cpuinfo has them; arm and x86 share no names.
_FEATURES = (
    "ssse3", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512vbmi",
    "avx_vnni", "amx_int8", "neon", "vfpv4", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip
_LIBRARIES = (
    "numpy", "cffi", "pynq", "onnx", "onnxruntime", "torch", "scipy", "threadpoolctl",
)  # fmt: skip


def facts() -> dict[str, str]:
    """What is known of this machine and of the software, by name; what is not is left out."""
    info = _cpuinfo()
    found = {
        "processor": _processor(info),
        "architecture": platform.machine(),
        "instruction sets": _features(info.get("flags") or info.get("Features") or ""),
        "clock": _clock(info),
        "processors": _processors(),
        "caches": _caches(),
        "memory": _memory(),
        "board": _text("/proc/device-tree/model"),
        "virtual machine": "yes" if "hypervisor" in info.get("flags", "").split() else "",
        "system": f"{platform.system()} {platform.release()}",
        "load before": load(),
        "compiler": _compiler(),
        "python": platform.python_version(),
        "pynq-bbs": _version("pynq-bbs") or "not installed, run from a checkout",
        "commit": commit(),
    }
    found |= {library: _version(library) for library in _LIBRARIES}
    return {name: value for name, value in found.items() if value}


def load() -> str:
    """How many processes want to run, on average of a minute."""
    try:
        return f"{os.getloadavg()[0]:.1f}"
    except (OSError, AttributeError):
        return ""


def commit() -> str:
    """The checkout's commit, with a plus where files differ from it; empty outside of one."""
    here = Path(__file__).resolve().parent
    if not (here.parents[2] / ".git").exists():
        return ""
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        return head + "+" * bool(_git(here, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return ""


def _compiler() -> str:
    """What compiles our kernels and the emulator."""
    try:
        command = [*find_compiler(), "--version"]
        return subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[0]
    except (OSError, BbsError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def _cpuinfo() -> dict[str, str]:
    """Of the first processor; what stands behind all of them on arm as well."""
    found: dict[str, str] = {}
    for line in _text("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def _processor(info: dict[str, str]) -> str:
    """Its name, or on 64-bit arm, whose kernel tells none, the numbers of maker and core."""
    name = info.get("model name") or info.get("Hardware")
    if not name and "CPU part" in info:
        name = f"arm core {info['CPU part']} of maker {info.get('CPU implementer', '?')}"
    return name or platform.processor()


def _features(flags: str) -> str:
    present = set(flags.split())
    return ", ".join(name for name in _FEATURES if name in present)


def _clock(info: dict[str, str]) -> str:
    policy = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    now, most = info.get("cpu MHz", ""), _text(policy / "cpuinfo_max_freq")
    governor = _text(policy / "scaling_governor")
    parts = [f"{float(now):.0f} MHz now"] if now else []
    parts += [f"{int(most) / 1000:.0f} MHz at most"] if most.isdigit() else []
    return ", ".join([*parts, *([f"governor {governor}"] if governor else [])])


def _processors() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} of {os.cpu_count()} usable"


def _caches() -> str:
    texts = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_text(folder / n) for n in ("level", "type", "size"))
        if kind != "Instruction" and size:
            texts.append(f"L{level} {size}")
    return ", ".join(texts)


def _memory() -> str:
    found = re.search(r"MemTotal:\s+(\d+) kB", _text("/proc/meminfo"))
    return f"{int(found[1]) / 2**20:.1f} GiB" if found else ""


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip().strip("\0")
    except OSError:
        return ""


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""
