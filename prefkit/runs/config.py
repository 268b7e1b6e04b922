"""A config names the stages of an experiment and their parameters.

Here it is read, and checked against the notebooks and the specification of settings, before
anything runs; and so are the parameters of a notebook that papermill runs without a config.
"""

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from prefkit.core import ConfigError, PrefkitError, nearest, resolve_path, shipped, there
from prefkit.runs.plugins import load_plugins


def write_pipeline(
    path: str | Path,  # the .ipynb file to write
    parameters: str,  # source of the cell tagged `parameters`
    *cells: str,  # sources of the cells behind it
    check: str = "",  # source of a cell tagged `check`
) -> Path:  # the path
    "Write a small pipeline notebook."
    tagged = [
        (parameters, ["parameters"]),
        *([(check, ["check"])] if check else []),
        *((cell, []) for cell in cells),
    ]
    made = [
        {
            "cell_type": "code",
            "id": f"cell-{i}",
            "metadata": {"tags": tags} if tags else {},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
        for i, (source, tags) in enumerate(tagged)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    Path(path).write_text(
        json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}),
        encoding="utf-8",
    )
    return Path(path)


@dataclass(frozen=True)
class Parameter:
    "One value that a pipeline takes: a line of its cell of parameters, or of a specification."

    name: str  # as written in the config
    type: str  # the annotation, such as `float | None`
    default: Any  # the value where the config says nothing
    comment: str = ""  # what stands behind the # on its line, or above it


def read_notebook(path: str | Path) -> dict:  # the notebook as JSON
    "Read a notebook; raises `ConfigError` where there is none."
    try:
        book = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such notebook.", field="pipeline", reason="does not exist"
        ) from None
    except OSError as error:
        raise _no_notebook(path, error.strerror) from None
    except (ValueError, RecursionError):
        raise _no_notebook(path, "not valid JSON") from None
    cells = book.get("cells") if isinstance(book, dict) else None
    if not isinstance(cells, list) or not all(map(_is_cell, cells)):
        raise _no_notebook(path, "it has no list of cells, each with its kind and its source")
    return book


def _no_notebook(path, why):
    return ConfigError(
        f"{path}: not a notebook ({why}). Name an .ipynb file of Jupyter's format 4.",
        field="pipeline",
        reason="cannot be read",
    )


def _is_cell(cell) -> bool:
    "Whether part of a notebook is a cell of Jupyter's format 4, as far as it is read here."
    match cell:
        case {"cell_type": str(), "source": str() | list() as source}:
            about = cell.get("metadata", {})
            tags = about.get("tags", []) if isinstance(about, dict) else None
            return isinstance(tags, list) and all(isinstance(part, str) for part in source)
    return False


NO_RESULT = {"parameters", "check", "reach", "draw"}  # tags of cells that make no result


def code_cells(
    path: str | Path,  # an .ipynb file
    # only cells with this tag; None: those that make a result, which are none of NO_RESULT
    tag: str | None = None,
) -> list[str]:  # their sources in order
    "The code cells of a notebook, by tag."
    cells = [cell for cell in read_notebook(path)["cells"] if cell["cell_type"] == "code"]
    tags = [cell.get("metadata", {}).get("tags", []) for cell in cells]
    return [
        "".join(cell["source"])
        for cell, has in zip(cells, tags)
        if (tag in has if tag else not NO_RESULT.intersection(has))
    ]


def comments(source: str) -> dict[int, str]:  # line number -> comment
    "The comments of a piece of Python; those that fill their lines are one, on the last of them."
    found, above = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, text = token.start[0], token.string.lstrip("# ").rstrip()
        if not token.line[: token.start[1]].strip():
            text = f"{above.pop(line - 1)} {text}" if line - 1 in above else text
            above[line] = text
        found[line] = text
    return found


def _parameter(node, remarks):
    "A line of the cell as a `Parameter`; None where it is something else."
    match node:
        case ast.AnnAssign(target=ast.Name(id=name), value=value, annotation=annotation):
            kind = ast.unparse(annotation)
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            kind = None
        case _:
            return None
    try:
        value = ast.literal_eval(value)
    except (ValueError, TypeError, RecursionError):
        return None
    remark = remarks.get(node.end_lineno) or remarks.get(node.lineno - 1, "")
    return Parameter(name, kind or type(value).__name__, value, remark)


