"""The house's rules, read from the source: which room may import which, and what no module does."""

import ast
import graphlib
import importlib
import inspect
import json
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "prefkit"
GROUND = {"core", "losses", "data", "model", "stats"}
MAY_IMPORT = {  # room -> the other rooms; the faces at the top and the command line may import all
    "core": set(),
    "losses": {"core"},
    "data": {"core"},
    "model": {"core", "losses", "data"},
    "stats": {"core", "losses", "data", "model"},
    "judging": GROUND,
    "train": GROUND,
    "report": GROUND,
    "runs": GROUND | {"judging", "train", "report"},
    "course": {"core", "data", "judging", "model", "stats", "train"},
    "widgets": GROUND | {"judging", "train", "report", "course"},
}
# Loading these takes time or needs an extra: a function may import them when it is called.
HEAVY = set(
    (
        "IPython accelerate datasets fastapi huggingface_hub ipykernel ipywidgets jinja2 "
        "jupyter_client lm_eval matplotlib nbclient nbconvert nbformat numpy openai optuna pandas "
        "sqlalchemy "
        "papermill peft pyarrow sacrebleu safetensors scipy tensorboard tokenizers torch tqdm "
        "trackio transformers uvicorn wandb"
    ).split()
)
NOT_EVERYWHERE = {"ctypes", "fcntl", "resource"}  # parts of Python that some systems lack
WIDTH, LINES = 100, 60


@cache
def modules():
    "Dotted name -> (syntax tree, whether it is a package) of every module of the library."
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "_modidx.py":
            parts = path.relative_to(ROOT).with_suffix("").parts
            package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if package else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8")), package
    return found


def imported_names(module, node):
    "The dotted names that an import statement asks for; `from x import y` asks for x.y."
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    origin = node.module or ""
    if node.level:
        parents = module.split(".")
        upwards = node.level - modules()[module][1]  # a package is its own parent
        base = parents[: len(parents) - upwards]
        origin = ".".join([*base, origin] if origin else base)
    return [f"{origin}.{alias.name}" for alias in node.names]


def own_module(name):
    "The module of the library that a dotted name leads to, None if it leads outside."
    while name.startswith("prefkit."):
        if name in modules():
            return name
        name = name.rpartition(".")[0]
    return None


def imports(module):
    "Every import statement of a module: (the node, the names that it asks for)."
    for node in ast.walk(modules()[module][0]):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, imported_names(module, node)


@cache
def graph():
    "Module -> the modules of the library that it imports, at its top or inside a function."
    found = {}
    for module in modules():
        names = [name for _, asked in imports(module) for name in asked]
        found[module] = {own_module(name) for name in names} - {None, module}
    return found


def room(module):
    return module.split(".")[1] if "." in module else "prefkit"


