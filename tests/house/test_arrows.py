"""The house stands: imports run down, every module has one wing, no two things share a name (docs/architecture.md)."""

import ast
import importlib
import inspect
import re
from graphlib import CycleError, TopologicalSorter

import pytest
from places import DOCS, ROOT

# Each floor stands on those above it in this list; the wings of one floor do not import each other.
CORE = [
    {"arguments", "conditions", "errors", "files", "cost", "times"},
    {"ladder", "steps"},
    {"noise"},
    {"plans"},
    {"solver", "devices"},
    {"pilots", "learning", "rates", "expectations"},
    {"fitting", "testing"},
    {"cli", "commands", "__main__", "__init__"},
]
ADAPTER = [
    {"process"},
    {"networks"},
    {"loops", "sparse", "cheap_levels", "quality", "sampling"},
    {"diffusers"},
    {"commands", "__init__"},
]
FORCES = [  # rooms without wings
    {"systems", "langevin", "observables", "harmonic", "calculator_names"},
    {"force_ladder", "spectra"},
    {"blocks"},
    {"walk"},
    {"force_pilot", "job", "plan_calculator"},
    {"run_pilot", "report"},
    {"ase_dynamics"},
    {"commands", "__init__"},
]
PACKAGES = {
    "multilevel_sde": (ROOT, CORE),
    "multilevel_diffusion": (ROOT / "adapters", ADAPTER),
    "multilevel_forces": (ROOT / "adapters", FORCES),
}
FLOORS = {
    f"{package}.{wing}": (package != "multilevel_sde", floor)
    for package, (_, floors) in PACKAGES.items()
    for floor, wings in enumerate(floors)
    for wing in wings
}
LOOSE = CORE[0] | CORE[-1]  # modules, not wings: among those of one floor only circles are forbidden


def modules():
    """Every module of all packages and its file."""
    for package, (folder, _) in PACKAGES.items():
        for file in sorted((folder / package).rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            yield ".".join(parts), file


NAMES = dict(modules())


def wing(module):
    """The wing of a module: the package's name and the next part."""
    return ".".join(module.split(".")[:2])


def imported(file, *, top_level=False):
    """The modules of our packages that a file imports, at its top level or anywhere."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name in NAMES else node.module for name in inner]
        else:
            continue
        yield from (name for name in found if name.split(".")[0] in PACKAGES)


def goes_down(source, target):
    """Whether an import of `target` in `source` runs down or stays in its wing; adapters may use the core's door."""
    (adapter, floor), door = FLOORS[wing(source)], target == "multilevel_sde"
    if target.split(".")[0] not in ("multilevel_sde", source.split(".")[0]):
        return False  # an adapter knows no other
    if door:
        return adapter or floor == len(CORE) - 1
    if wing(target) not in FLOORS:
        return False
    both_loose = {wing(source).split(".")[1], wing(target).split(".")[1]} <= LOOSE
    same = wing(source) == wing(target) or (both_loose and FLOORS[wing(source)] == FLOORS[wing(target)])
    return same or FLOORS[wing(target)] < FLOORS[wing(source)]


@pytest.mark.parametrize("source", NAMES)
def test_imports_run_down(source):
    up = [target for target in imported(NAMES[source]) if not goes_down(source, target)]
    assert not up, f"{source} imports {', '.join(up)}, which stands no lower; move one of them or what they share"


def test_there_is_no_circle():
    graph = {name: [target for target in imported(file, top_level=True) if target in NAMES and target != name]
             for name, file in NAMES.items() if not name.endswith("__init__")}  # fmt: skip
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(error.args[1]))


def test_every_module_is_in_one_wing_and_on_the_map():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert wing(name) in FLOORS, f"{name} is in no wing; give it one here and in docs/architecture.md"
        short = name.removesuffix(".__init__").split(".")[-1]
        assert re.search(rf"\b{short}\b", page), f"docs/architecture.md does not name {name}"


@pytest.mark.parametrize("package", [name for name, file in NAMES.items() if file.name == "__init__.py"])
def test_no_two_things_share_a_name(package):
    """A name that a package gives is not also the name of one of its modules, which it would hide."""
    package = package.removesuffix(".__init__")
    optional = {"multilevel_diffusion.diffusers": "diffusers", "multilevel_forces": "ase"}
    if package in optional:
        pytest.importorskip(optional[package])
    module = importlib.import_module(package)
    rooms = {file.stem for file in NAMES.values() if file.parent == NAMES[f"{package}.__init__"].parent}
    rooms |= {name.split(".")[-2] for name in NAMES if name.endswith("__init__") and name.startswith(package + ".")}
    for name in getattr(module, "__all__", []):
        value = getattr(module, name)
        assert inspect.ismodule(value) or name not in rooms, f"{package}.{name} hides the module of that name"


@pytest.mark.parametrize(("source", "target", "right"), [
    ("multilevel_sde.plans.plan", "multilevel_sde.solver.loop", False),
    ("multilevel_sde.solver.loop", "multilevel_sde.plans.plan", True),
    ("multilevel_sde.plans.plan", "multilevel_sde.plans.recall", True),
    ("multilevel_sde.pilots.curves", "multilevel_sde.rates.problems", False),
    ("multilevel_sde.plans.plan", "multilevel_sde", False),
    ("multilevel_sde.plans.plan", "multilevel_diffusion.process.grids", False),
    ("multilevel_diffusion.process.grids", "multilevel_sde.plans.plan", True),
    ("multilevel_diffusion.process.grids", "multilevel_diffusion.networks.unet", False),
    ("multilevel_diffusion.process.grids", "multilevel_sde", True),
    ("multilevel_forces.walk", "multilevel_diffusion.process.grids", False),
    ("multilevel_forces.walk", "multilevel_forces.blocks", True),
    ("multilevel_forces.blocks", "multilevel_forces.walk", False),
])  # fmt: skip
def test_the_rule_itself(source, target, right):
    assert goes_down(source, target) is right
