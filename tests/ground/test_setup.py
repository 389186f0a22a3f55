"""Set-up: what it notices, what it refuses, what it leaves alone. Without a network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path) -> Path:
    """A repository in small, set up: an environment with one package, and the stamp."""
    root = tmp_path / "clone"
    (root / "scripts").mkdir(parents=True)
    for script in ("setup.sh", "check_venv.py"):
        shutil.copy(REPOSITORY / "scripts" / script, root / "scripts")
    (root / "pyproject.toml").write_text("[project]\nname = 'visiondrop'\n")
    (root / "constraints.txt").write_text("thing==1.0\n")
    for package in ("visiondrop", "llava"):
        (root / package).mkdir()
        (root / package / "__init__.py").touch()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / ".venv"], check=True)
    site = site_packages(root)
    (site / "visiondrop.pth").write_text(f"{root}\n")
    add_distribution(site, "thing")
    assert check(root, "stamp").returncode == 0
    return root


def site_packages(root: Path) -> Path:
    return next((root / ".venv").glob("lib/python*/site-packages"))


def add_distribution(site: Path, name: str) -> None:
    (site / name).mkdir()
    (site / name / "__init__.py").write_text("answer = 42\n")
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text(
        f"{name}/__init__.py,sha256=x,12\n{name}/__pycache__/__init__.pyc,,\n"
        f"{name}-1.0.dist-info/RECORD,,\n"
    )


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHON")}
    return kept | more


def check(root: Path, command: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [root / ".venv/bin/python", root / "scripts/check_venv.py", command],
        capture_output=True, text=True, env=environment(**env),
    )  # fmt: skip


def setup(root: Path, more: str = "main", **env: str) -> subprocess.CompletedProcess:
    """Runs ``more`` in a shell that has set-up's functions."""
    return subprocess.run(
        ["bash", "-c", f'source "{root}/scripts/setup.sh"; {more}'],
        capture_output=True, text=True, env=environment(**env), stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_whole_environment_needs_nothing(clone):
    done = check(clone, "ready")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_second_run_installs_nothing(clone):
    """An installation that would start fails here: neither pip nor a network is there."""
    done = setup(clone, 'PATH=/nonexistent; install_all() { echo "installs"; exit 9; }; main')
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def lose_a_file(root):
    (site_packages(root) / "thing/__init__.py").unlink()


def truncate_a_file(root):
    (site_packages(root) / "thing/__init__.py").write_text("")


def lose_a_package(root):
    shutil.rmtree(site_packages(root) / "thing-1.0.dist-info")


def other_version(root):
    metadata = site_packages(root) / "thing-1.0.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "2.0"))


def lose_the_editable_install(root):
    (site_packages(root) / "visiondrop.pth").unlink()


def change_the_constraints(root):
    (root / "constraints.txt").write_text("thing==2.0\n")


def die_before_the_end(root):
    (root / ".venv/visiondrop-setup.json").unlink()


def tear_the_stamp(root):
    stamp = root / ".venv/visiondrop-setup.json"
    stamp.write_text(stamp.read_text()[:20])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lose_a_file, "files are missing in thing==1.0"),
        (truncate_a_file, "files are missing in thing==1.0"),
        (lose_a_package, "thing 1.0 was installed, now it is missing"),
        (other_version, "thing 1.0 was installed, now it is 2.0"),
        (lose_the_editable_install, "`import visiondrop` does not find"),
        (change_the_constraints, "the requirements, the folder or the Python version changed"),
        (die_before_the_end, "set-up has not finished"),
        (tear_the_stamp, "set-up has not finished"),
    ],
)
def test_damage_is_noticed_and_mended(clone, damage, reason):
    damage(clone)
    found = check(clone, "ready")
    assert found.returncode == 1
    assert reason in found.stdout
    mended = setup(
        clone,
        "venv_works() { true; }; install_all() { echo installs; }; "
        "verify() { echo verifies; }; main",
    )
    assert mended.returncode == 0, mended.stderr
    assert reason in mended.stdout
    assert mended.stdout.index("installs") < mended.stdout.index("verifies")
    assert not (clone / ".venv/visiondrop-setup.json").exists(), "the stamp is written last"


def test_what_is_broken_is_named_for_reinstallation(clone):
    add_distribution(site_packages(clone), "other")
    lose_a_file(clone)
    assert check(clone, "broken").stdout.split() == ["thing==1.0"]


