"""The rules that notebooks keep: each takes (path relative to nbs/, notebook as a dict) and returns
what is wrong, in sentences.
"""

import ast
import copy
import json
import re
import statistics
from pathlib import Path

from nbdev.clean import clean_nb
from nbdev.process import _directive

ROOT = Path(__file__).resolve().parents[2]
TEST_FLAGS = {"slow", "gpu", "network"}  # tst_flags of settings.ini
NBDEV = {
    "default_exp",
    "export",
    "exporti",
    "exports",
    "exec_doc",
    "hide",
    "hide_line",
    "filter_stream",
} | TEST_FLAGS
QUARTO = {
    f"{name}:"
    for name in (
        "eval echo output warning error include label classes column code-fold code-summary "
        "code-overflow code-line-numbers fig-cap fig-subcap fig-alt fig-align fig-width fig-height "
        "tbl-cap layout layout-ncol layout-nrow lst-cap lst-label"
    ).split()
}
VALUES = {
    "eval:": {"true", "false"},
    "include:": {"true", "false"},
    "echo:": {"true", "false", "fenced"},
    "output:": {"true", "false", "asis"},
}
BYTES, LINES, EXPORTED_LINES, MEDIAN, CELLS = 100_000, 30, 60, 8, 72


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def is_directive(line):
    return re.match(r"\s*#\s*\|", line)


def directives(cell):
    """The directives of a cell as nbdev reads them: leading `#|` lines, first word -> the other
    words.
    """
    found = {}
    for line in source(cell).splitlines():
        if line.strip() and not is_directive(line) and not line.startswith("%%"):
            break
        if is_directive(line) and _directive(line):
            found.update([_directive(line)])
    return found


def code_lines(cell):
    return [line for line in source(cell).splitlines() if line.strip() and not is_directive(line)]


def tree(cell):
    "The syntax tree; magics and shell lines are IPython's, with the lines that they go on to."
    magic = re.compile(r"^([ \t]*)[%!](?:.*\\\n)*.*", re.M)
    return ast.parse(magic.sub(r"\1pass", source(cell)))


def exported(cell):
    return bool({"export", "exporti", "exports"} & directives(cell).keys())


def name(cell):
    return f"cell {cell.get('id')} ({(code_lines(cell) or [''])[0][:40]!r})"


def lesson(path):
    return path.startswith("lib/")


def template(path):
    return path.startswith(("pipelines/", "reports/", "colab/"))


def imports_at_top(cell):
    return any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree(cell).body)


def known_directives(path, notebook):
    """A misspelt directive is silently ignored by nbdev and Quarto: the cell is then not exported,
    or runs where it should not.
    """
    wrong = []
    for cell in code_cells(notebook):
        for word, arguments in directives(cell).items():
            if word not in NBDEV | QUARTO:
                wrong.append(f"{name(cell)}: unknown directive {word!r}")
            elif word in VALUES and (arguments or [""])[0].lower() not in VALUES[word]:
                wrong.append(f"{name(cell)}: {word} takes one of {sorted(VALUES[word])}")
        head = True
        for line in source(cell).splitlines():
            if line.strip() and not is_directive(line) and not line.startswith("%%"):
                head = False
            if not head and is_directive(line):
                wrong.append(
                    f"{name(cell)}: a directive below the first line of code is not read: {line!r}"
                )
            if re.match(r"\s*#+\s*[!:]?\s*(default_exp\s+\w+|exports?i?|hide)\s*$", line):
                wrong.append(f"{name(cell)}: {line!r} looks like a directive without its bar")
    return wrong


def plain_notebook(path, notebook):
    """Kernel `python3` (papermill starts what the notebook names), format 4.5 with a different id
    for each cell.
    """
    wrong, kernel = [], notebook["metadata"].get("kernelspec", {})
    if kernel.get("name") != "python3" or kernel.get("language", "python") != "python":
        wrong.append(f"kernelspec is {kernel}")
    if (notebook["nbformat"], notebook["nbformat_minor"]) != (4, 5):
        wrong.append("nbformat is not 4.5")
    ids = [cell.get("id") for cell in notebook["cells"]]
    return wrong + [
        f"cell id {each} stands twice or is missing"
        for each in {i for i in ids if not i or ids.count(i) > 1}
    ]


def has_title(path, notebook):
    """The first cell is `# Title` and what the notebook is about; in a lesson one sentence behind
    `>`, which the module gets as docstring.
    """
    first, pattern = (
        notebook["cells"][0],
        r"# [^\n]+\n+" + (r"> [^\n]+" if lesson(path) else r"[^\n]+"),
    )
    good = first["cell_type"] == "markdown" and re.match(pattern, source(first))
    return [] if good else ["the first cell is not a title and a sentence"]


def tagged(notebook):
    return [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]


def parameters_tag(path, notebook):
    """papermill only warns where the tag is missing, and runs with the defaults; cleaning must
    leave it, too.
    """
    wanted = 1 if template(path) else 0
    cleaned = copy.deepcopy(notebook)
    clean_nb(cleaned, **clean_settings())
    return [
        f"{len(tagged(each))} cells {when} are tagged `parameters`, not {wanted}"
        for when, each in (("here", notebook), ("after nbdev_clean", cleaned))
        if len(tagged(each)) != wanted
    ]