def test_no_module_imports_itself_by_way_of_others():
    try:
        list(graphlib.TopologicalSorter(graph()).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_rooms_import_in_one_direction():
    wrong = []
    for module, others in graph().items():
        here = room(module)
        for other in others:
            if here in MAY_IMPORT and room(other) not in MAY_IMPORT[here] | {here}:
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(sorted(wrong))
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == MAY_IMPORT.keys() - {"core"}


@cache
def loaded(module):
    "The heavy packages that come with a module when it is imported, by way of others too."
    found, waiting, seen = set(), [module], set()
    while waiting:
        each = waiting.pop()
        if each is None or each in seen:
            continue
        seen.add(each)
        waiting.append(each.rpartition(".")[0] or None)  # a package is loaded before its modules
        for node in outside_functions(modules()[each][0]):
            for name in imported_names(each, node):
                waiting.append(own_module(name))
                found.add(name.split(".")[0])
    return found & HEAVY


def may_wait(module, name):
    "Whether a function of a module may import this when it is called."
    target = own_module(name)
    if target:  # it spares a light module what is heavy in the other
        return bool(loaded(target) - loaded(module))
    return name.split(".")[0] in HEAVY | NOT_EVERYWHERE


def test_an_import_inside_a_function_spares_something_heavy():
    wrong = []
    for module, (tree, _) in modules().items():
        at_top = {id(node) for node in outside_functions(tree)}
        for node, names in imports(module):
            if id(node) not in at_top and not all(may_wait(module, name) for name in names):
                wrong.append(f"{module}, line {node.lineno}: {', '.join(names)}")
    assert not wrong, "\n".join(wrong)


def outside_functions(tree):
    "The import statements that run when a module is loaded."
    found, waiting = [], list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append(node)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return found


def is_private(name):
    return name.startswith("_") and not name.endswith("__") and name != "_"


@cache
def own_private_names():
    "Names with one underscore in front that the library itself gives to something."
    found = set()
    for tree, _ in modules().values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                    found.add(node.attr)
    return {name for name in found if is_private(name)}


def test_no_private_name_of_another_library_is_asked_for():
    """`from x import _y`; and any `object._y` where the library gives that name to nothing: then it
    is somebody else's.
    """
    allowed = {"_repr_html_", "_exit"}  # public: IPython's protocol, and a call of the system
    wrong = []
    for module, (tree, _) in modules().items():
        for node, names in imports(module):
            for name in names:
                if is_private(name.rpartition(".")[2]) and not own_module(name):
                    wrong.append(f"{module}, line {node.lineno}: import of {name}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                if node.attr not in own_private_names() | allowed:
                    wrong.append(f"{module}, line {node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


def test_no_private_method_of_another_library_is_overridden():
    wrong = []
    for name in modules():
        module = importlib.import_module(name)
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ != name:
                continue
            foreign = [base for base in kind.__mro__ if not is_ours_or_pythons(base)]
            for attribute in own_private_names() & vars(kind).keys():
                wrong += [
                    f"{name}.{kind.__name__}.{attribute} is {base.__module__}'s"
                    for base in foreign
                    if attribute in vars(base)
                ]
    assert not wrong, "\n".join(wrong)


def is_ours_or_pythons(kind):
    package = kind.__module__.split(".")[0]
    return package == "prefkit" or package in sys.stdlib_module_names


def test_no_line_is_longer_than_100_columns():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "_modidx.py":
            lines = path.read_text(encoding="utf-8").splitlines()
            name = path.relative_to(ROOT)
            wrong += [f"{name}:{n}" for n, line in enumerate(lines, 1) if len(line) > WIDTH]
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            lines = "".join(cell["source"]).splitlines() if cell["cell_type"] == "code" else []
            wrong += [f"{path.name}, {cell['id']}: {x}" for x in lines if len(x) > WIDTH]
    assert not wrong, "\n".join(wrong)


def defined(tree):
    "Public names that a module gives to something of its own at its top level."
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            # a function that stands for a command is named as the command is
            if not any(ast.unparse(each).startswith("app.") for each in node.decorator_list):
                yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_a_public_name_has_one_home():
    homes = defaultdict(set)
    for module, (tree, _) in modules().items():
        for name in defined(tree):
            if not name.startswith("_"):
                homes[name].add(module)
    twice = {name: sorted(where) for name, where in homes.items() if len(where) > 1}
    assert not twice, "\n".join(f"{name}: {', '.join(where)}" for name, where in twice.items())


def test_no_function_is_longer_than_60_lines():
    wrong = []
    for module, (tree, _) in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = node.end_lineno - node.lineno + 1
                if length > LINES:
                    wrong.append(f"{module}.{node.name}: {length} lines")
    assert not wrong, "\n".join(wrong)


def test_no_test_imports_a_test():
    "What tests share stands in tests/helpers/."
    wrong = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            wrong += [f"{path.name} imports {name}" for name in names if name.startswith("test_")]
    assert not wrong, "\n".join(wrong)


def test_every_name_that_is_imported_from_the_library_is_there():
    "An import inside a function fails only when somebody calls it."
    missing = []
    for path in sorted([*ROOT.glob("tools/*.py"), *ROOT.glob("tests/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "prefkit":
                module = importlib.import_module(node.module)
                for name in (alias.name for alias in node.names):
                    if not hasattr(module, name) and f"{node.module}.{name}" not in modules():
                        missing.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert not missing, "\n".join(missing)
