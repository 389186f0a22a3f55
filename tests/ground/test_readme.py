"""What the documents tell people to type works: commands, flags, variables, code, links."""

import json
import re
import shlex
import subprocess
import sys
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
    """The words of every command of a document, pipes and lists cut apart, and of inline ones."""
    out = []
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||[|;]", line):
                if words := shlex.split(part, comments=True):
                    out.append(words)
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    inline = re.findall(r"`((?:bash|python) [^`]+)`", text)
    return out + [shlex.split(line) for line in inline]


HELP = """
import contextlib, io, json, runpy, sys
out = {}
for module in sys.argv[1:]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        saved, sys.argv = sys.argv, [module, "--help"]
        runpy.run_module(module, run_name="__main__")
    sys.argv, out[module] = saved, text.getvalue()
print(json.dumps(out))
"""


def help_of(modules: set[str]) -> dict[str, str]:
    """What `python -m module --help` prints, of each; in one process, since torch loads slowly."""
    done = subprocess.run(
        [sys.executable, "-c", HELP, *sorted(modules)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    return json.loads(done.stdout.splitlines()[-1])


def chain(script: Path) -> list[Path]:
    """A shell script, and those that it hands its arguments to, one after the other."""
    found = re.search(r'/([\w./]+\.sh)" .*"\$@"', script.read_text())
    return [script, *(chain(script.parent / found[1]) if found else [])]


def script_module(script: Path) -> str | None:
    """The module that a shell script hands its arguments to, by itself or by another script."""
    found = re.findall(r"python -m ([\w.]+).*\"\$@\"", chain(script)[-1].read_text())
    return found[-1] if found else None


@pytest.mark.parametrize(
    ("path", "block"), named([(p, b) for p in DOCUMENTS for b in blocks(p, "bash")])
)
def test_shell_blocks_parse(path, block):
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def parts(words: list[str]) -> tuple[list[str], Path | None, str | None, list[str]]:
    """Of a command: variables set before it, the script, the Python module, the other words."""
    variables = []
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.S):
        variables.append(words[0].split("=")[0])
        words = words[1:]
    program = Path(words[0]).name if words else ""
    if program == "bash" and len(words) > 1:
        script = REPOSITORY / words[1]
        return variables, script, script_module(script) if script.is_file() else None, words[2:]
    if "-m" in words[:4]:
        place = words.index("-m")
        module = words[place + 1]
        if (REPOSITORY / module.split(".")[0]).is_dir():
            return variables, None, module, words[place + 2 :]
    return variables, None, None, []


def test_commands_exist_and_take_their_flags_and_variables():
    said = [(path.name, parts(words)) for path in DOCUMENTS for words in commands(path)]
    modules = {module for _, (_, _, module, _) in said if module}
    assert "llava.eval.run_benchmark" in modules
    wrong = [f"no module {module}" for module in modules if find_spec(module) is None]
    assert wrong == []
    printed = help_of(modules)
    for document, (variables, script, module, rest) in said:
        flags = {word.split("=")[0] for word in rest if word.startswith("--")}
        if script and script.stem == "NAME" and any(script.parent.glob("*.sh")):
            continue  # stands for any script of that folder
        if script and not script.is_file():
            wrong.append(f"{document}: no {script.relative_to(REPOSITORY)}")
            continue
        known = printed[module] if module else script.read_text() if script else ""
        wrong += [
            f"{document}: {module or script} has no {flag}"
            for flag in flags
            if (module or script) and not re.search(rf"{flag}(?![\w-])", known)
        ]
        sources = chain(script) if script else []
        if module:
            sources += (REPOSITORY / module.split(".")[0]).rglob("*.py")
        text = "\n".join(source.read_text() for source in sources)
        wrong += [
            f"{document}: nothing reads {variable}"
            for variable in variables
            if sources and not re.search(rf"\b{variable}\b", text)
        ]
    assert wrong == []


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
    for script in ("scripts/benchmark.sh", "scripts/test.sh"):
        assert "scripts/setup.sh" in (REPOSITORY / script).read_text(), "it sets itself up"
    for script in (REPOSITORY / "scripts" / "eval").glob("*.sh"):
        assert f'benchmark.sh" {script.stem} "$@"' in script.read_text(), script.name
        assert script.stat().st_mode & 0o111, script.name


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
