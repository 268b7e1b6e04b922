"Blind votes: kept line by line, counted, and handed on."

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from prefkit.core import ConfigError, DataError, read_jsonl
from prefkit.data.records import load_records
from prefkit.judging.judges import make_judge
from prefkit.stats.win_rate import win_rate
from prefkit.widgets.arena import Arena, explore_arena
from prefkit.widgets.examples import example_arena


def records(model, answers=("one", "two", "three", "four", "same")):
    return [
        {
            "prompt_id": f"p{i}",
            "prompt": [{"role": "user", "content": f"Which <{i}>?"}],
            "model": model,
            "answer": text if text == "same" else f"{model}: {text} & more",
        }
        for i, text in enumerate(answers)
    ]


@pytest.fixture
def both():
    return records("alpha"), records("omega")


def side_of(arena, model):
    return "left" if arena.pair.left == model else "right"


def hide_names(shown):
    return shown.replace("alpha: ", "").replace("omega: ", "")


# ---- blind


def test_a_pair_is_shown_without_names_until_it_has_a_vote(both, tmp_path):
    ours, theirs = (
        [{**one, "answer": one["answer"].split(": ")[-1]} for one in part] for part in both
    )
    for one in ours:
        one["answer"] += "!"  # else all are equal
    arena = Arena(ours, theirs, tmp_path)
    for shown in (arena.html(), arena._repr_mimebundle_()["text/plain"]):
        assert "alpha" not in shown and "omega" not in shown
    assert "&lt;" in arena.html() and "& more" not in arena.html()  # texts are escaped
    pair = arena.pair
    arena.vote("left")
    assert arena.said == f"You preferred left, {pair.left}: left was {pair.left}, right " + (
        f"{pair.right}."
    )
    assert arena.said in arena.html()


