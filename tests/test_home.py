"The picture and the table at the head of the home page are those of committed results."

import copy
import json
import re
from pathlib import Path

import pytest
from helpers.tools import tool

from prefkit.core import resolve_path
from prefkit.stats.intervals import mean_interval

ROOT = Path(__file__).resolve().parents[1]
home = tool("home")
RESULTS = home.standings()


def test_the_home_page_shows_what_the_results_say():
    page = json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))
    text = "".join("".join(cell["source"]) for cell in page["cells"])
    assert home.section(RESULTS) in text, "run `make readme`"


def test_a_change_is_paired_by_seed():
    seeds = json.loads(resolve_path(home.RESULTS).read_text(encoding="utf-8"))["seeds"]
    own = {
        name: [
            next(
                row["right"]
                for row in one["scores"]
                if row["model"] == name and row["decoding"] == "sampled"
            )
            for one in seeds.values()
        ]
        for name in ("kto_v1_1", home.START)
    }
    changes = [100 * (a - b) for a, b in zip(*own.values(), strict=True)]
    found = home.moved(RESULTS).set_index(["model", "measure"]).loc["kto_v1_1", "right"]
    assert tuple(found) == pytest.approx(mean_interval(changes))


def test_other_results_give_another_picture_and_another_text():
    other = copy.deepcopy(RESULTS)
    for one in other.seeds.values():
        for row in one["scores"]:
            if row["model"] == "kto_v1_1":
                row["right"] -= 0.3
    text = home.caption(home.moved(other), other)
    assert text != home.caption(home.moved(RESULTS), RESULTS) and "rises with 2 of them" in text

    def dots(results):
        panel = home.draw(home.moved(results)).axes[2]
        return [line.get_xdata()[0] for line in panel.lines if line.get_marker() in "os"]

    before, after = dots(RESULTS), dots(other)
    assert after[0] == pytest.approx(before[0] - 30) and after[1:] == before[1:]


def test_buttons_are_files_of_ours_that_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"\[!\[[^]]+\]\((nbs/images/button_\w+\.svg)\)\]\(([^)]+)\)", text)
    assert {Path(file).stem for file, _ in found} == set(home.BUTTONS)
    for file, _ in found:
        words, colour = home.BUTTONS[Path(file).stem]
        assert (ROOT / file).read_text(encoding="utf-8") == home.button(words, colour)
    (colab,) = [link for _, link in found if "colab.research" in link]
    assert (ROOT / colab.partition("/blob/main/")[2]).is_file()