def read_parameters(
    path: str | Path,  # a notebook
) -> dict[str, Parameter]:  # by name, in the notebook's order
    "The cell of parameters with its types, read without running it; raises `ConfigError`."
    cells, found = code_cells(path, "parameters"), {}
    if len(cells) != 1:
        raise ConfigError(
            f"{path}: {len(cells)} cells are tagged `parameters`; a pipeline needs exactly one.",
            field="pipeline",
            reason="no cell of parameters",
        )
    try:
        remarks, lines = comments(cells[0]), ast.parse(cells[0]).body
    except (SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ConfigError(
            f"{path}: its cell of parameters is not Python ({error}).",
            field="pipeline",
            reason="no parameter",
        ) from None
    for node in lines:
        parameter = _parameter(node, remarks)
        if parameter is None:
            raise ConfigError(
                f"{path}: `{cells[0].splitlines()[node.lineno - 1].strip()}` is no parameter. "
                "Write `name: type = literal`, and derive in a later cell.",
                field="pipeline",
                reason="no parameter",
            )
        found[parameter.name] = parameter
    return found


def specified(
    specification: type[Any],  # a dataclass of `prefkit.train.settings`
    defaults: dict | None = None,  # in place of its own
) -> dict[str, Parameter]:
    "The settings of a specification as parameters."
    from prefkit.train.settings import default_of, type_name  # loads PyTorch

    return {
        one.name: Parameter(
            one.name,
            type_name(one.type),
            (defaults or {}).get(one.name, default_of(one)),
            one.metadata.get("words", ""),
        )
        for one in fields(specification)
    }


@dataclass(frozen=True)
class Pipeline:
    """What a pipeline takes: the parameters of its cell, and all settings of its specifications
    (`PIPELINES` of `prefkit.train.settings`), for which the cell has dicts. In a config and for
    papermill a setting stands flat among the parameters, or in its dict.
    """

    cell: dict[str, Parameter]  # by name, the dicts of settings among them
    parameters: dict[str, Parameter]  # by name: those of the cell, then the other settings
    specifications: dict[str, type[Any]]  # name of a dict of settings -> what may stand in it

    def lay_flat(
        self,
        given: dict,  # some parameters, flat or in the dicts
        where: str,  # stands at the start of a message
    ) -> dict:  # the same, all flat
        "Raise `ConfigError` for a name that is not known or stands in two places."
        check_names(given, [*self.parameters, *self.specifications], where)
        flat = {name: given[name] for name in given if name not in self.specifications}
        for place, specification in self.specifications.items():
            inside = given.get(place, {})
            if not isinstance(inside, dict):
                raise ConfigError(
                    f"{where}: `{place}` must be settings with values, and {inside!r} is "
                    f"{type(inside).__name__}.",
                    field=place,
                    reason="wrong type",
                )
            check_names(inside, [one.name for one in fields(specification)], where, f"{place}.")
            for name in inside:
                if name in flat:
                    raise ConfigError(
                        f"{where}: `{name}` is given twice, as `{name}` and as `{place}.{name}`. "
                        "Keep one.",
                        field=name,
                        reason="given twice",
                    )
            flat |= inside
        return flat


SETTINGS = ("settings", "data")  # parameters that are dicts of settings


def read_pipeline(
    path: str | Path,  # a notebook
    full: bool = False,  # with the defaults that a config starts from; False: those of its cell
) -> Pipeline:
    """What a pipeline takes, read without running it; raises `ConfigError`. The kit's own hold
    values in their cells that cut data and steps: `FULL` of `prefkit.train.settings` names them.
    """
    made = _read_pipeline(path)
    ours = Path(path).resolve().parent == shipped("nbs/pipelines").resolve()
    if not (full and ours):
        return made
    from prefkit.train.settings import FULL  # loads PyTorch

    whole = {
        name: replace(one, default=FULL[name]) if name in FULL else one
        for name, one in made.parameters.items()
    }
    return replace(made, parameters=whole)


def _read_pipeline(path):
    "A pipeline with the values of its cell."
    cell = read_parameters(path)
    places = [place for place in SETTINGS if place in cell and cell[place].type == "dict"]
    if not places:
        return Pipeline(cell, cell, {})
    from prefkit.train.settings import PIPELINES  # loads PyTorch

    own_kind = PIPELINES.get(Path(path).stem, {})
    specifications = {place: own_kind[place] for place in places if place in own_kind}
    settings = {}
    for place, specification in specifications.items():
        settings |= specified(specification, cell[place].default)
    own = {name: cell[name] for name in cell if name not in specifications}
    return Pipeline(cell, own | settings | own, specifications)


@dataclass(frozen=True, repr=False)
class Given:
    "The parameters of a notebook that runs, held against what its pipeline takes."

    pipeline: Pipeline
    values: dict  # every parameter with its value, flat
    settings: object | None = None  # those of its `settings`, as an object
    data: object | None = None  # those of its `data`
    cut: tuple[str, ...] = ()  # parameters whose small values are the cell's, not somebody's choice

    @property
    def warning(self) -> str:
        "What runs by hand do less than a config would; empty where they do not."
        if not self.cut:
            return ""
        held = ", ".join(f"{name} {self.values[name]}" for name in self.cut)
        return (
            f"A run by hand, cut short by the notebook's cell: {held}. A config starts from all "
            f"rows and whole epochs; here they have to be asked for, as by -p {self.cut[0]} None."
        )

    def __repr__(self) -> str:
        "A table of all parameters in Markdown; what differs from the default is in bold."
        lines = [self.warning, ""] if self.cut else []
        lines += ["| parameter | value | default | what it is |", "|---|---|---|---|"]
        for name, parameter in self.pipeline.parameters.items():
            value, default = _in_table(self.values[name]), _in_table(parameter.default)
            if value != default:
                name, value = f"**{name}**", f"**{value}**"
            words = parameter.comment.replace("|", "\\|")
            lines.append(f"| {name} | {value} | {default} | {words} |")
        return "\n".join(lines)

    _repr_markdown_ = __repr__


def _in_table(value) -> str:
    "A value in a cell of a Markdown table."
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f"`{text}`".replace("|", "\\|")


def given_parameters(
    pipeline: str,  # its name, or the path of one's own notebook
    names: dict,  # the notebook's globals()
) -> Given:
    """The parameters of the notebook that calls this, whoever gave them: papermill, the runner, or
    a person in the cell; raises `ConfigError` for one that is not known or cannot be.
    """
    load_plugins()
    path = find_pipeline(pipeline, Path())
    known, whole = read_pipeline(path), read_pipeline(path, full=True)
    default = {name: one.default for name, one in (known.parameters | known.cell).items()}
    injected = injected_names(names, default)
    # a person has changed the cell, or has set another setting
    changed = {name for name in default if name in names and names[name] != default[name]}
    given = {name: names[name] for name in [*default, *injected] if name in injected | changed}
    where = f"pipeline {pipeline}"
    values = check_parameters(known.lay_flat(given, where), known.parameters, where)
    made = {place: one.of(values) for place, one in known.specifications.items()}
    cut = tuple(
        name
        for name, one in whole.parameters.items()
        if one.default != known.parameters[name].default and name not in injected | changed
    )
    return Given(known, values, **made, cut=cut)


def injected_names(names: dict, default: dict) -> set[str]:
    """Which of a notebook's globals papermill has set: those of the cell that it puts behind the
    parameters. Without IPython, which remembers cells, all plain values are such that are not what
    the cell of the parameters says.
    """
    if "In" not in names:
        plain = (str, int, float, list, dict, type(None))
        return {
            name
            for name, value in names.items()
            if isinstance(value, plain) and not name.startswith("_")
            if name not in default or default[name] != value
        }
    cells = [ast.parse(cell) for cell in names["In"] if cell.startswith("# Parameters\n")]
    assigned = [node.targets[0] for cell in cells for node in cell.body]
    return {target.id for target in assigned}


def fits(value, kind: ast.expr | str) -> bool:
    """Whether a value is of a type such as `int`, `float | None`, `list[str]`; raises `ConfigError`
    for an annotation it does not know.
    """
    match ast.parse(kind, mode="eval").body if isinstance(kind, str) else kind:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return fits(value, left) or fits(value, right)
        case ast.Constant(value=None):
            return value is None
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return isinstance(value, list) and all(fits(v, item) for v in value)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, item])):
            return isinstance(value, dict) and all(
                fits(k, key) and fits(v, item) for k, v in value.items()
            )
        case ast.Name(id="float"):
            return type(value) in (int, float) and math.isfinite(value)
        case ast.Name(id="int" | "str" | "bool" | "list" | "dict" as name):
            return type(value).__name__ == name
    raise ConfigError(
        f"`{ast.unparse(kind) if isinstance(kind, ast.AST) else kind}` is no type that a parameter "
        "can have here.",
        reason="unknown type",
    )


