"""The rules that hold the project together: who imports whom, what is installed, what is saved."""

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "initlab"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# The floors of the building, lowest first. A module imports only from floors below its own; one
# that is not listed here does not belong anywhere yet. A room that is a package has floors of its
# own, in ROOMS, and one door, its __init__. Others come in by the door (`from initlab.tracing
# import Trace`) and never name a file behind it; the files inside name each other, and never the
# door. Only explorers/ is all doors: each of its apps stands for itself.
FLOORS = [
    {"errors", "expectations", "tables"},
    {"activations", "data"},
    {"theory", "tracing", "networks"},
    {"layers"},
    {"schemes"},
    {"initialize", "prediction", "diagnosis"},
    {"weights", "scripts"},
    {"experiment"},
    {"live", "plots", "lessons"},
    {"explorers"},
    {"__init__"},
]
ROOMS = {
    "theory": [{"mean_field", "finite_width"}],
    "tracing": [
        {"measuring", "operations", "preserving", "checkpoints"},
        {"units", "records"},
        {"origins", "gradients"},
        {"observing", "sites"},
        {"running"},
    ],
    "layers": [{"slots"}, {"surroundings"}],
    "schemes": [{"entry"}, {"structured", "whole_model"}, {"catalogue"}],
    "initialize": [{"reach", "report"}, {"initializing"}],
    "prediction": [
        {"many", "units"},
        {"propagation"},
        {"scattering", "shifting"},
        {"outliers", "shifting_back"},
        {"predicting"},
    ],
    "diagnosis": [
        {"findings", "draws"},
        {"flow"},
        {"openings", "remedies"},
        {"faults_of_gradients", "faults_of_scale", "faults_of_units"},
        {"diagnosing"},
    ],
    "weights": [{"laws"}, {"layer"}],
    "plots": [{"numbers", "views"}, {"curves"}, {"weights"}],
    "explorers": [
        {"controls", "draggable", "explorer", "finding", "plane"},
        {"phase_picture", "model_picture", "model_trial", "model_words"},
        {"phase_point"},
        {"signal", "scheme", "phase", "model"},
    ],
}

MATPLOTLIB_ROOMS = {"plots", "live"}
WIDGET_ROOMS = {"live", "explorers"}
HEAVY = {"matplotlib", "ipywidgets", "anywidget", "pandas", "scipy", "sklearn"}

# Packages that are imported, or are called in conda, by another name than the one pip installs.
PIP_NAME = {
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "pytorch-cpu": "torch",
    "matplotlib-base": "matplotlib",
}


def project_files() -> list[Path]:
    """Every file that git tracks or would track."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def text_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="ignore")


# ---- imports


@cache
def modules() -> dict[str, ast.Module]:
    """Module below initlab ("tracing.sites", "tracing", "__init__") -> its syntax tree."""
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if len(parts) > 1 and parts[-1] == "__init__":
            parts = parts[:-1]
        trees[".".join(parts)] = ast.parse(path.read_text(), filename=str(path))
    return trees


def imported(node: ast.AST, importer: str) -> list[str]:
    """The full dotted names that one import statement brings in; [] for any other node."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    source = node.module or ""
    if node.level:
        is_package = importer == "__init__" or importer in ROOMS
        here = ["initlab"] if importer == "__init__" else ["initlab", *importer.split(".")]
        base = here[: len(here) - node.level + is_package]
        source = ".".join([*base, *filter(None, [node.module])])
    # `from initlab import plots` brings in a module, `from initlab.plots import plot` a name of one
    return [f"{source}.{alias.name}" for alias in node.names]


def imported_modules(node: ast.AST, importer: str) -> set[str]:
    """Which modules of initlab one import statement reaches."""
    found = set()
    for name in imported(node, importer):
        package, *parts = name.split(".")
        if package != "initlab":
            continue
        candidates = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
        not_written_yet = parts[0] if len(parts) > 1 else "__init__"
        found.add(next((c for c in candidates if c in modules()), not_written_yet))
    return found


def imported_packages(tree: ast.Module, importer: str) -> set[str]:
    names = {name for node in ast.walk(tree) for name in imported(node, importer)}
    return {name.split(".")[0] for name in names}


def room(module: str) -> str:
    return module.partition(".")[0]


def floor_of(name: str, floors: list[set[str]]) -> int:
    heights = [height for height, floor in enumerate(floors) if name in floor]
    assert len(heights) == 1, f"{name} is on {len(heights)} floors: give it one"
    return heights[0]


def floor_in_room(module: str) -> int:
    """The floor of a module among those of its room; the door is above them all."""
    own, _, inner = module.partition(".")
    floors = ROOMS.get(own, [])
    return floor_of(inner, floors) if inner else len(floors)


