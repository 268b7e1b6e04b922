"""Pages of what was measured: reports as `make reports` draws them, the benchmark, the faults."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from bs4 import BeautifulSoup, Tag

from docs_site.api import inline
from docs_site.notebooks import Repository, prose, read, source_of, title_of

HEADINGS = {"h2": "## ", "h3": "### "}
DATA = re.compile(r"data:(?P<type>[\w/]+);base64,(?P<inside>.+)", re.S)
CASES = ("naive", "trl", "trl_precomputed", "prefkit")


def markdown_page(*texts: str) -> dict:
    "A notebook of prose, so that its page has the source link of the notebook of that name."
    cells = [
        {"cell_type": "markdown", "id": f"prose-{place}", "metadata": {}, "source": text}
        for place, text in enumerate(texts)
    ]
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    metadata = {"kernelspec": kernel}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def raw(markup: str) -> str:
    return f"`````{{raw}} html\n{markup}\n`````"


def _taken_out(found: Tag, attribute: str, folder: Path) -> str:
    "A picture or table that a page carries within it, as a file; its name."
    told = DATA.fullmatch(str(found[attribute]))
    if not told:
        return ""
    ending = {"image/png": "png", "text/csv": "csv"}[told["type"]]
    data = base64.b64decode(told["inside"])
    name = str(found.get("download") or f"{hashlib.sha256(data).hexdigest()[:12]}.{ending}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return name


def report_page(page: Path, name: str, static: Path, repository: Repository) -> dict:
    """A report's page as a page of the site; what it carries within it goes into `static`. `name`
    as `reports/offline`.
    """
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    up = "../" * name.count("/")
    for found in soup.find_all(["img", "source", "a"]):
        attribute = {"img": "src", "source": "srcset", "a": "href"}[found.name]
        if file := _taken_out(found, attribute, static / name):
            found[attribute] = f"{up}_static/{name}/{file}"
        elif str(found[attribute]).startswith(repository.site):
            found[attribute] = up + str(found[attribute]).removeprefix(repository.site)
        if found.name == "img":
            found["loading"] = "lazy"
    heading, lead = soup.find("h1"), soup.find("p", class_="lead")
    texts = [f"# {inline(heading.get_text())}"] + ([raw(str(lead))] if lead else [])
    parts: list[str] = []
    for found in soup.find("main").children:
        if isinstance(found, Tag) and found.name in HEADINGS:
            texts += [raw(_wrapped(parts))] if parts else []
            texts.append(HEADINGS[found.name] + inline(found.get_text()))
            parts = []
        elif str(found).strip():
            parts.append(str(found))
    texts += [raw(_wrapped(parts))] if parts else []
    drawn = f"Drawn from committed results by [{name}.ipynb]({repository.blob}nbs/{name}.ipynb)."
    return markdown_page("\n\n".join([*texts, drawn]))


def _wrapped(parts: Iterable[str]) -> str:
    return f'<div class="report">{"".join(parts)}</div>'


def undrawn_page(name: str, repository: Repository, command: str) -> dict:
    """A report whose page has not been drawn: what it is about, the command that draws it, and its
    win rates over seeds where they are committed.
    """
    notebook, short = read(repository.nbs / f"{name}.ipynb"), name.removeprefix("reports/")
    about = prose(source_of(notebook["cells"][0]), name, repository).split("\n", 1)
    link = f"[{name}.ipynb]({repository.blob}nbs/{name}.ipynb)"
    note = (
        ":::{admonition} Without its figures\n:class: note\n"
        f"{link} draws this page, by `{command}`.\n:::"
    )
    parts = [f"# {title_of(notebook)}", *(part.strip() for part in about[1:]), note]
    seeds = repository.root / f"data/results/seeds/{short}.json"
    if seeds.is_file():
        parts += _over_seeds(json.loads(seeds.read_text(encoding="utf-8")))
    return markdown_page("\n\n".join(parts))


def _over_seeds(found: dict) -> list[str]:
    "Win rates by the gold reward, a table for each way of decoding."
    told = found["over_seeds"].get("win_rates", [])  # puzzles have none
    rates = [row for row in told if row["judge"] == "gold"]
    if not rates:
        return []
    parts = [
        "## Over seeds",
        f"How often the gold reward prefers a model's answer, in percent, ties counted half: mean "
        f"over {len(found['seeds'])} seeds with its 95 % interval (Student's t over seeds). Made "
        f"on {found['date']} by `{found['command']}`.",
    ]
    for decoding in dict.fromkeys(row.get("decoding", "") for row in rates):
        some = [row for row in rates if row.get("decoding", "") == decoding]
        references = list(dict.fromkeys(row["reference"] for row in some))
        cells = {(row["model"], row["reference"]): row["rate"] for row in some}
        rows = []
        for model in dict.fromkeys(row["model"] for row in some):
            told = [cells.get((model, reference)) for reference in references]
            rows.append([_called(model), *(_percent(rate) for rate in told)])
        head = ["model", *(f"against {_called(reference)}" for reference in references)]
        parts += [f"### {decoding.capitalize()}"] if decoding else []
        parts.append(_table(head, rows, len(references)))
    return parts


def _called(model: str) -> str:
    "A model's name, with its version as reports write it."
    from prefkit.report.words import called

    return re.sub(r" v(\d+) (\d+)$", r" V\1.\2", called(model))


def _percent(rate: dict | None) -> str:
    if rate is None:
        return ""
    return f"{rate['mean']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]".replace("%", "")


def _table(head: Iterable[str], rows: Iterable[Iterable], numbers: int) -> str:
    "A table of MyST whose last columns are numbers."
    head = list(head)
    line = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, line, *cells])


def _step_rows(cases: dict) -> list[list]:
    rows = []
    for way, case in cases.items():
        spent, memory = case["step_seconds"], case["peak_bytes"] / 2**20
        seconds = [f"{spent[name]:.2f}" for name in ("median", "min", "max")]
        rows.append([f"`{way}`", *seconds, f"{case['times_prefkit']:.2f}", f"{memory:,.0f}"])
    return rows


def bench_page(repository: Repository) -> str:
    "What training steps cost here, beside the naive way and TRL's."
    bench = json.loads((repository.root / "data/results/bench/cpu.json").read_text("utf-8"))
    made = bench["machines"]["steps"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    head = ["way", "seconds (median)", "least", "most", "times prefkit's", "peak MiB"]
    ways = [f"- `{name}`: {about}" for name, about in bench["contestants"].items()]
    parts = [
        "# The benchmark: steps of DPO beside the naive way and TRL's",
        "Seconds of an optimiser step, medians over rounds with the smallest and the largest, and "
        "the peak of memory without what the imports take, on random tokens with the lengths of "
        "real pairs. How it is done, and what makes the difference, is "
        "[a lesson](lib/model/12_kernels.ipynb).",
        f"Measured on {made['date']} on {made['cores']} cores ({made['cpu']}), {versions}, Python "
        f"{made['python']}, by `make bench`, at revision `{made['commit'][:12]}`.",
        "## The ways",
        "\n".join(ways),
    ]
    for name, found in bench["steps"].items():
        parts += [
            f"## {name}",
            f"Texts of at most {found['longest']} tokens, {found['batch']} pairs a batch, "
            f"{found['tokens_per_step']:,.0f} tokens a step.",
            _table(head, _step_rows(found["cases"]), 5),
        ]
    rest = ["option", "seconds (median)", "least", "most", "times the default's", "peak MiB"]
    parts += ["## Options", _table(rest, _step_rows(bench["options"]["cases"]), 5)]
    time, memory = bench["head"]["time_ratio"], bench["head"]["memory_ratio"]
    parts += [
        "## The head alone",
        f"Log-probs of {bench['head']['tokens']:,} tokens, {bench['head']['share']:.0%} of them an "
        f"answer's, with a vocabulary of {bench['head']['vocabulary']:,}: {time:.1%} of the naive "
        f"way's time and {memory:.1%} of its memory.",
    ]
    return "\n\n".join(parts) + "\n"


def faults_page(repository: Repository) -> str:
    "What was promised of each fault that was inflicted, and what happened."
    from prefkit.report.faults import HELD, fault_count

    found = json.loads((repository.root / "data/results/faults.json").read_text("utf-8"))
    kinds: dict[str, list[dict]] = {}
    for row in found["faults"]:
        kinds.setdefault(row["kind"], []).append(row)
    parts = [
        "# Faults: what was inflicted, what was promised, what happened",
        f"{fault_count(found)} Each fault is inflicted on a small real run by "
        f"`{found['command']}` (last on {found['date']}). How a run survives them is "
        "[a tutorial](tutorials/how_a_run_survives.ipynb).",
    ]
    for kind, rows in kinds.items():
        shown = [
            [row["fault"], row["promised"], row["happened"], HELD[row["held"]], _said(row)]
            for row in rows
        ]
        head = ["fault", "promised", "happened", "outcome", "seconds"]
        parts += [f"## {kind.capitalize()}", _table(head, shown, 1)]
    return "\n\n".join(parts) + "\n"


def _said(row: dict) -> str:
    return "" if row["seconds"] is None else f"{row['seconds']:.1f}"