def number_hint(value) -> str:  # empty where it does not look like a number
    "The way out for a number that YAML read as text."
    if not isinstance(value, str) or not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        return ""
    mantissa, exponent = re.split("[eE]", value)
    if not re.search(r"\.\d", mantissa):
        mantissa = mantissa.rstrip(".") + ".0"
    return (
        f" YAML reads {value} as text: write "
        f"{mantissa}e{exponent if exponent[0] in '+-' else '+' + exponent}."
    )


def texts(value):
    "Every string inside a value of a config, however deep."
    if isinstance(value, str):
        yield value
    for item in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from texts(item)


def check_value(parameter: Parameter, value, where: str):
    "Raise `ConfigError` unless the value is one that the parameter can have."
    shown = json.dumps(value, default=str, ensure_ascii=False)
    if isinstance(value, float) and not math.isfinite(value) and "float" in parameter.type:
        raise ConfigError(
            f"{where}: `{parameter.name}` must be float, and finite, not {value}.",
            field=parameter.name,
            reason="not finite",
        )
    if not fits(value, parameter.type):
        raise ConfigError(
            f"{where}: `{parameter.name}` must be {parameter.type}, and {shown} is "
            f"{type(value).__name__}.{number_hint(value)}",
            field=parameter.name,
            reason="wrong type",
        )
    if isinstance(value, (dict, list)) and (hint := "".join(map(number_hint, texts(value)))):
        raise ConfigError(
            f"{where}: `{parameter.name}` holds a number as text: {shown}.{hint}",
            field=parameter.name,
            reason="number as text",
        )


