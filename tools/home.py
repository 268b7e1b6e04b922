"""The picture and the table at the head of nbs/index.ipynb, and so of README.md, from committed
results: what each method moves, by the gold reward, by the second judge, and in truth.

`--check`: fail if the table is not what the results say.
"""

import base64
import io
import json
import re
import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from prefkit.report.figures import COLOURS, use_style
from prefkit.report.standings import Standings, of_first_decoding, read_results
from prefkit.stats.intervals import mean_interval
from prefkit.widgets.bandit import explore_bandit
from prefkit.report.claims import sign

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "data/results/seeds/comparison.json"
HOME, PICTURE = ROOT / "nbs/index.ipynb", ROOT / "nbs/images/home.svg"
START, CONTROL = "sft_v2_6", "sft_chosen"
# model -> as a reader calls it; of several settings of a method the one that the report names first
MODELS = {
    "kto_v1_1": "KTO",
    "topr_v1_1": "TOPR",
    "orpo_v1_1": "ORPO",
    "rloo_v1_2": "RLOO",
    "dpo_v2_4": "DPO",
    CONTROL: "SFT on the chosen answers",
}
# column of the scores -> judge, unit of a change, factor
MEASURES = {
    "gold": ("Gold reward", "points", 1),
    "second": ("Second judge", "points", 1),
    "right": ("Truth", "right answers, percentage points", 100),
}
BUTTONS = {  # file -> words, colour
    "button_colab": ("Open in Colab", "#B35C00"),
    "button_site": ("Web site", "#0072B2"),
    "button_lessons": ("Lessons", "#007A57"),
}
MARK = re.compile(r"(<!-- results: [^>]* -->).*?(<!-- end of results -->)", re.S)


def standings() -> Standings:
    "The comparison over five seeds, at the report's own decoding."
    found = read_results(RESULTS, "make seeds")
    assert found is not None
    return Standings(of_first_decoding(found))