def is_below(other: str, module: str) -> bool:
    if room(other) == room(module):
        return floor_in_room(other) < floor_in_room(module)
    return floor_of(room(other), FLOORS) < floor_of(room(module), FLOORS)


def test_modules_import_only_from_the_floors_below():
    upward = [
        f"{module} imports {other}"
        for module, tree in modules().items()
        for node in ast.walk(tree)
        for other in sorted(imported_modules(node, module))
        if not is_below(other, module)
    ]
    assert not upward, upward


def test_every_module_has_its_floor_in_the_plan():
    planned = {f"{own}.{name}" for own, floors in ROOMS.items() for name in set().union(*floors)}
    assert planned == {module for module in modules() if "." in module}
    assert {room(module) for module in modules()} <= set().union(*FLOORS)


def test_a_room_is_entered_by_its_door():
    past_the_door = [
        f"{module} imports {other}"
        for module, tree in modules().items()
        for node in ast.walk(tree)
        for other in sorted(imported_modules(node, module))
        if "." in other and room(other) not in {room(module), "explorers"}
    ]
    assert not past_the_door, past_the_door


def test_a_door_only_hands_out_what_is_behind_it():
    """So there is one place to look for code; and no name hides a file of the room."""
    for own in ROOMS.keys() - {"explorers"}:
        _docstring, *imports, names = modules()[own].body
        assert all(isinstance(node, ast.ImportFrom) for node in imports), own
        sources = {module for node in imports for module in imported_modules(node, own)}
        assert all(room(module) == own != module for module in sources), own
        handed_out = {name.rpartition(".")[2] for node in imports for name in imported(node, own)}
        assert isinstance(names, ast.Assign), own
        assert set(ast.literal_eval(names.value)) == handed_out, own
        assert not {f"{own}.{name}" for name in handed_out} & modules().keys(), own


def test_imports_have_no_circle():
    graph = {
        module: {other for node in ast.walk(tree) for other in imported_modules(node, module)}
        for module, tree in modules().items()
    }
    TopologicalSorter(graph).prepare()


def test_no_function_hides_an_import_of_our_own():
    hidden = [
        f"{module}, line {node.lineno}"
        for module, tree in modules().items()
        if module != "__init__"  # lazy by its __getattr__
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom) and imported_modules(node, module)
    ]
    assert not hidden, hidden


@pytest.mark.parametrize(
    ("packages", "rooms"),
    [
        ({"matplotlib"}, MATPLOTLIB_ROOMS),
        ({"ipywidgets", "anywidget", "traitlets"}, WIDGET_ROOMS),
    ],
)
def test_drawing_and_widgets_stay_in_their_rooms(packages, rooms):
    strays = {
        module: found
        for module, tree in modules().items()
        if room(module) not in rooms and (found := packages & imported_packages(tree, module))
    }
    assert not strays, strays


@pytest.mark.parametrize("statement", ["import initlab", "from initlab import Experiment, trace"])
def test_importing_initlab_imports_nothing_heavy(statement):
    code = f"{statement}; import sys; print(*({HEAVY!r} & sys.modules.keys()))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert result.stdout.split() == []


# ---- dependencies


def requirements(*extras: str) -> dict[str, Requirement]:
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def conda_dependencies() -> dict[str, str]:
    """Name as pip knows it -> version constraint, for each conda package."""
    lines = re.findall(r"^  - ([a-z][\w.-]*)([=<>].*)?$", text_of(ROOT / "environment.yml"), re.M)
    found = {PIP_NAME.get(name, name): version for name, version in lines}
    return {name: version for name, version in found.items() if name not in {"conda-forge", "pip"}}


def lowest(version: str) -> str:
    """The lowest version that a conda constraint admits: ">=8.1" -> "8.1", "=2.13.*" -> "2.13"."""
    match = re.fullmatch(r"(?:>=|=)([\d.]*\d)(?:\.\*)?", version)
    assert match, f"a conda version is written >=1.2, =1.2 or =1.2.*, not {version}"
    return match[1]


def test_every_import_is_a_declared_dependency():
    declared = requirements().keys() | {"initlab", "traitlets"} | sys.stdlib_module_names
    undeclared = {
        module: missing
        for module, tree in modules().items()
        if (missing := {PIP_NAME.get(p, p) for p in imported_packages(tree, module)} - declared)
    }
    assert not undeclared, undeclared


def test_conda_installs_what_pyproject_asks_for():
    conda = conda_dependencies()
    wanted = {name: r.specifier for name, r in requirements("lab").items()}
    wanted["python"] = SpecifierSet(PROJECT["requires-python"])
    assert conda.keys() == wanted.keys()
    too_low = {name: v for name, v in conda.items() if not wanted[name].contains(lowest(v))}
    assert not too_low, too_low