def check_names(
    given,  # names
    known: Iterable[str],  # those that there are
    where: str,  # stands at the start of a message
    place: str = "",  # stands before a name: of the dict that holds it
):
    "Raise `ConfigError` for a name that does not exist."
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{where}: there is no parameter `{place}{name}`.{nearest(name, known)}",
                field=f"{place}{name}",
                reason="unknown",
            )


def check_parameters(
    given: dict,  # from the config
    known: dict[str, Parameter],  # from the notebook
    where: str,  # stands at the start of a message
) -> dict:  # every parameter with its value
    """Given values over the defaults; raises `ConfigError` for a name that does not exist or a
    value that does not fit.
    """
    check_names(given, known, where)
    for name, value in given.items():
        check_value(known[name], value, where)
    values = {name: given.get(name, parameter.default) for name, parameter in known.items()}
    # 1 and 1.0 are one learning rate: they must have one fingerprint later
    return {
        name: float(v)
        if type(v) is int and "float" in known[name].type and "int" not in known[name].type
        else v
        for name, v in values.items()
    }


MOST_VALUES = 100_000  # of a config, with what its anchors repeat
LONGEST_NUMBER = 1000  # bits
PLAIN = {f"tag:yaml.org,2002:{name}" for name in "map seq str int float bool null merge".split()}


