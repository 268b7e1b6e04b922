"""A stage that is finished need not run again, unless something that can change its result has changed. This lesson says what can."""
import ast, re
from pathlib import Path

from prefkit.config import UPSTREAM, Config, code_cells, texts
from prefkit.core import DataError, fingerprint, fingerprint_files, resolve_path

def bare_code(source: str) -> str:
    "Python without comments, docstrings and layout; source with notebook magics stays as it is."
    try: tree = ast.parse(source)
    except SyntaxError: return source
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            node.body = body[1:] or [ast.Pass()]
    return ast.unparse(tree)

def imported(
    source: str, # Python
    module: str = "", # its dotted name, for relative imports
    package: bool = False, # whether it is an __init__.py
) -> set[str]: # dotted names under prefkit; some may be functions of a module
    "What a piece of code imports from `prefkit`."
    try: tree = ast.parse(source)
    except SyntaxError: tree = ast.parse("\n".join(line for line in source.splitlines() if re.match(r"(from|import)\s+prefkit", line)))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            up = parts[:len(parts) - node.level + package] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.split(".")[0] == "prefkit"}

NO_INFLUENCE = {f"prefkit.{name}" for name in ("config", "fingerprints", "stage", "runs", "cli", "page")} # no number comes from them

def _file(home, name):
    "The file of a module, None where it is none."
    base = home.joinpath(*name.split(".")[1:])
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)

def reached_modules(sources: list[str]) -> dict[str, Path]: # dotted name -> file
    "The modules of `prefkit` that code cells reach through imports, directly or not."
    import prefkit
    home, found, todo = Path(prefkit.__file__).parent, {}, set().union(*map(imported, sources))
    while todo:
        name = todo.pop()
        file = _file(home, name)
        if file is None or name in found or name in NO_INFLUENCE: continue
        found[name] = file
        parents = {name.rpartition(".")[0]} - {""} # importing a.b runs a too
        todo |= (parents | imported(file.read_text(encoding="utf-8"), name, file.name == "__init__.py")) - found.keys()
    return found

READS = ("model", "models", "dataset", "datasets", "path", "paths", "file", "files", "judges")

def must_be_here(text: str) -> bool:
    "Whether a name can only be a local path: it looks like one, or its first folder exists."
    suffix = Path(text).suffix in (".jsonl", ".json", ".parquet", ".csv", ".txt")
    return suffix or text.startswith((".", "/", "~")) or text.count("/") > 1 or ("/" in text and resolve_path(text.split("/")[0]).is_dir())

def named_paths(parameters: dict) -> dict[str, Path]: # "parameter: text" -> path
    "The local files and folders that a stage's parameters name; raises `DataError` where one is missing."
    found = {}
    for name, value in parameters.items():
        for text in texts(value) if name.split("_")[-1] in READS else ():
            if not text or UPSTREAM.fullmatch(text) or "://" in text: continue # an address is no path
            if (path := resolve_path(text)).exists(): found[f"{name}: {text}"] = path
            elif must_be_here(text):
                raise DataError(f"`{name}`: {text} does not exist. Relative paths are taken from the current folder or else the project's root.")
    return found

def code_fingerprint(pipeline: Path) -> str:
    "Fingerprint of a notebook's cells and of the modules that they reach."
    cells = code_cells(pipeline)
    files = {name: bare_code(file.read_text(encoding="utf-8")) for name, file in reached_modules(cells).items()}
    return fingerprint([list(map(bare_code, cells)), files])

def fingerprints(config: Config) -> dict[str, dict]: # stage -> {stage, parameters, code, inputs, upstream}
    "What makes each stage what it is; `stage` sums up the others. Raises `DataError` for a file that is missing."
    found, code, seen = {}, {}, {}
    for stage in config.stages: # upstream stages come first
        if stage.pipeline not in code: code[stage.pipeline] = code_fingerprint(stage.pipeline)
        try: paths = named_paths(stage.parameters)
        except DataError as error: raise DataError(f"stage {stage.name}: {error}") from None
        for path in set(paths.values()) - seen.keys(): seen[path] = fingerprint_files(path)
        parts = {"parameters": fingerprint(stage.parameters), "code": code[stage.pipeline],
                 "inputs": {text: seen[path] for text, path in paths.items()},
                 "upstream": {name: found[name]["stage"] for name in stage.needs}}
        found[stage.name] = {"stage": fingerprint(parts), **parts}
    return found

def difference(old: dict, new: dict) -> str: # such as "code and inputs"
    "Which parts of two fingerprints of a stage differ."
    return " and ".join(part for part in new if part != "stage" and old.get(part) != new[part])
