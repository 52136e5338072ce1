"""Each room imports from itself and from the rooms above it only (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "video_diffusion"
ORDER = ("model", "data", "metrics", "digit_reader", "hub", "training", "sampling", "evaluation")
# What `from_pretrained`, `save_pretrained` and `push_to_hub` of the pipeline import when they are called.
OF_METHODS = {f"video_diffusion.hub.{name}" for name in ("finding", "folder", "integrity", "loading", "publish")}
TOP = ("commands", "demo", "cli")  # may import everything below; nothing below imports them
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


def room_of(name: str) -> str:
    """`video_diffusion.hub.folder` → `hub`; a name that the package itself gives is of the model."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "model"


def imported(file: Path) -> set[str]:
    """The modules of the package, and of the repository's top, that a file names in its imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            plain = node.module == "video_diffusion"
            inside = [alias.name for alias in node.names if plain and (PACKAGE / alias.name).is_dir()]
            names |= {f"video_diffusion.{name}" for name in inside} or {node.module}
        elif isinstance(node, ast.ImportFrom):
            names.add(f"video_diffusion.{file.relative_to(PACKAGE).parts[0]}")
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_a_room_imports_only_from_itself_and_from_rooms_above_it(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    names = {name for name in imported(file) if name.split(".")[0] == "video_diffusion"}
    ours = {room_of(name) for name in (names - OF_METHODS if file.name == "pipeline.py" else names)}
    allowed = {*ORDER, *TOP} if room in TOP else {*ORDER[: ORDER.index(room) + 1]}
    assert ours <= allowed


def test_the_rooms_are_those_of_the_page():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == {*ORDER, *TOP} - {"sampling", "cli"}
    table = page[: page.index("```mermaid")]
    places = [table.index(f"`{room}/`" if room != "sampling" else "`sampling.py`") for room in ORDER]
    assert places == sorted(places)


def test_what_travels_to_the_hub_imports_third_party_packages_and_its_neighbours_only():
    for file in (PACKAGE / "model").glob("*.py"):
        names = {name for name in imported(file) if name.startswith("video_diffusion")}
        methods = OF_METHODS if file.name == "pipeline.py" else set()
        assert names <= {"video_diffusion.model"} | methods, file


def test_what_only_the_package_can_do_for_the_pipeline_is_imported_inside_of_its_methods():
    """The file has to load where there is no package: at its top it must not name it."""
    tree = ast.parse((PACKAGE / "model" / "pipeline.py").read_text(encoding="utf-8"))
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    inside = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not top & OF_METHODS
    assert inside >= OF_METHODS


def test_nothing_in_the_package_imports_what_stands_beside_it():
    for file in FILES:
        assert not {name.split(".")[0] for name in imported(file)} & {"benchmarks", "tests", "ablate", "trials"}, file


def test_benchmarks_and_scripts_import_the_package_and_never_its_commands():
    scripts = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "training").rglob("*.py")]
    for file in scripts:
        assert not {
            name for name in imported(file) if name.startswith(("video_diffusion.commands", "video_diffusion.cli"))
        }