class _Loader(yaml.SafeLoader):
    """Plain values alone: no dates, bytes or sets. Whatever cannot be such a value is a
    `ConfigError` with its line, and so is a mapping in which a key stands twice.
    """

    # a date is text, as it would be in quotes
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in kinds if tag in PLAIN]
        for first, kinds in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    where = ""  # stands at the start of a message

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None:
            self._count(node, {})
        return node

    def _count(self, node, known) -> int:
        "How many values a node stands for, its aliases written out; refused where they explode."
        if id(node) not in known:
            known[id(node)] = None  # it is being counted
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = [part for item in inner for part in (item if type(item) is tuple else [item])]
            known[id(node)] = 1 + sum(self._count(part, known) for part in parts)
        number = known[id(node)]
        if number is None:
            raise self._refused(node, "an anchor stands inside of itself")
        if number > MOST_VALUES:
            raise self._refused(node, f"its anchors stand for more than {MOST_VALUES:,} values")
        return number

    def _refused(self, node, why):
        return ConfigError(
            f"{self.where}, line {node.start_mark.line + 1}: {why}.", reason="not usable"
        )

    def construct_object(self, node, deep=False):
        try:
            value = super().construct_object(node, deep)
        except (yaml.YAMLError, PrefkitError, RecursionError):
            raise
        except Exception:  # what Python says of a number, a truth or a date that is none
            kind = node.tag.rpartition(":")[2]
            raise self._refused(node, f"`{str(node.value)[:40]}` is no {kind}") from None
        if node.tag not in PLAIN:
            kind = node.tag.rpartition(":")[2]
            raise self._refused(node, f"a config holds plain values, and this is {kind}")
        if isinstance(value, int) and value.bit_length() > LONGEST_NUMBER:
            raise self._refused(node, "a number of hundreds of digits")
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            raise self._refused(node, "half a character, or a zero byte, in a text")
        return value

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise ConfigError(
                f"{self.where}, line {node.start_mark.line + 1}: `{twice[0]}` stands twice. Keep "
                "one.",
                field=twice[0],
                reason="given twice",
            )
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str):
    "YAML as plain values; raises `ConfigError` for whatever is none."

    class Loader(_Loader):
        pass

    Loader.where = where
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(
            f"{where}{f', line {mark.line + 1}' if mark else ''}: not valid YAML "
            f"({getattr(error, 'problem', error)}).",
            reason="not YAML",
        ) from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply to be read.", reason="not usable") from None


def check_keys(value, known: tuple, needed: tuple, where: str):
    """Raise `ConfigError` unless `value` is a mapping that has the needed keys and none but the
    known; keys are text.
    """
    if value is None:
        raise ConfigError(
            f"{where}: nothing stands here."
            + (f" Write {' and '.join(needed)}." if needed else ""),
            reason="missing",
        )
    if not isinstance(value, dict):
        raise ConfigError(
            f"{where}: keys with values are needed here, not {type(value).__name__}.",
            reason="wrong type",
        )
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(
                f"{where}: the key {key!r} is {type(key).__name__}, not text. Put it in quotes, or "
                "use a name.",
                field=str(key),
                reason="wrong type",
            )
        if key not in known:
            raise ConfigError(
                f"{where}: `{key}` is not known here.{nearest(key, known)}",
                field=key,
                reason="unknown",
            )
    for key in needed:
        if value.get(key) is None:
            raise ConfigError(f"{where}: `{key}` is missing.", field=key, reason="missing")


def apply_setting(
    config: dict,  # as read from the file; changed in place
    setting: str,  # such as "seed=1" or "dpo.learning_rate=1.0e-4"
):
    "Put the value of one `--set` in: `KEY=VALUE` or `STAGE.PARAMETER=VALUE`; raises `ConfigError`."
    key, equals, text = setting.partition("=")
    first, *path = key.strip().split(".")
    stages = config.get("stages") or {}
    if not equals:
        raise ConfigError(f"--set {setting}: write KEY=VALUE.", reason="no value")
    value = read_yaml(text, f"--set {setting}")
    if not path and first in ("experiment", "seed", "report"):
        config[first] = value
        return
    known = ["experiment", "seed", "report", *(f"{name}.PARAMETER" for name in stages)]
    if not path or first not in stages:
        raise ConfigError(
            f"--set {setting}: nothing is called `{key}`.{nearest(key, known)}",
            field=key,
            reason="unknown",
        )
    if not isinstance(stages[first], dict):
        raise ConfigError(
            f"--set {setting}: the stage `{first}` has no pipeline. Write {first}: {{pipeline: "
            f"NAME}} in the config.",
            field=first,
            reason="missing",
        )
    given = stages[first].get("parameters")
    for place in SETTINGS if isinstance(given, dict) else ():  # where the config may have it
        if isinstance(given.get(place), dict) and path[0] in given[place]:
            path = [place, *path]
    config["stages"] = put(stages, (first, "parameters", *path), value)