def clean_settings(text=None):
    "What nbdev_clean takes from settings.ini."
    from configparser import ConfigParser

    config = ConfigParser(delimiters=["="])
    config.read_string(text or (ROOT / "settings.ini").read_text(encoding="utf-8"))
    settings = config["DEFAULT"]
    return {
        "clear_all": settings.getboolean("clear_all"),
        "clean_ids": settings.getboolean("clean_ids"),
        "allowed_metadata_keys": settings["allowed_metadata_keys"].split(),
        "allowed_cell_metadata_keys": settings["allowed_cell_metadata_keys"].split(),
    }


def no_errors(path, notebook):
    "An error that a lesson shows is caught and shown; one that was stored was not meant."
    return [
        f"{name(cell)}: a stored {output.get('ename')}"
        for cell in code_cells(notebook)
        for output in cell["outputs"]
        if output["output_type"] == "error"
    ]


def no_progress_bars(path, notebook):
    "A bar is for whoever waits; stored, it says 0 % for ever."
    return [
        f"{name(cell)}: a stored progress bar"
        for cell in code_cells(notebook)
        for output in cell["outputs"]
        if re.search(r"\d%\|.*it/s", "".join(output.get("data", {}).get("text/plain", "")))
    ]


def templates_are_empty(path, notebook):
    "Pipelines and reports store no outputs; executed runs live in run folders."
    wrong = ["metadata of a papermill run"] if "papermill" in notebook["metadata"] else []
    if template(path):
        wrong += [
            f"{name(cell)}: stored output" for cell in code_cells(notebook) if cell["outputs"]
        ]
    return wrong


def imports_apart(path, notebook):
    """The docs build runs every cell of a lesson that imports: such a cell holds only imports (an
    exported one at its top level).
    """
    wrong = []
    for cell in code_cells(notebook):
        if not lesson(path) or directives(cell).get("eval:") == ["false"]:
            continue
        nodes = [node for part in tree(cell).body for node in ast.walk(part)]
        if exported(cell):
            mixed = imports_at_top(cell) and not all(
                isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree(cell).body
            )
        else:
            mixed = any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in nodes) and any(
                isinstance(n, (ast.Expr, ast.Assign)) for n in nodes
            )
        if mixed:
            wrong.append(f"{name(cell)}: imports and other code in one cell")
    return wrong


def no_star_import(path, notebook):
    "Exported code names what it imports."
    return [
        f"{name(cell)}: star import"
        for cell in code_cells(notebook)
        if exported(cell)
        for node in ast.walk(tree(cell))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]


def small_cells(path, notebook):
    "What a reader takes in at a time; a table of parameters may be longer."
    # nobody reads the cell that installs
    read = [cell for cell in notebook["cells"] if "google.colab" not in "".join(cell["source"])]
    cells = [cell for cell in code_cells({"cells": read}) if cell not in tagged(notebook)]
    counts = {name(cell): len(code_lines(cell)) for cell in cells if not exported(cell)}
    wrong = [f"{cell}: {count} lines of code" for cell, count in counts.items() if count > LINES]
    for cell in filter(exported, cells):  # a cell's length never decides how a class is cut
        for part in tree(cell).body:
            if (count := part.end_lineno - part.lineno + 1) > EXPORTED_LINES:
                wrong.append(f"{name(cell)}: a definition of {count} lines")
    # a formatter decides how many lines a statement takes: what is counted here are statements
    sizes = [sum(isinstance(node, ast.stmt) for node in ast.walk(tree(cell))) for cell in cells]
    if lesson(path) and sizes and statistics.median(sizes) > MEDIAN:
        wrong.append(f"median of the code cells is {statistics.median(sizes)} statements")
    if len(read) > CELLS:
        wrong.append(f"{len(read)} cells")
    return wrong


def small_outputs(path, notebook):
    "A repository of notebooks grows by its stored outputs."
    return [
        f"{name(cell)}: outputs of {size} bytes"
        for cell in code_cells(notebook)
        if (size := len(json.dumps(cell["outputs"]))) > BYTES
    ]


MACHINE_PATH = re.compile(
    r"(?<![\w.:/}>~-])(/(home|root|work|Users|tmp|private|mnt|opt|var|scratch)/\w[\w./-]*|"
    r"[A-Z]:\\+Users\\+\w+)"
)


def no_machine_paths(path, notebook):
    "Neither source nor output names a folder of the machine on which it was written."
    wrong = []
    for cell in notebook["cells"]:
        texts = [source(cell)]
        for output in cell.get("outputs", []):
            texts += [output.get("text", "")] + [
                value for kind, value in output.get("data", {}).items() if kind.startswith("text")
            ]
        for text in texts:
            text = text if isinstance(text, str) else "".join(text)
            text = re.sub(r"base64,[\w+/=]+", "", text)  # a picture's bytes may look like anything
            wrong += [
                f"cell {cell.get('id')}: {match.group(0)}" for match in MACHINE_PATH.finditer(text)
            ]
    return wrong


RULES = [
    known_directives,
    plain_notebook,
    has_title,
    parameters_tag,
    no_errors,
    no_progress_bars,
    templates_are_empty,
    imports_apart,
    no_star_import,
    small_cells,
    small_outputs,
    no_machine_paths,
]
