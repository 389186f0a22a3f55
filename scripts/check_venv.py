"""Is the virtual environment that runs this file whole, and made from the present requirements?

Standard library only. ``scripts/setup.sh`` runs it with the environment's own Python:

    python scripts/check_venv.py ready     0: nothing to do; 3: another llava; 1: set-up is needed
    python scripts/check_venv.py broken    names, as NAME==VERSION, packages with missing files
    python scripts/check_venv.py foreign   3, and says where, when `import llava` finds another one
    python scripts/check_venv.py stamp     writes down that the environment is complete
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOREIGN_LLAVA = 3


def requirements_key(root: Path = ROOT) -> str:
    """Hash of all that decides what is installed; another key means that set-up has to run."""
    digest = hashlib.sha256(f"{sys.version_info[:3]} {root}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def stamp_file() -> Path:
    """The stamp, written last, lies in the environment itself."""
    return Path(sys.prefix) / "visiondrop-setup.json"


def installed() -> dict[str, str]:
    """Name and version of every installed distribution."""
    found = importlib.metadata.distributions()
    return {str(dist.metadata["Name"]): dist.version for dist in found if dist.metadata["Name"]}


def broken_distributions() -> list[str]:
    """Distributions of which a file is missing or has another size than at installation."""
    broken = []
    for dist in importlib.metadata.distributions():
        name, record = dist.metadata["Name"], dist.read_text("RECORD")
        if not name or record is None:
            continue
        folder = str(dist.locate_file(""))
        for line in record.splitlines():
            path, _, size = line.rsplit(",", 2)
            path = path.strip('"')
            if path.endswith(".pyc"):
                continue
            try:
                whole = not size or os.stat(os.path.join(folder, path)).st_size == int(size)
            except OSError:
                whole = False
            if not whole:
                broken.append(f"{name}=={dist.version}")
                break
    return broken


def foreign_llava(root: Path = ROOT) -> str | None:
    """Where `import llava` would find another llava than this repository's, or None."""
    if "llava" in {name.lower() for name in installed()}:
        return f"a package named llava, version {importlib.metadata.version('llava')}"
    spec = importlib.util.find_spec("llava")
    places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
    for place in filter(None, places):
        if not Path(place).resolve().is_relative_to(root / "llava"):
            return place
    return None


def why_not_ready(root: Path = ROOT) -> str | None:
    """The first reason to run set-up again, or None."""
    try:
        stamp = json.loads(stamp_file().read_text())
    except (OSError, ValueError):
        return "set-up has not finished"
    if stamp.get("key") != requirements_key(root):
        return "the requirements, the folder or the Python version changed"
    now = installed()
    for name, version in stamp["distributions"].items():
        if now.get(name) != version:
            return f"{name} {version} was installed, now it is {now.get(name, 'missing')}"
    if broken := broken_distributions():
        return f"files are missing in {', '.join(broken)}"
    spec = importlib.util.find_spec("visiondrop")
    origin = Path(spec.origin).resolve() if spec and spec.origin else None
    if origin is None or origin.parent != root / "visiondrop":
        return f"`import visiondrop` does not find {root / 'visiondrop'}"
    return None


def write_stamp(root: Path = ROOT) -> None:
    """Writes the stamp in one step, so that there is a whole one or none."""
    content = {"key": requirements_key(root), "distributions": installed()}
    temporary = stamp_file().with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, stamp_file())


def main(command: str) -> int:
    # `python scripts/check_venv.py` has scripts/ on the path, not the current folder: llava and
    # visiondrop are found only where any other program in this environment would find them.
    if command in ("ready", "foreign") and (place := foreign_llava()):
        print(
            f"Another llava is installed here: {place}\n"
            "It would be imported in place of this repository's. Remove it "
            f"({sys.executable} -m pip uninstall llava, or take its folder out of PYTHONPATH) "
            "and run this again.",
            file=sys.stderr,
        )
        return FOREIGN_LLAVA
    if command == "ready" and (reason := why_not_ready()):
        print(reason)
        return 1
    if command == "broken":
        print("\n".join(broken_distributions()))
    if command == "stamp":
        write_stamp()
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("ready", "broken", "foreign", "stamp"):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