def put(
    values: dict,  # may have parts in common with others, as YAML's anchors make them
    path: tuple[str, ...],  # of keys
    value,
) -> dict:  # the same values with this one; nothing of `values` is changed
    "Put a value deep into a dict of dicts."
    key, *rest = path
    if rest:
        inner = values.get(key)
        value = put(inner if isinstance(inner, dict) else {}, tuple(rest), value)
    return {**values, key: value}


@dataclass(frozen=True)
class Stage:
    "One notebook with its parameters."

    name: str  # of the run folder
    pipeline: Path  # the notebook
    parameters: dict  # every parameter of it, `stage:...` as written
    needs: tuple = ()  # names of the stages that it reads


@dataclass(frozen=True)
class Config:
    "A checked experiment."

    experiment: str  # name of the folder that holds the run folders
    seed: int  # of all stages that set none
    stages: tuple[Stage, ...]  # in an order in which they can run
    report: str | None = None  # a notebook in nbs/reports, without .ipynb
    plugins: tuple[Path, ...] = ()  # files of one's own that are executed in every process


def upstream_first(stages: dict[str, Stage]) -> tuple[Stage, ...]:
    "Each stage after those it needs, otherwise as written; raises `ConfigError` for a circle."
    done, trail = {}, []

    def visit(name):
        if name in done:
            return
        if name in trail:
            raise ConfigError(
                "the stages need one another in a circle: "
                f"{' -> '.join([*trail[trail.index(name) :], name])}.",
                field=name,
                reason="in a circle",
            )
        trail.append(name)
        for upstream in stages[name].needs:
            visit(upstream)
        done[trail.pop()] = stages[name]

    for name in stages:
        visit(name)
    return tuple(done.values())


UPSTREAM = re.compile(r"stage:(.*)")


def find_pipeline(name: str, folder: Path) -> Path:
    """A pipeline by its name in nbs/pipelines, or by a path that ends in .ipynb, from `folder` or
    the project's root.
    """
    if not name.endswith(".ipynb"):
        home = shipped("nbs/pipelines")
        if there(home / f"{name}.ipynb"):
            return home / f"{name}.ipynb"
        known = sorted(path.stem for path in home.glob("*.ipynb"))
        raise ConfigError(
            f"there is no pipeline `{name}`.{nearest(name, known)}",
            field="pipeline",
            reason="unknown",
        )
    return (folder / name).resolve() if there(folder / name) else resolve_path(name)


def make_stage(
    name: str,  # of the stage
    entry: dict,  # {pipeline, parameters}
    others: tuple,  # names of all stages
    seed: int,  # of the experiment
    folder: Path,  # of the config
) -> Stage:
    "Check one stage of a config against its notebook; raises `ConfigError`."
    where = f"stage {name}"
    check_keys(entry, ("pipeline", "parameters"), ("pipeline",), where)
    try:
        path = find_pipeline(str(entry["pipeline"]), folder)
        pipeline = read_pipeline(path, full=True)
    except ConfigError as error:
        raise error.at(where) from None
    given = entry.get("parameters") or {}
    check_keys(given, tuple(given), (), f"{where}, parameters")
    if "output_dir" in given or "output_dir" not in pipeline.parameters:
        raise ConfigError(
            f"{where}: `output_dir` is a parameter that every pipeline has and that only the "
            "runner gives.",
            field="output_dir",
            reason="not yours to give",
        )
    given = pipeline.lay_flat(given, where)
    if "seed" in pipeline.parameters:
        given = {"seed": seed, **given}
    parameters = check_parameters(given, pipeline.parameters, where)
    needs = tuple(
        dict.fromkeys(match[1] for text in texts(parameters) if (match := UPSTREAM.fullmatch(text)))
    )
    for need in needs:
        if need not in others:
            raise ConfigError(
                f"{where}: there is no stage `{need}`.{nearest(need, others)}",
                field=need,
                reason="unknown",
            )
    return Stage(name, path, parameters, needs)


def check_report(name):
    "Raise `ConfigError` unless the config names no report, or one that there is."
    home = shipped("nbs/reports")
    if name is None or (isinstance(name, str) and there(home / f"{name}.ipynb")):
        return
    known = sorted(path.stem for path in home.glob("*.ipynb"))
    raise ConfigError(
        f"report: there is no report `{name}`.{nearest(name, known)}",
        field="report",
        reason="unknown",
    )