def test_the_lock_satisfies_every_requirement():
    pins = re.findall(r"^([\w.-]+)==(\S+)$", text_of(ROOT / "requirements.lock"), re.M)
    locked = {canonicalize_name(name): version for name, version in pins}
    unmet = [
        str(r)
        for name, r in requirements("lab", "test", "dev").items()
        if not r.specifier.contains(locked.get(name, "0"))
    ]
    assert not unmet, f"{unmet}: run make lock"


def test_the_lock_asks_for_no_particular_build_or_host():
    lines = text_of(ROOT / "requirements.lock").splitlines()
    odd = [line for line in lines if not re.match(r"#|[\w.-]+==[\w.]+$", line)]
    assert not odd, odd


# ---- Binder


def test_the_two_environment_files_are_equal():
    assert text_of(ROOT / "environment.yml") == text_of(ROOT / "binder/environment.yml")


def test_binder_takes_python_3_12_and_the_conda_environment(tmp_path):
    for path in project_files():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    rendered = subprocess.run(
        [sys.executable, "-m", "repo2docker", "--no-build", "--debug",
         "--user-id=1000", "--user-name=jovyan", str(tmp_path)],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    output = rendered.stdout + rendered.stderr

    assert "Building conda environment for python=3.12\n" in output
    assert re.search(r"^COPY .*environment-2epy-2d3-2e12-2dlinux.*\.lock", output, re.M)
    assert 'env update -p ${NB_PYTHON_PREFIX} --file "binder/environment.yml"' in output
    assert "RUN ./binder/postBuild" in output
    assert 'ENV R2D_ENTRYPOINT="${REPO_DIR}/binder/start"' in output
    # The environment is a layer below the repository's files, so that a commit does not rebuild it.
    assert output.index("env update -p") < output.index("COPY --chown=1000:1000 src/ ")
    assert not re.search(r"pip install.*(requirements|-e)", output)


@pytest.mark.parametrize("script", ["binder/postBuild", "binder/start", ".ci/run"])
def test_scripts_can_be_executed_and_stop_at_the_first_error(script):
    assert os.access(ROOT / script, os.X_OK)
    assert "\nset -euo pipefail\n" in text_of(ROOT / script)


def test_binder_start_runs_the_server_with_one_thread():
    command = [str(ROOT / "binder/start"), "sh", "-c", "echo $OMP_NUM_THREADS"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stdout == "1\n"


# ---- what is committed


def test_make_lab_opens_a_notebook_that_exists():
    """By address, not as an argument: JupyterLab prints the one, and forgets the other."""
    recipe = (ROOT / "Makefile").read_text()
    root = re.search(r"--ServerApp.root_dir=(\S+)", recipe)
    first = re.search(r"^FIRST := (\S+)$", recipe, re.M)
    assert root
    assert first
    assert "--LabApp.default_url=/lab/tree/$(FIRST)" in recipe
    assert (ROOT / root[1] / first[1]).is_file()


def test_no_file_names_a_machine():
    own = {str(Path.home()), str(ROOT), sys.prefix}
    host = socket.gethostname()
    if len(host) > 8:  # a short one ("debian") may be an ordinary word
        own.add(host)
    anywhere = re.compile(
        r"(?<![\w.$}/-])/(?:work|root|home|tmp|opt|Users)/\w"
        r"|\b(?!127\.0\.0\.1)(?:10|127|172|192)(?:\.\d{1,3}){3}\b"
        r"|(?:index-url|find-links)[ =]+(?!https://download\.pytorch\.org/)\w*:?/"
        "|" + "|".join(rf"{re.escape(name)}\b" for name in own if len(name) > 1)
    )
    named = {
        str(path.relative_to(ROOT)): match[0]
        for path in project_files()
        if (match := anywhere.search(text_of(path)))
    }
    assert not named, named


def test_the_address_of_the_repository_is_the_same_everywhere():
    owner_and_name = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
    mention = re.compile(r"(?:github\.com/|mybinder\.org/v2/gh/)([\w-]+/initlab)\b")
    others = {
        str(path.relative_to(ROOT)): found
        for path in project_files()
        if (found := set(mention.findall(text_of(path))) - {owner_and_name})
    }
    assert not others, others


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_saved_executed_in_order_and_without_errors(path):
    notebook = json.loads(path.read_text())
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code" and "".join(c["source"])]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_hold_nothing_that_changes_from_run_to_run(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"].keys() == {"kernelspec", "language_info"}, "run make notebooks"
    assert notebook["metadata"]["language_info"] == {"name": "python"}, "run make notebooks"
    assert "application/vnd.jupyter.widget-view+json" not in path.read_text(), "run make notebooks"