def moved(results: Standings) -> pd.DataFrame:  # a row for each model and measure
    "The change from SFT, paired by seed: mean, low, high."
    own = {
        (model, column): pd.Series(
            {
                seed: factor * row[column]
                for seed, one in results.seeds.items()
                for row in one["scores"]
                if row["model"] == model
            }
        )
        for model in (START, *MODELS)
        for column, (*_, factor) in MEASURES.items()
    }
    rows = []
    for model in MODELS:
        for column in MEASURES:
            mean, low, high = mean_interval(own[model, column] - own[START, column])
            rows.append({"model": model, "measure": column, "mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> Figure:
    "A panel for each measure, a dot with its interval for each model."
    use_style()
    fig, panels = plt.subplots(1, len(MEASURES), figsize=(9.6, 2.9), sharey=True)
    for ax, (column, (judge, unit, _)) in zip(panels, MEASURES.items(), strict=True):
        part = table[table["measure"] == column].set_index("model").loc[list(MODELS)]
        for place, (model, row) in enumerate(part.iterrows()):
            colour = COLOURS["control" if model == CONTROL else "sft"]
            ax.plot([row["low"], row["high"]], [place] * 2, color=colour, linestyle="-")
            marker = "s" if model == CONTROL else "o"
            ax.plot(row["mean"], place, marker, color=colour, markersize=7)
        ax.axvline(0, color="#555555", linewidth=1.4, linestyle=(0, (1, 1.5)))
        ax.set_title(judge)
        ax.set_xlabel(f"change from SFT ({unit})" if column != "right" else unit)
        ax.grid(axis="y", visible=False)
        ax.margins(x=0.08)
    panels[0].set_yticks(range(len(MODELS)), list(MODELS.values()))
    panels[0].set_ylim(len(MODELS) - 0.5, -0.5)
    plt.close(fig)
    return fig


def animate(path: Path):
    "A widget as it moves: DPO on five answers, its strength falling from 2 to 0.1 and back."
    explorer, pictures = explore_bandit(), []
    for beta in (2.0, 1.5, 1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.13, 0.1):
        data = re.search(r"base64,([^\"]+)", explorer.set(beta=beta).html())
        assert data
        pictures.append(Image.open(io.BytesIO(base64.b64decode(data[1]))).convert("RGB"))
    there_and_back = [one.quantize(64) for one in pictures + pictures[-2:0:-1]]
    first, *others = there_and_back
    first.save(path, save_all=True, append_images=others, duration=350, loop=0, optimize=True)


def button(words: str, colour: str) -> str:  # SVG
    "A button that needs no other host."
    width = 9 * len(words) + 22
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="28" role="img">'
        f"<title>{words}</title>"
        f'<rect width="{width}" height="28" rx="5" fill="{colour}"/>'
        f'<text x="{width / 2:g}" y="19" fill="#ffffff" font-family="sans-serif" font-size="14" '
        f'font-weight="bold" text-anchor="middle">{words}</text></svg>\n'
    )


def cell(mean: float, low: float, high: float, digits: int) -> str:
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table_of(results: Standings) -> str:  # markdown
    "Win rates against SFT and against the control, right answers and the second judge's score."
    head = (
        "| | gold wins against SFT, % | against the control, % | right answers, % | second judge |"
    )
    lines = [head, "|---|---|---|---|---|"]
    for model, name in {START: "SFT", **MODELS}.items():
        wins = [
            cell(*(100 * end for end in results.win(model, reference)), 1)
            if model not in (START, reference)
            else ""
            for reference in (START, CONTROL)
        ]
        right = cell(*results.score(model, "right", 100), 1)
        second = cell(*results.score(model, "second"), 2)
        lines.append(f"| {name} | {wins[0]} | {wins[1]} | {right} | {second} |")
    return "\n".join(lines)


def caption(table: pd.DataFrame, results: Standings) -> str:
    "What is to be seen, counted."
    found = {}
    for column in MEASURES:
        part = table[(table["measure"] == column) & (table["model"] != CONTROL)]
        signs = [sign(row["low"], row["high"], 0) for row in part.to_dict("records")]
        found[column] = (signs.count(1), signs.count(-1), len(signs), part["mean"])
    methods = found["gold"][2]
    up = {
        column: "all of them" if number == methods else f"{number} of them"
        for column, (number, *_) in found.items()
    }
    most = found["right"][3].max()
    return (
        f"What {methods} preference methods change, starting from one SFT model of five million "
        f"weights. The gold reward, which is what the tiny world's answers are truly worth, rises "
        f"with {up['gold']}, the second judge's score with {up['second']}. The share of "
        f"right answers rises with {up['right']}, by at most {most:.1f} percentage points: much of "
        f"what a judge sees improve is manner. Dots are means "
        f"over {len(results.seeds)} seeds with 95 % intervals, {results.n_prompts:,} held-out "
        f"prompts each; the square is what SFT on the same chosen answers does. "
        f"Drawn from `{RESULTS}`; the command: `make seeds`."
    )


def section(results: Standings) -> str:
    return f"{caption(moved(results), results)}\n\n{table_of(results)}\n"


def put(notebook: dict, text: str) -> int:  # how often
    "The text between the marks of the home page."
    count = 0
    for one in notebook["cells"]:
        source = "".join(one["source"])
        new, times = MARK.subn(lambda found: f"{found[1]}\n\n{text}\n{found[2]}", source)
        if times:
            one["source"] = new.splitlines(keepends=True)
            count += times
    return count


if __name__ == "__main__":
    old = HOME.read_text(encoding="utf-8")
    notebook, results = json.loads(old), standings()
    if put(notebook, section(results)) != 1:
        sys.exit("nbs/index.ipynb has no place for the results: <!-- results: ... --> ...")
    new = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if "--check" in sys.argv:
        if new != old:
            sys.exit(f"the table in nbs/index.ipynb is not that of {RESULTS}: run `make readme`")
    else:
        HOME.write_text(new, encoding="utf-8", newline="\n")
        plt.rcParams["svg.hashsalt"] = "prefkit"  # the same file from the same numbers
        draw(moved(results)).savefig(PICTURE, metadata={"Date": None, "Creator": None})
        animate(PICTURE.with_name("widget.gif"))
        for name, (words, colour) in BUTTONS.items():
            target = PICTURE.with_name(f"{name}.svg")
            target.write_text(button(words, colour), encoding="utf-8", newline="\n")