def read_config(
    path: Path,  # a YAML file, of an experiment or of a study
):
    "A config as it is written; raises `ConfigError` where it cannot be read."
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}.{_other_configs(path)}",
            reason="cannot be read",
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"{path}: not UTF-8 text. Save it as UTF-8.", reason="cannot be read"
        ) from None
    return read_yaml(text, str(path))


def _other_configs(path: Path) -> str:
    "Which config may have been meant: of the same folder, or of those that the kit brings along."
    shown = {
        "data/configs/" + one.relative_to(home).as_posix(): one
        for home in [shipped("data/configs")]
        for one in home.rglob("*.yaml")
    }
    beside = {one.name: one for one in path.parent.glob("*.y*ml")} if path.parent.is_dir() else {}
    names = {one.stem: name for name, one in (shown | beside).items()}
    close = get_close_matches(path.stem, names, n=1)
    hint = f" Did you mean `{names[close[0]]}`?" if close else ""
    return f"{hint} `prefkit list configs` names those that there are."


def load_config(
    path: str | Path,  # a YAML file
    settings=(),  # texts of --set
) -> Config:
    "Read a config and check all of it against the notebooks; raises `ConfigError`."
    path = resolve_path(path)
    raw = read_config(path)
    known = ("experiment", "seed", "stages", "report", "plugins")
    check_keys(raw, known, ("experiment", "stages"), str(path))
    plugins = read_plugins(raw.get("plugins"), path.parent)
    check_keys(raw["stages"], tuple(raw["stages"]), (), f"{path}, stages")
    if not raw["stages"]:
        raise ConfigError(
            f"{path}: `stages` is empty. Write at least one, such as sft: {{pipeline: sft}}.",
            field="stages",
            reason="missing",
        )
    for setting in settings:
        apply_setting(raw, setting)
    check_folders((raw["experiment"],))
    check_folders(tuple(raw["stages"]))
    seed = raw.get("seed", 0)
    if not fits(seed, "int") or seed < 0:
        raise ConfigError(
            f"seed must be a whole number from 0 up, not {seed!r}.",
            field="seed",
            reason="out of range",
        )
    check_report(raw.get("report"))
    stages = {
        name: make_stage(name, entry, tuple(raw["stages"]), seed, path.parent)
        for name, entry in raw["stages"].items()
    }
    return Config(raw["experiment"], seed, upstream_first(stages), raw.get("report"), plugins)


LONGEST_NAME = 120  # letters; most file systems take 255, and the runner puts words around it
# words behind a dot that the runner gives the folders and files beside a run's own
TAKEN = re.compile(r"\.(aside-.*|partial|old|lock)$")


def check_folders(names: tuple):
    "Raise `ConfigError` for names of run folders that the runner cannot give, or tell apart."
    for name in names:
        fine = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name)
        if not fine or name == "report" or len(name) > LONGEST_NAME or TAKEN.search(name):
            shown = name if isinstance(name, str) and len(name) <= LONGEST_NAME else str(name)[:40]
            raise ConfigError(
                f"`{shown}` cannot name a run folder. Use at most {LONGEST_NAME} letters, digits, "
                "and _ . - after the first (`report` is taken, and so are endings such as "
                ".partial, .old, .lock, .aside-).",
                field=str(name),
                reason="no name of a folder",
            )
        same = [other for other in names if other != name and other.lower() == name.lower()]
        if same:
            raise ConfigError(
                f"`{name}` and `{same[0]}` are one folder on some machines. Rename one.",
                field=name,
                reason="no name of a folder",
            )


def read_plugins(
    named,  # what stands in a config
    folder: Path,  # of the config
) -> tuple[Path, ...]:  # of the files, executed
    "Files of one's own that a config names, from its folder or as any path; raises `ConfigError`."
    named = [] if named is None else named
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise ConfigError(
            f"plugins: write a list of files, such as [my_reward.py], not {named!r}.",
            field="plugins",
            reason="wrong type",
        )
    here = [folder / one for one in named]
    found = tuple(
        (one if there(one) else resolve_path(name)).resolve() for one, name in zip(here, named)
    )
    load_plugins(found)
    return found