def test_an_environment_without_a_python_is_made_anew(clone):
    for link in (clone / ".venv/bin").glob("python*"):
        link.unlink()
    (clone / ".venv/bin/python").symlink_to("/nonexistent/python3")
    done = setup(clone, "install_all() { :; }; verify() { :; }; main", PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert "making it anew" in done.stdout
    assert check(clone, "broken").returncode == 0
    assert not (site_packages(clone) / "thing").exists()


def test_a_folder_that_is_no_environment_is_left_alone(clone):
    shutil.rmtree(clone / ".venv")
    (clone / ".venv").mkdir()
    (clone / ".venv/thesis.txt").write_text("precious")
    done = setup(clone, PYTHON=sys.executable)
    assert done.returncode == 1
    assert "is not a virtual environment: move it away" in done.stderr
    assert (clone / ".venv/thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("where", ["PYTHONPATH", "site-packages", "metadata"])
def test_another_llava_stops_set_up(clone, tmp_path, where):
    env = {}
    if where == "PYTHONPATH":
        (tmp_path / "elsewhere/llava").mkdir(parents=True)
        (tmp_path / "elsewhere/llava/__init__.py").touch()
        env = {"PYTHONPATH": str(tmp_path / "elsewhere")}
    elif where == "site-packages":
        (site_packages(clone) / "llava").mkdir()
        (site_packages(clone) / "llava/__init__.py").touch()
    else:
        add_distribution(site_packages(clone), "LLaVA")
    assert check(clone, "ready", **env).returncode == 3
    stopped = setup(clone, 'install_all() { echo "installs"; }; main', **env)
    assert stopped.returncode == 1
    assert "Another llava is installed here" in stopped.stderr
    assert "pip uninstall llava" in stopped.stderr
    assert "installs" not in stopped.stdout


def test_another_llava_stops_set_up_before_the_first_installation(clone, tmp_path):
    (tmp_path / "elsewhere/llava").mkdir(parents=True)
    (tmp_path / "elsewhere/llava/__init__.py").touch()
    shutil.rmtree(clone / ".venv")
    stopped = setup(
        clone,
        'install_all() { echo "installs"; }; main',
        PYTHON=sys.executable,
        PYTHONPATH=str(tmp_path / "elsewhere"),
    )
    assert stopped.returncode == 1
    assert "Another llava is installed here" in stopped.stderr
    assert "installs" not in stopped.stdout


def fake_python(folder: Path, name: str, works: bool) -> Path:
    folder.mkdir(exist_ok=True)
    fake = folder / name
    fake.write_text(f"#!/bin/sh\nexit {0 if works else 1}\n")
    fake.chmod(0o755)
    return fake


def test_an_old_python_is_passed_over(clone, tmp_path):
    fake_python(tmp_path / "bin", "python3.11", works=False)
    new = fake_python(tmp_path / "bin", "python3.13", works=True)
    assert setup(clone, f'PATH="{tmp_path}/bin"; find_python').stdout.strip() == str(new)


def test_without_a_new_python_the_message_says_what_to_do(clone, tmp_path):
    fake_python(tmp_path / "bin", "python3", works=False)
    shutil.rmtree(clone / ".venv")
    done = setup(clone, f'PATH="{tmp_path}/bin"; make_venv')
    assert done.returncode == 1
    assert "No Python >= 3.11" in done.stderr
    assert "PYTHON=" in done.stderr


@pytest.mark.parametrize(
    ("machine", "index"),
    [
        ("has_nvidia_gpu() { false; }; reachable() { true; }", "https://download.pytorch.org/whl/cpu"),
        ("has_nvidia_gpu() { false; }; reachable() { false; }", ""),
        ("has_nvidia_gpu() { true; }; reachable() { true; }", ""),
        ("has_nvidia_gpu() { true; }; TORCH_INDEX=https://example.org/whl", "https://example.org/whl"),
    ],
)  # fmt: skip
def test_where_torch_comes_from(clone, machine, index):
    done = setup(clone, f"uname() {{ echo Linux; }}; {machine}; torch_index")
    assert done.stdout.strip() == index


def test_an_unreachable_index_is_given_up(clone):
    assert setup(clone, "reachable http://127.0.0.1:9/whl").returncode != 0


def test_a_failing_command_shows_the_end_of_its_log(clone, tmp_path):
    done = setup(
        clone, f'LOG="{tmp_path}/log"; quietly sh -c "echo the reason; exit 4" || echo failed'
    )
    assert done.stdout.strip() == "failed"
    assert "the reason" in done.stderr
