"""Who may import whom: the rooms of experiments/ have one-way doors."""

import ast
import graphlib
import pathlib

import pytest

import experiments

ROOT = pathlib.Path(experiments.__file__).parents[1]

# Each room may import the rooms that stand before it and that it names.
BOTTOM = {"errors", "section", "options", "streams", "pictures"}
ROOMS = {
    "errors": set(),
    "streams": set(),
    "pictures": set(),
    "configs": set(),
    "section": {"errors"},
    "options": {"errors", "section"},
    "command_line": {"errors", "configs", "options"},
    "runtime": {"errors"},
    "data": {"errors", "options", "runtime"},
    "rundir": {"errors", "options", "pictures", "configs", "runtime", "data"},
    "models": {"errors", "options", "configs", "runtime"},
    "runs": {"errors", "options", "runtime", "data", "rundir"},
    "training": BOTTOM | {"runtime", "data", "rundir", "models", "runs"},
    "evaluation": BOTTOM | {"runtime", "data", "rundir", "models", "runs"},
    "drawing": BOTTOM | {"runtime", "data", "rundir", "models", "runs", "evaluation"},
    "sweeps": BOTTOM
    | {"command_line", "runtime", "data", "rundir", "models", "runs", "training"}
    | {"evaluation"},
    "main": BOTTOM
    | {"command_line", "runtime", "rundir", "models"}
    | {"training", "evaluation", "drawing"},
}


def modules() -> dict[str, pathlib.Path]:
    """Every module of experiments/, by its name."""
    files = (ROOT / "experiments").rglob("*.py")
    return {
        ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f
        for f in files
    }


def imported(file: pathlib.Path) -> set[str]:
    """The modules of experiments/ that a file imports, at its top or inside."""
    known, names = modules(), set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else node.module for name in full}
    return {name for name in names if name.split(".")[0] == "experiments"}


def room(module: str) -> str:
    """The room that a module is in, or is."""
    return [*module.split("."), ""][1]


def test_rooms_import_only_what_the_table_allows():
    wrong = [
        f"{module} imports {other}"
        for module, file in modules().items()
        for other in imported(file)
        if room(other) not in {room(module), *ROOMS[room(module)], ""}
    ]
    assert wrong == []


def test_every_room_is_in_the_table_and_every_door_is_used():
    names = {room(module) for module in modules()} - {""}
    assert names == set(ROOMS)
    used = {
        (room(module), room(other))
        for module, file in modules().items()
        for other in imported(file)
    }
    unused = [
        (name, other)
        for name, others in ROOMS.items()
        for other in others - BOTTOM
        if (name, other) not in used
    ]
    assert unused == []


def test_no_door_leads_back():
    before = set()
    for name, others in ROOMS.items():
        assert others <= before, f"{name} imports what stands after it"
        before.add(name)


def test_modules_import_each_other_in_no_circle():
    graph = {
        name: imported(file) - {name, "experiments"} for name, file in modules().items()
    }
    list(graphlib.TopologicalSorter(graph).static_order())  # raises for a circle


@pytest.mark.parametrize(
    "file", sorted((ROOT / "tools").rglob("*.py")), ids=lambda f: f.stem
)
def test_tools_use_public_names_of_experiments(file):
    tree = ast.parse(file.read_text())
    modules, private = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "experiments"
        ):
            modules |= {alias.asname or alias.name for alias in node.names}
            private += [a.name for a in node.names if a.name.startswith("_")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.attr
            if node.value.id in modules and name[0] == "_" and name[:2] != "__":
                private.append(f"{node.value.id}.{name}")
    assert private == []


def functions():
    """Every function of experiments/ but of configs, its lines, and the one above."""
    for name, file in modules().items():
        lines = file.read_text().splitlines()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name != "get_config":
                first = min([node, *node.decorator_list], key=lambda n: n.lineno).lineno
                above = lines[first - 2].strip() if first > 1 else ""
                yield f"{name}.{node.name}", node.end_lineno - node.lineno + 1, above


def test_functions_are_short():
    """At most 60 lines, and above 40 a comment says why."""
    assert [(name, n) for name, n, _ in functions() if n > 60] == []
    unexplained = [
        (name, n)
        for name, n, above in functions()
        if n > 40 and not above.startswith("#")
    ]
    assert unexplained == []
