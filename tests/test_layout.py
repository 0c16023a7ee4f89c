"""The rules of the layout: who may import whom, how long a file may be, what no file may name."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "consumers", "producers")
FOLDERS = {*PACKAGES, "tests", "deploy", ".ci"}
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# A module imports from its own part and from parts before it; parts of one line don't import each other.
ORDER = (
    ("pipeline.errors", "pipeline.roles", "pipeline.kernels", "pipeline.thread_limits"),
    ("pipeline.settings",),
    ("pipeline.events",),
    ("pipeline.state",),
    ("pipeline.outcome",),
    ("pipeline.features",),
    ("pipeline.models",),
    ("pipeline.ranking",),
    ("pipeline.evaluation",),
    ("pipeline.describe", "pipeline.step_metrics"),
    ("pipeline.recommender",),
    ("pipeline.warm_up",),
    ("pipeline.persistence",),
    ("pipeline.service",),
    ("consumers",),
    ("producers",),
    ("pipeline.app",),
)
MAX_LINES = 400


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


def part_of(module: str) -> tuple[int, str]:
    for place, parts in enumerate(ORDER):
        for part in parts:
            if is_in(module, part):
                return place, part
    raise AssertionError(f"{module}: its part is not in ORDER")


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists()]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_short_and_imports_only_what_its_part_may(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES
    module, imported = name_of(path), list(imports(path))
    if module == "pipeline":
        assert not imported
        return
    place, part = part_of(module)
    for name in imported:
        if name.split(".")[0] in PACKAGES:
            there, other = part_of(name)
            assert other == part or there < place, f"{module} imports {name}"
    if is_in(module, "pipeline") and not is_in(module, "pipeline.app"):
        outside = {"kafka", "noida_db", "consumers", "producers"}
        assert not outside & {name.split(".")[0] for name in imported}


def test_the_rule_of_imports_sees_what_it_forbids(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("import kafka.errors\ndef f():\n    from pipeline.service import loop\n", "utf-8")
    assert list(imports(path)) == ["kafka.errors", "pipeline.service.loop"]
    assert part_of("pipeline.service.loop") > part_of("pipeline.evaluation.drift")


def test_no_module_has_the_name_of_a_library() -> None:
    installed = importlib.metadata.packages_distributions()
    others = {name for name, distributions in installed.items() if set(distributions) != {"afresh"}}
    required = importlib.metadata.requires("afresh") or []
    runtime = {re.split(r"[^\w-]", line)[0] for line in required if "extra ==" not in line}
    on_the_path = {*PACKAGES, *(path.stem for path in (ROOT / "tests").rglob("*.py"))} - {
        "__init__",
        "conftest",
    }
    assert not on_the_path & (others | sys.stdlib_module_names)
    needed = {name for name in others if runtime & set(installed[name])}
    assert {"kafka", "torch", "numba"} <= needed
    assert not {path.stem for path in MODULES} & needed  # inside a package it would only mislead
    assert not {path.name for path in (ROOT / "tests").iterdir()} & set(PACKAGES)


def test_no_other_folder_stands_at_the_top() -> None:
    folders = {path.relative_to(ROOT).parts[0] for path in tracked() if path.parent != ROOT}
    assert folders <= FOLDERS


def test_no_file_names_a_folder_of_one_machine() -> None:
    here = re.compile("|".join(["/" + "work/", "/" + "root/", "/" + r"home/\w", r"\.\./" + "shared"]))
    for path in tracked():
        text = path.read_bytes().decode("utf-8", "replace")
        if path == ROOT / ".ci" / "run":
            text = text.replace("../" + "shared", "")
        found = here.search(text)
        assert found is None, f"{path.relative_to(ROOT)}: {found[0]}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_paths_in_the_documents_exist(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    for path in re.findall(rf"(?<![\w/.-])(?:{'|'.join(sorted(PACKAGES))}|tests|deploy)/[\w./-]*\w/?", text):
        assert (ROOT / path).exists(), path
