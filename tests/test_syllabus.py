"""The syllabus, the glossary and the line of ways in every lesson: whole, in order, up to date."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from helpers.tools import tool

syllabus, STATIONS = tool("syllabus"), tool("way").STATIONS
NBS = syllabus.NBS
LESSONS = sorted(
    path.relative_to(NBS).with_suffix("").as_posix()
    for path in [*NBS.glob("lib/*/*.ipynb"), *NBS.glob("tutorials/*.ipynb")]
)
GLOSSARY = yaml.safe_load((NBS / "glossary.yml").read_text(encoding="utf-8"))


def test_every_lesson_has_its_place_once():
    assert sorted(syllabus.in_order()) == LESSONS
    evenings = syllabus.plan()["evenings"]
    assert len(evenings) == 10 and all(part["can"] for part in evenings)
    assert set(syllabus.plan()["afternoon"]["lessons"]) <= set(LESSONS)


def test_an_evening_is_an_evening():
    spent = [
        sum(syllabus.minutes(name) for name in part["lessons"])
        for part in syllabus.plan()["evenings"]
    ]
    assert min(spent) >= 45 and max(spent) <= 180, spent


def test_what_a_lesson_stands_on_comes_before_it():
    order = syllabus.in_order()
    before = lambda *names: [order.index(name) for name in names]
    for names in (
        ("lib/model/10_logps", "lib/losses/20_sft", "lib/losses/21_dpo", "lib/losses/22_ipo"),
        ("lib/losses/31_rloo", "lib/losses/39_kl", "lib/losses/32_grpo", "lib/losses/33_ppo"),
        ("lib/losses/31_rloo", "tutorials/one_batch_many_passes", "lib/losses/29_topr"),
        ("lib/losses/30_reward_model", "lib/losses/31_rloo", "tutorials/over_optimisation"),
        ("lib/losses/32_grpo", "lib/losses/36_policy_gradients"),
    ):
        assert before(*names) == sorted(before(*names)), names


def test_pages_and_lines_are_what_the_tool_writes(capsys):
    assert syllabus.main(check=True) == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", ["syllabus", "glossary", *LESSONS])
def test_links_lead_somewhere(name):
    cells = json.loads((NBS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = cells if name in ("syllabus", "glossary") else cells[:1]
    text = "\n".join("".join(cell["source"]) for cell in shown)
    links = re.findall(r"\]\(([^)#]+\.ipynb)\)", text)
    assert links and all((NBS / Path(name).parent / link).resolve().is_file() for link in links)


def test_the_way_leads_from_the_first_lesson_to_the_last():
    order, walked = syllabus.in_order(), []
    name = order[0]
    while name:
        walked.append(name)
        text = "".join(syllabus.cells_of(name)[0]["source"])
        found = re.search(r"next: \[.*\]\(([^)]+)\)$", text, re.M)
        target = (NBS / Path(name).parent / found[1]).resolve() if found else None
        name = target.relative_to(NBS).with_suffix("").as_posix() if target else ""
    assert walked == order


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_opens_with_the_whole_way_and_where_it_stands(name):
    here = tuple(syllabus.plan()["stations"][name])
    text = "".join(syllabus.cells_of(name)[0]["source"])
    told, target = re.search(r"!\[(.*)\]\((.*\.svg)\)$", text).groups()
    drawn = ElementTree.parse((NBS / Path(name).parent / target).resolve()).getroot()
    texts = [one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("you are here") == len(here)
    heads = [STATIONS[station][3] for station in here]
    assert all(head in texts and head in told.split("You are here: ")[1] for head in heads)


def test_no_picture_is_left_that_nothing_shows():
    shown = {syllabus.file_name(tuple(one)) for one in syllabus.plan()["stations"].values()}
    home = (NBS / "index.ipynb").read_text(encoding="utf-8")
    shown |= set(re.findall(r"\(images/([\w.]+)\)", home)) | {"logo.svg"}  # of the web site
    assert {path.name for path in (NBS / "images").iterdir()} == shown


METHODS = [name for name in LESSONS if name.startswith("lib/losses/")] + ["lib/stats/35_best_of_n"]


@pytest.mark.parametrize("name", METHODS)
def test_a_lesson_on_a_method_opens_with_when_to_use_it(name):
    start = "\n".join("".join(cell["source"]) for cell in syllabus.cells_of(name)[:5])
    assert len(re.findall(r"When to use (?:it|one of them)", start)) == 1


def test_the_glossary_defines_what_its_lessons_speak_of():
    assert len(GLOSSARY) >= 60 and {"nat", "arm", "bandit", "off-policy", "logit"} <= set(GLOSSARY)
    for term, one in GLOSSARY.items():
        assert one["lesson"] in LESSONS and one["says"].endswith("."), term
        text = (NBS / f"{one['lesson']}.ipynb").read_text(encoding="utf-8").lower()
        words = re.split(r",? |-", term.lower())
        assert all(word in text for word in words), (term, one["lesson"])
