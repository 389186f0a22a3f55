"""What the documents tell people to type works: commands, flags, variables, code, links."""

import re
import shlex
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    path
    for path in [
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")),
        *sorted((REPOSITORY / "docs").glob("*.md")),
    ]
    if path.is_file()
]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M)


def named(items: list[tuple[Path, str]]) -> list:
    return [pytest.param(p, t, id=f"{p.name}-{i}") for i, (p, t) in enumerate(items)]


def commands(path: Path) -> list[list[str]]:
    """The words of every command of a document, pipes and lists cut apart."""
    out = []
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||[|;]", line):
                if words := shlex.split(part, comments=True):
                    out.append(words)
    return out


@cache
def help_of(module: str) -> str:
    """What `python -m module --help` prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, f"python -m {module} --help: {done.stderr[-500:]}"
    return done.stdout


def script_module(script: Path) -> str | None:
    """The module that a shell script hands its arguments to."""
    found = re.findall(r"python -m ([\w.]+).*\"\$@\"", script.read_text())
    return found[-1] if found else None


ALL_COMMANDS = [(path, " ".join(words)) for path in DOCUMENTS for words in commands(path)]


@pytest.mark.parametrize(
    ("path", "block"), named([(p, b) for p in DOCUMENTS for b in blocks(p, "bash")])
)
def test_shell_blocks_parse(path, block):
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("path", "command"), named(ALL_COMMANDS))
def test_commands_exist_and_take_their_flags_and_variables(path, command):
    words = shlex.split(command)
    variables = []
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        variables.append(words.pop(0).split("=")[0])
    if not words:
        return
    module, script, rest = None, None, words[1:]
    program = Path(words[0]).name
    if program == "bash":
        script = REPOSITORY / words[1]
        assert script.is_file(), f"{path.name} names {words[1]}, which is not there"
        module, rest = script_module(script), words[2:]
    elif program in ("python", "deepspeed", "torchrun") and "-m" in words:
        module, rest = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    elif program == "python" and len(words) > 1 and words[1].endswith(".py"):
        assert (REPOSITORY / words[1]).is_file()
        module, rest = words[1].removesuffix(".py").replace("/", "."), words[2:]
    if module and (REPOSITORY / module.split(".")[0]).is_dir():
        assert find_spec(module) is not None, f"no module {module}"
        for flag in (word.split("=")[0] for word in rest if word.startswith("--")):
            assert re.search(rf"{flag}(?![\w-])", help_of(module)), f"{module} has no {flag}"
    elif script is not None:
        for flag in (word for word in rest if word.startswith("--")):
            assert flag in script.read_text(), f"{script.name} has no {flag}"
    for variable in variables:
        sources = [script] if script else []
        if module:
            sources += (REPOSITORY / module.split(".")[0]).rglob("*.py")
        known = any(re.search(rf"\b{variable}\b", source.read_text()) for source in sources)
        assert known, f"nothing reads {variable}"


@pytest.mark.parametrize(
    ("path", "code"), named([(p, b) for p in DOCUMENTS for b in blocks(p, "python")])
)
def test_python_blocks_run(path, code, tmp_path):
    """In a folder of their own, which has the bundled model and data."""
    for shared in ("checkpoints", "playground"):
        (tmp_path / shared).symlink_to(REPOSITORY / shared)
    done = subprocess.run(
        [sys.executable, "-c", f"import torch; torch.set_num_threads(1)\n{code}"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{code}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    targets = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'(?:src|href)="([^"#]+)"', text)
    local = [t for t in targets if not re.match(r"[a-z]+:", t)]
    assert [t for t in local if not (path.parent / t).exists()] == []


def test_readme_tells_the_two_commands():
    said = [" ".join(words) for words in commands(REPOSITORY / "README.md")]
    assert "bash scripts/eval/textvqa.sh" in said
    assert "bash scripts/test.sh" in said
    for script in ("scripts/eval/textvqa.sh", "scripts/test.sh"):
        assert "scripts/setup.sh" in (REPOSITORY / script).read_text(), "it sets itself up"


def test_continuous_integration_runs_the_tests():
    runner = REPOSITORY / ".ci" / "run"
    assert runner.stat().st_mode & 0o111
    assert "scripts/test.sh" in runner.read_text()
    tests = (REPOSITORY / "scripts/test.sh").read_text()
    assert all(tool in tests for tool in ("ruff check", "ruff format --check", "mypy", "pytest"))


def test_citation_is_yaml_with_the_paper():
    import yaml

    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["license"] == "Apache-2.0"
    assert "2506.22283" in str(citation["preferred-citation"]["identifiers"])
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    assert any("python" in str(d) for d in environment["dependencies"])
