"The ledger's verdicts in the lessons are those of now."

import json

from helpers.tools import tool

from prefkit.runs.ledger import open_ledger, show_claims, verdicts

claims = tool("claims")
FOUND = verdicts(open_ledger())


def test_every_lesson_has_the_verdicts_of_now(capsys):
    assert claims.main(check=True) == 0, capsys.readouterr().out


def test_each_method_that_reports_speak_of_has_them():
    wanted = {one.lesson for one in open_ledger()}
    stems = {path.stem.partition("_")[2]: path for path in claims.lessons()}
    methods = {"sft", "dpo", "ipo", "dpop", "minor_dpo", "xpo", "orpo", "kto", "topr", "rloo"}
    methods |= {"grpo", "ppo", "length_penalty"}
    assert methods <= wanted and stems.keys() == methods


def test_a_verdict_that_is_another_now_is_put_in():
    path = next(path for path in claims.lessons() if path.stem.endswith("_topr"))
    text = path.read_text(encoding="utf-8")
    assert json.loads(claims.renewed(text, FOUND)) == json.loads(text)
    none = dict.fromkeys(FOUND)  # as if nothing had been run
    other = claims.renewed(text, none)
    assert json.loads(other) != json.loads(text) and "not run yet: " in other


def test_what_is_told_stands_first():
    html = show_claims("orpo", FOUND).to_html()
    places = [html.find(f">{said}<") for said in ("holds", "does not hold", "cannot be told")]
    assert -1 < places[0] < places[1] < places[2]