def test_order_and_sides_follow_the_seed(tmp_path):
    wide = [f"answer {i}" for i in range(40)]
    arenas = [
        Arena(records("alpha", wide), records("omega", wide), tmp_path / str(i), seed=seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    orders = [[(one.name, one.left) for one in arena.pairs.values()] for arena in arenas]
    assert orders[0] == orders[1] != orders[2]
    assert [name for name, _ in orders[0]] != [f"p{i}" for i in range(40)]
    left = sum(side == "alpha" for _, side in orders[0])
    assert 8 < left < 32  # either may stand left


# ---- votes


def test_votes_are_counted_as_win_rates_with_ties(both, tmp_path):
    arena = Arena(*both, tmp_path)
    for choice in ("alpha", "alpha", "tie", "omega"):
        arena.vote(choice if choice == "tie" else side_of(arena, choice))
    found = arena.win_rate()
    assert (found.rate, found.n, found.wins, found.ties) == (0.625, 4, 2, 1)
    by_hand = win_rate([1, 1, 0.5, 0], [0, 0, 0.5, 1])
    assert (found.low, found.high) == (by_hand.low, by_hand.high)
    assert arena.pair is None and "alpha against omega: 0.625" in arena.html()
    with pytest.raises(ConfigError, match="no pair is left.*Undo"):
        arena.vote("left")


def test_no_vote_has_no_rate_and_gives_no_file(both, tmp_path):
    arena = Arena(*both, tmp_path)
    assert arena.win_rate() is None
    for write in (arena.write_votes, arena.write_pairs):
        with pytest.raises(DataError, match="Vote on some pairs first"):
            write(tmp_path / "out.jsonl")
    with pytest.raises(ConfigError, match="'middle' is none of left, tie, right"):
        arena.vote("middle")


def test_a_vote_is_taken_back_and_cast_again(both, tmp_path):
    arena = Arena(*both, tmp_path)
    first = arena.pair
    arena.vote(side_of(arena, "alpha"))
    arena.undo()
    assert arena.pair == first and arena.win_rate() is None
    arena.vote(side_of(arena, "omega"))
    assert arena.preferences() == {first.name: 0.0}
    assert [line["winner"] for line in read_jsonl(arena.log.file)] == ["alpha", None, "omega"]
    for _ in range(2):
        arena.undo()
    assert arena.said == "There is no vote to take back." and arena.preferences() == {}


def test_a_skipped_pair_comes_again_at_the_end(both, tmp_path):
    arena = Arena(*both, tmp_path)
    first = arena.pair.name
    arena.skip()
    seen = []
    while arena.pair:
        seen.append(arena.pair.name)
        arena.vote("tie")
    assert seen[-1] == first and len(seen) == 4


def test_a_started_folder_is_gone_on_with(both, tmp_path):
    arena = Arena(*both, tmp_path)
    arena.vote("left")
    again = Arena(*both, tmp_path)
    assert again.pair == arena.pair and "1 of 4 pairs voted on" in again.html()
    again.undo()  # the newest on record
    assert again.win_rate() is None and "0 of 4" in Arena(*both, tmp_path).html()


VOTING = """
import sys
from test_widgets_arena import records
from prefkit.widgets.arena import Arena
wide = [f"answer {i}" for i in range(400)]
arena = Arena(records("alpha", wide), records("omega", wide), sys.argv[1], person=sys.argv[2])
while arena.pair:
    name = arena.pair.name
    arena.vote("left")
    print(name, flush=True)  # only now is it promised
"""


def voter(folder, person):
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", VOTING, str(folder), person],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.slow
def test_no_vote_is_lost_to_a_kill_or_to_another_window(tmp_path):
    voters = {person: voter(tmp_path, person) for person in ("ann", "bob")}
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:  # both are within their votes
        log = tmp_path / "arena.jsonl"
        text = log.read_text(encoding="utf-8") if log.is_file() else ""
        if all(text.count(f'"{person}"') >= 10 for person in voters):
            break
        time.sleep(0.05)
    for process in voters.values():
        process.send_signal(signal.SIGKILL)
    promised = {person: process.communicate()[0].split() for person, process in voters.items()}
    wide = [f"answer {i}" for i in range(400)]
    arena = Arena(records("alpha", wide), records("omega", wide), tmp_path, person="ann")
    kept = {person: [n for who, n in arena.log.votes() if who == person] for person in voters}
    for person, names in promised.items():
        assert len(names) >= 9 and names == kept[person][: len(names)]
        assert len(kept[person]) <= len(names) + 1  # on the disk, and killed before it could say so
    assert not arena.log.broken
    assert arena.pair.name not in kept["ann"]


def test_two_windows_of_one_person_see_each_others_votes(both, tmp_path):
    one, other = Arena(*both, tmp_path), Arena(*both, tmp_path)
    assert one.pair == other.pair
    first = one.pair
    one.vote("left")
    other.vote("right")  # on what it still shows: the last vote on a pair is the one that counts
    assert other.log.votes() == {("me", first.name): first.right}
    shown = other.pair
    one.vote("tie")
    assert other.pair == shown  # what is on the screen is what is voted on
    other.vote("left")
    assert other.pair.name not in {name for _, name in one.log.votes()}


def test_half_a_line_is_said_and_hides_no_other(both, tmp_path):
    arena = Arena(*both, tmp_path)
    arena.vote("left")
    with arena.log.file.open("a") as file:
        file.write('{"prompt_id": "p1", "win')  # killed within the write
    again = Arena(*both, tmp_path)
    assert "line 2 of arena.jsonl" in again.html()
    again.vote("tie")
    last = Arena(*both, tmp_path)
    assert len(last.log.votes()) == 2 and last.log.broken == [2]


def test_a_winner_that_is_none_of_the_models_is_not_counted(both, tmp_path):
    arena = Arena(*both, tmp_path)
    line = {"prompt_id": arena.pair.name, "person": "me", "winner": "gamma"}
    arena.log.append(line)
    assert arena.win_rate() is None and arena.log.broken == [1]


def test_people_who_do_not_agree_are_averaged(both, tmp_path):
    arenas = [Arena(*both, tmp_path, person=name) for name in ("ann", "bob", "eve")]
    for arena, model in zip(arenas, ("alpha", "alpha", "omega")):
        arena.vote(side_of(arena, model))
    found = arenas[0].win_rate()
    assert found.n == 1 and found.rate == pytest.approx(2 / 3)


# ---- what is handed on


def test_the_judge_person_reads_the_votes(both, tmp_path):
    arena = Arena(*both, tmp_path)
    winners = {}
    for choice in ("alpha", "tie", "omega"):
        winners[arena.pair.name] = {"alpha": 1.0, "tie": 0.5, "omega": 0.0}[choice]
        arena.vote(choice if choice == "tie" else side_of(arena, choice))
    arena.undo()
    arena.vote(side_of(arena, "alpha"))  # a vote that was changed is one vote
    winners[list(winners)[-1]] = 1.0
    judge = make_judge("person", votes=arena.write_votes(tmp_path / "votes.jsonl"))
    said = judge.compare(*both)
    named = {f"p{i}": one.preference for i, one in enumerate(said) if one is not None}
    assert named == {**winners, "p4": 0.5}  # equal answers are a tie there
    assert len(said.failed) == 1  # the pair without a vote


def test_votes_become_pairs_that_load_and_an_account(both, tmp_path):
    arena = Arena(*both, tmp_path)
    chosen = {}
    for choice in ("alpha", "tie", "omega"):
        if choice != "tie":
            chosen[arena.pair.name] = arena.pair.answers[choice], choice
        arena.vote(choice if choice == "tie" else side_of(arena, choice))
    report = arena.write_pairs(tmp_path / "pairs.jsonl")
    assert (report.read, report.kept, report.bad_rows) == (5, 2, 0)
    told = {reason: entry["rows"] for reason, entry in report.dropped.items()}
    assert told == {"a tie": 1, "nobody has voted on it yet": 1} | {
        "both models gave the same answer": 1
    }
    loaded = load_records(str(tmp_path / "pairs.jsonl"), kind="pairs")
    assert loaded.report.kept == loaded.report.read == 2
    for row in loaded.rows:
        name = next(n for n in chosen if f"Which <{n[1]}>?" == row["prompt"][-1]["content"])
        text, model = chosen[name]
        assert row["chosen"][-1]["content"] == text
        assert not row["rejected"][-1]["content"].startswith(model)


# ---- buttons and keys


def test_buttons_and_keys_do_the_same(both, tmp_path):
    arena = Arena(*both, tmp_path)
    arena.view()
    arena._buttons["left"].click()
    assert "1 of 4 pairs voted on" in arena._shown.value
    arena._keys.value = "2"
    arena._keys.value = "2S"  # a key more: skip
    assert "2 of 4 pairs voted on, 1 tie" in arena._shown.value and len(arena.skipped) == 1
    arena._keys.value = "2Su13"  # three at once: what came after the first was typed unseen
    assert "1 of 4" in arena._shown.value
    arena._keys.value = "2Su13s"
    arena._keys.value = "2Su13s3"
    assert "2 of 4" in arena._shown.value
    arena._keys.value = ""  # wiped: no vote
    arena._keys.value = "x"
    assert "2 of 4" in arena._shown.value
    arena._keys.value = "x1"
    arena._keys.value = "x13"
    assert "Every pair has your vote" in arena._shown.value
    assert arena._buttons["left"].disabled and not arena._buttons["undo"].disabled
    arena._buttons["undo"].click()
    assert not arena._buttons["left"].disabled


def test_what_stands_in_the_way_of_a_vote_is_said_and_the_pair_stays(both, tmp_path):
    arena = Arena(*both, tmp_path)
    arena.view()
    pair = arena.pair
    arena.log.file.mkdir()  # cannot be written to
    arena._buttons["left"].click()
    assert "could not be written" in arena._shown.value and arena.pair == pair
    assert arena.mine == []


def test_a_page_without_a_kernel_shows_the_pair_and_who_is_who_behind_a_click(both, tmp_path):
    arena = Arena(*both, tmp_path)
    page = arena.page()
    assert f"<details><summary>Who is who?</summary>left: {arena.pair.left}" in page
    assert page.count("<strong>") == 2 and "Which &lt;" in page


# ---- what is refused


def test_a_folder_with_votes_on_other_answers_is_refused(both, tmp_path):
    Arena(*both, tmp_path).vote("left")
    other = records("alpha", ("five", "two", "three", "four", "same"))
    with pytest.raises(ConfigError, match="votes on other answers.*alpha and omega.*another"):
        Arena(other, both[1], tmp_path)
    (tmp_path / "arena.json").write_text("{")
    with pytest.raises(DataError, match=r"arena\.json: it is damaged.*choose another folder"):
        Arena(*both, tmp_path)
    (tmp_path / "arena.json").unlink()
    with pytest.raises(DataError, match=r"arena\.json: it is gone"):
        Arena(*both, tmp_path)


def test_records_that_are_no_pairs_are_refused(both, tmp_path):
    with pytest.raises(DataError, match="4 records against 5"):
        Arena(both[0][:4], both[1], tmp_path)
    with pytest.raises(DataError, match="two different names"):
        Arena(both[0], both[0], tmp_path)
    with pytest.raises(DataError, match="called alpha and tie"):
        Arena(both[0], records("tie"), tmp_path)
    with pytest.raises(DataError, match="none to vote on"):
        Arena([], [], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written to"):
        Arena(*both, tmp_path / "file")


def test_an_arena_over_an_evaluation_takes_what_both_models_answered(both, tmp_path):
    lines = [{**one, "decoding": way} for way in "ab" for part in both for one in part]
    (tmp_path / "generations.jsonl").write_text(
        "".join(json.dumps(one) + "\n" for one in lines[1:])
    )
    arena = explore_arena(tmp_path, tmp_path / "votes")
    assert arena.models == ["alpha", "omega"] and set(arena.pairs) == {"p1", "p2", "p3"}
    with pytest.raises(ConfigError, match="'omgea'.*Did you mean `omega`"):
        explore_arena(tmp_path, tmp_path / "votes", ("alpha", "omgea"))
    with pytest.raises(ConfigError, match="cannot be set against itself"):
        explore_arena(both[0], tmp_path / "other")
    with pytest.raises(DataError, match=r"no generations\.jsonl"):
        explore_arena(tmp_path / "votes", tmp_path / "other")


def test_the_example_keeps_votes_where_it_is_told_to(tmp_path):
    arena = example_arena(tmp_path)
    assert arena.models == ["small", "sft"] and len(arena.pairs) + len(arena.same) == 300
    arena.vote("left")
    assert len(example_arena(tmp_path).log.votes()) == 1
    assert example_arena().log.folder != example_arena().log.folder  # nobody finds others' votes
