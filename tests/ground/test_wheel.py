"""What the wheel holds. Built without a network."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
        + ["--quiet", "--disable-pip-version-check", "--wheel-dir", folder, REPOSITORY],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("visiondrop-*.whl")))


def test_two_packages_and_the_licence(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    info = next(top for top in tops if top.endswith(".dist-info"))
    assert tops == {"visiondrop", "llava", info}
    licence = wheel.read(f"{info}/licenses/LICENSE").decode()
    assert "Apache License" in licence


def test_every_source_file_of_both_packages(wheel):
    for package in ("visiondrop", "llava"):
        sources = {str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / package).rglob("*.py")}
        assert {n for n in wheel.namelist() if n.startswith(f"{package}/")} >= sources


def test_published_numbers_come_along(wheel):
    names = wheel.namelist()
    assert {f"llava/eval/published/{n}.csv" for n in ("published", "sources")} <= set(names)


def test_metadata(wheel):
    name = next(n for n in wheel.namelist() if n.endswith("METADATA"))
    lines = wheel.read(name).decode().splitlines()
    needed = {
        line.removeprefix("Requires-Dist: ").split("<")[0].split(">")[0]
        for line in lines
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    }
    assert needed == {"torch", "transformers", "pillow", "numpy", "safetensors"}
    assert "License-Expression: Apache-2.0" in lines
    assert "Requires-Python: >=3.11" in lines
