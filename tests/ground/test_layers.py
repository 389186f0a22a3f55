"""Who may import whom, and what no file of this repository may hold. Read from the sources."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
STANDARD = set(sys.stdlib_module_names)


def tracked(*patterns: str) -> list[Path]:
    """Files under version control, or all files where this is no checkout."""
    git = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=REPOSITORY, capture_output=True, text=True
    )
    if git.returncode == 0 and git.stdout:
        found = [REPOSITORY / name for name in git.stdout.split("\0") if name]
    else:
        kept = (p for p in REPOSITORY.rglob("*") if ".venv" not in p.parts and p.is_file())
        found = [p for p in kept if not patterns or any(p.match(pattern) for pattern in patterns)]
    return [path for path in found if path.is_file()]


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


def package_imports(package: str) -> dict[str, set[str]]:
    """Outside packages that each file of a package imports."""
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files, f"{package} has no files"
    return {str(f.relative_to(REPOSITORY)): imports(f) - STANDARD - {package} for f in files}


def test_visiondrop_imports_its_five_dependencies_only():
    allowed = {"torch", "transformers", "PIL", "numpy", "safetensors"}
    # The one fast path that needs more is taken only where that is installed.
    kernel = {"visiondrop/kernels/column_sums.py": {"triton"}}
    wrong = {
        f: found - allowed - kernel.get(f, set())
        for f, found in package_imports("visiondrop").items()
    }
    assert {f: found for f, found in wrong.items() if found} == {}


def test_importing_visiondrop_loads_nothing_of_the_extras():
    """The same at run time: also what an import brings along by another way."""
    code = (
        "import sys, visiondrop, visiondrop.methods, visiondrop.profiling\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    assert "torch" in loaded
    assert not loaded & {"llava", "analysis", "rich", "matplotlib", "seaborn", "deepspeed", "wandb"}
    assert "triton" not in loaded


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("visiondrop", {"llava", "analysis"}),
        ("llava", {"analysis", "benchmarks", "tests"}),
        ("analysis", {"benchmarks", "playground", "tests"}),
    ],
)
def test_layers(package, never):
    wrong = {f: found & never for f, found in package_imports(package).items()}
    assert {f: found for f, found in wrong.items() if found} == {}


def test_every_import_of_the_wheel_is_declared():
    """What visiondrop and llava import is a dependency of the project or of one of its extras."""
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + [line for lines in extras.values() for line in lines]
    names = {re.split(r"[\[<>=~! ]", line)[0].lower() for line in lines}
    module_of = {"pillow": "pil"}
    declared = {module_of.get(name, name.replace("-", "_")) for name in names}
    ours = {"visiondrop", "llava"}
    undeclared = {}
    for file, found in (package_imports("visiondrop") | package_imports("llava")).items():
        # The pocket model's recipe needs the scene generator: a clone has it, the wheel does not.
        here = {"playground"} if file.startswith("llava/train/pocket_") else set()
        if rest := {name for name in found if name.lower() not in declared | ours | here}:
            undeclared[file] = rest
    assert undeclared == {}


def test_constraints_name_every_requirement_and_no_torchvision():
    import tomllib

    pinned = {}
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert version, f"not an exact version: {line}"
            pinned[name.lower().replace("_", "-")] = version
    assert pinned["torch"] == "2.13.0"
    assert int(pinned["pillow"].split(".")[0]) < 13
    assert "torchvision" not in pinned
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [
        line for lines in project["optional-dependencies"].values() for line in lines
    ]
    wanted = {re.split(r"[\[<>=~! ]", line)[0].lower().replace("_", "-") for line in lines}
    # CUDA builds of torch bring a Triton of their own, which no pin may contradict; what quantises
    # is chosen by the user and large.
    assert wanted - set(pinned) == {"visiondrop", "triton", "bitsandbytes", "torchao"}


def test_extras_all_holds_every_extra():
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = re.fullmatch(r"visiondrop\[(.*)\]", extras["all"][0]).group(1).split(",")
    assert set(named) == set(extras) - {"all", "kernels", "quantize"}


def test_files_stay_short():
    long = {
        str(path.relative_to(REPOSITORY)): lines
        for path in tracked("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 350
    }
    assert long == {}


# Put together from parts, so that this file is not its own first finding.
MACHINE = re.compile(
    "|".join("/" + place for place in ("work/", "root/", "opt/wheels", "tmp/brief"))
)
CALLS = "(?<![.a-z_])(?:{})[(]".format("|".join(("eval", "exec")))
LOADS = "pickle[.]load|torch[.]load[(](?!.*weights_only=True)"
DANGEROUS = re.compile(f"{CALLS}|{LOADS}")


def findings(pattern: re.Pattern, files: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_path_of_one_machine():
    files = tracked("*.py", "*.sh", "*.md", "*.toml", "*.yml", "*.cff", "*.ipynb", "*.cfg", "*.txt")
    assert findings(MACHINE, files) == []


def test_nothing_is_unpickled_or_evaluated():
    assert findings(DANGEROUS, tracked("*.py")) == []


def test_no_attention_maps_and_no_torchvision_in_the_packages():
    files = [*(REPOSITORY / "visiondrop").rglob("*.py"), *(REPOSITORY / "llava").rglob("*.py")]
    assert findings(re.compile(r"output_attentions\s*=\s*True"), files) == []
    assert findings(re.compile(r"^\s*(import|from) torchvision"), files) == []


@pytest.mark.parametrize("call", ["eval{}text)", "pickle.{}load(f)", "torch.load{}path)"])
def test_the_search_for_dangerous_calls_finds_them(call):
    assert DANGEROUS.search("x = " + call.format("(").replace("(load", "load"))
    assert not DANGEROUS.search(
        "model.eval{} torch.load{}path, weights_only=True)".format("()", "(")
    )
