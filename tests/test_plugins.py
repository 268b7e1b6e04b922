"""Code of one's own from a config: rewards, losses, judges, data sets, answerers; several rewards,
a server's and a judge's.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from textwrap import dedent

import pytest
import yaml

from prefkit.core import ConfigError, DataError, read_jsonl, write_text
from prefkit.data.records import DATASETS, load_records
from prefkit.data.sources import MAKERS
from prefkit.judging import combined
from prefkit.judging.answerers import ANSWERERS, of_config, register_answerer
from prefkit.judging.judges import JUDGES
from prefkit.judging.rewards import REWARDS, register_reward, reward_source
from prefkit.plugins import register_dataset, register_loss
from prefkit.runs import plugins
from prefkit.runs.config import load_config
from prefkit.runs.fingerprints import fingerprints
from prefkit.runs.runner import open_run, run
from prefkit.train.methods import METHODS, get_method

MODEL = "data/tiny/instruct"
ASKED = [{"role": "user", "content": "What colour is the fox?"}]
ROWS = [{"prompt": ASKED, "record": {"solution": "white"}, "row": "row 1"}] * 2
ANSWERS = [
    {"text": "The fox is white.", "tokens": 5, "ended": True},
    {"text": "White.", "tokens": 2, "ended": True},
]


@pytest.fixture(autouse=True)
def tables_as_they_were():
    "What a test registers is gone after it."
    tables = (REWARDS, JUDGES, METHODS, DATASETS, MAKERS, ANSWERERS, plugins._LOADED)
    before = [dict(table) for table in tables]
    yield
    for table, held in zip(tables, before):
        table.clear()
        table.update(held)


def file_of(folder, text, name="mine.py"):
    return write_text(folder / name, dedent(text))


def config_of(folder, stages, **more):
    made = {"experiment": "own", "stages": stages, "plugins": ["mine.py"], **more}
    return write_text(folder / "own.yaml", yaml.safe_dump(made))


REWARD = """
    from prefkit.plugins import register_reward

    def near(prompts, answers, *, words=5, **columns):
        return [-abs(len(answer.split()) - words) for answer in answers]

    register_reward("near", near)
"""
ROLLOUT = {
    "pipeline": "rollout",
    "parameters": {
        "model": MODEL,
        "reward": "near",
        "reward_options": {"words": 3},
        "limit": 8,
        "max_steps": 2,
        "batch_size": 4,
        "samples": 2,
        "validation_limit": 4,
    },
}


# ---- a file of one's own in a run


def test_rloo_learns_from_a_reward_of_ten_lines_and_a_config_alone(tmp_path):
    file_of(tmp_path, REWARD)
    config = config_of(tmp_path, {"rloo": ROLLOUT})
    folder = run(config, output_root=tmp_path / "runs", progress="quiet")["rloo"]
    found = open_run(folder)
    assert found.info["fingerprints"]["inputs"]["plugin mine.py"]
    assert all(
        sample["reward"] == -abs(len(sample["answer"].split()) - 3) for sample in found.samples
    )


def test_another_line_in_the_file_or_beside_it_runs_the_stage_again(tmp_path):
    file_of(tmp_path, "WORDS = 5\n", "beside.py")
    file_of(tmp_path, "import beside\n" + dedent(REWARD))
    config = config_of(tmp_path, {"rloo": ROLLOUT})
    first = fingerprints(load_config(config))["rloo"]
    assert fingerprints(load_config(config))["rloo"] == first
    file_of(tmp_path, "WORDS = 6\n", "beside.py")
    second = fingerprints(load_config(config))["rloo"]
    file_of(tmp_path, "import beside\n" + dedent(REWARD) + "\n# changed\n")
    third = fingerprints(load_config(config))["rloo"]
    assert len({one["stage"] for one in (first, second, third)}) == 3
    assert set(first["inputs"]) >= {"plugin mine.py", "plugin beside.py"}


def test_dpo_with_a_loss_of_ones_own(tmp_path):
    file_of(
        tmp_path,
        """
        from torch.nn.functional import relu
        from prefkit.plugins import register_loss

        def hinge(policy_chosen_logps, policy_rejected_logps, *, margin=1.0):
            return relu(margin - policy_chosen_logps + policy_rejected_logps)

        register_loss("hinge", hinge)
        """,
    )
    stage = {
        "pipeline": "preference",
        "parameters": {
            "method": "hinge",
            "hyperparameters": {"margin": 2.0},
            "model": MODEL,
            "limit": 8,
            "max_steps": 2,
            "batch_size": 4,
            "validation_limit": 4,
        },
    }
    config = config_of(tmp_path, {"hinge": stage})
    folder = run(config, output_root=tmp_path / "runs", progress="quiet")["hinge"]
    assert open_run(folder).metrics["loss"].notna().all()


@pytest.mark.slow
def test_a_data_set_of_ones_own_and_a_judge(tmp_path):
    file_of(
        tmp_path,
        """
        from prefkit.plugins import register_dataset, register_judge

        def sums(kind, split, n, seed):
            pairs = [(a, b) for a in range(9) for b in range(9)][: n or None]
            return [
                {"prompt": f"How much is {a} plus {b}?", "response": f"{a + b}."} for a, b in pairs
            ]

        def shorter(**options):
            return lambda records, store: [-len(one["answer"]) for one in records]

        register_dataset("sums", sums, ("sft", "prompts"), note="Small sums.")
        register_judge("shorter", shorter)
        """,
    )
    sft = {
        "pipeline": "sft",
        "parameters": {
            "model": MODEL,
            "dataset": "sums",
            "limit": 8,
            "validation_limit": 4,
            "max_steps": 1,
            "batch_size": 4,
        },
    }
    judged = {
        "pipeline": "evaluate",
        "parameters": {
            "models": {"before": MODEL, "after": "stage:sft"},
            "dataset": "sums",
            "judges": {"shorter": {}},
            "prompts": 4,
        },
    }
    config = config_of(tmp_path, {"sft": sft, "judged": judged})
    folders = run(config, output_root=tmp_path / "runs", progress="quiet")
    assert open_run(folders["sft"]).info["data"]["train"]["kept"] == 8
    rates = open_run(folders["judged"]).info["metrics"]["win_rates"]
    assert {one["judge"] for one in rates} == {"shorter"}


def test_papermill_by_itself_reads_the_variable(tmp_path, monkeypatch):
    from prefkit.runs.config import given_parameters

    file_of(tmp_path, REWARD)
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "mine.py"))
    given_parameters("rollout", {})
    assert reward_source("near", words=2)(ROWS, ANSWERS)[1]["reward"] == -1


@pytest.mark.parametrize(
    "text, said",
    [
        ("x = 1\ny = 1 / 0\n", r"mine\.py, line 2: ZeroDivisionError.*y = 1 / 0"),
        ("def f(:\n", r"mine\.py, line 1: SyntaxError"),
        ("import nowhere_at_all\n", r"mine\.py, line 1: ModuleNotFoundError"),
        (
            "from prefkit.plugins import register_reward\nregister_reward('gold', print)\n",
            r"plugins, mine\.py: reward: gold is there already",
        ),
        (
            "from prefkit.plugins import register_loss\nregister_loss('dpo', print)\n",
            r"plugins, mine\.py: method: dpo is there already",
        ),
    ],
)
def test_an_error_in_a_file_names_file_and_line(text, said, tmp_path):
    file_of(tmp_path, text)
    with pytest.raises(ConfigError, match=said):
        load_config(config_of(tmp_path, {"rloo": ROLLOUT}))


@pytest.mark.parametrize("named, said", [(["no.py"], "no.py is not there"), ("a.py", "list of")])
def test_a_file_that_is_not_there(named, said, tmp_path):
    config = config_of(tmp_path, {"rloo": ROLLOUT}, plugins=named)
    with pytest.raises(ConfigError, match=said):
        load_config(config)


def test_an_error_while_it_runs_names_file_and_line(tmp_path):
    file_of(
        tmp_path,
        """
        from prefkit.plugins import register_reward

        def broken(prompts, answers):
            return [answer.no_such_thing for answer in answers]

        register_reward("broken", broken)
        """,
    )
    plugins.load_plugins([tmp_path / "mine.py"])
    with pytest.raises(ConfigError, match=r"mine\.py, line 5: AttributeError.*no_such_thing"):
        reward_source("broken")(ROWS, ANSWERS)


# ---- functions as rewards


def test_both_forms_of_functions_and_their_columns():
    def ours(prompts, answers, solution):
        assert prompts == ["What colour is the fox?"] * 2 and solution == ["white"] * 2
        return [float(one in answer.lower()) for one, answer in zip(solution, answers)]

    def trl(prompts, completions, **columns):
        assert prompts[0] == ASKED and completions[1] == [
            {"role": "assistant", "content": "White."}
        ]
        return [len(columns["solution"]) for _ in completions]

    register_reward("ours", ours)
    register_reward("trl", trl)
    assert [one["reward"] for one in reward_source("ours")(ROWS, ANSWERS)] == [1.0, 1.0]
    assert [one["reward"] for one in reward_source("trl")(ROWS, ANSWERS)] == [2.0, 2.0]
    with pytest.raises(DataError, match="row 1 has no column solution"):
        reward_source("ours")([{**ROWS[0], "record": {}}], ANSWERS[:1])
    with pytest.raises(ConfigError, match="one for each"):
        register_reward("few", lambda prompts, answers: [1.0])
        reward_source("few")(ROWS, ANSWERS)


def test_a_dotted_name_is_imported(tmp_path, monkeypatch):
    file_of(tmp_path, "def two(prompts, answers):\n    return [2.0] * len(answers)\n", "own_two.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert reward_source("own_two.two")(ROWS, ANSWERS)[0]["reward"] == 2.0
    for name in ("own_two.three", "nowhere.two"):
        with pytest.raises(ConfigError, match="module.function"):
            reward_source(name)


def test_several_rewards_are_added_with_their_weights_and_each_is_told():
    register_reward("near", lambda prompts, answers, *, words=5: [-float(words)] * len(answers))
    of = {
        "gold": {"weight": 2.0},
        "near": {"weight": 0.5, "words": 3},
        "far": {"kind": "near", "words": 9, "weight": 0.0},
    }
    made = reward_source("weighted", of=of)(ROWS, ANSWERS)
    alone = reward_source("gold")(ROWS, ANSWERS)
    for one, gold in zip(made, alone):
        assert one["reward"] == pytest.approx(2 * gold["reward"] - 1.5)
        assert (one["gold"], one["near"], one["far"]) == (gold["reward"], -3.0, -9.0)
        assert one["gold_right"] == gold["right"]
    prints = {
        reward_source("weighted", of={"near": {"weight": weight, "words": words}}).fingerprint()
        for weight in (1.0, 2.0)
        for words in (3, 4)
    }
    assert len(prints) == 4
    for wrong, said in (
        ({}, "at least one"),
        ({"reward": {"kind": "gold"}}, "what the sum is called"),
        ({"nothing": {}}, "there is no reward `nothing`"),
    ):
        with pytest.raises(ConfigError, match=said):
            reward_source("weighted", of=wrong)


def test_a_judge_gives_rewards_by_its_score_or_by_duels():
    gold = [one["reward"] for one in reward_source("gold")(ROWS, ANSWERS)]
    scored = reward_source("judge", judge={"gold": {}})(ROWS, ANSWERS)
    assert [one["reward"] for one in scored] == gold
    source = reward_source("judge", judge={"duel": {"kind": "gold"}})
    source.asked.compares = True
    source.asked.compare = lambda a, b, store: _Won(a, b)
    assert [one["reward"] for one in source(ROWS, ANSWERS)] == [1.0, 0.0]
    with pytest.raises(ConfigError, match="Draw more samples"):
        source(ROWS[:1], ANSWERS[:1])
    with pytest.raises(ConfigError, match="name one"):
        reward_source("judge", judge={"gold": {}, "second": {}})


class _Won:
    "Longer answers win."

    def __init__(self, a, b):
        self.said = [len(x["answer"]) > len(y["answer"]) for x, y in zip(a, b)]

    def whole(self):
        return [type("Said", (), {"preference": float(won)}) for won in self.said]


# ---- a server of one's own


@pytest.fixture
def server():
    "Gives the number of words; what `faults` holds comes first. Counts what it is asked."
    state = {"faults": [], "asked": [], "at_once": 0, "most": 0, "key": None}
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            with lock:
                state["at_once"] += 1
                state["most"] = max(state["most"], state["at_once"])
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state["key"] = self.headers.get("Authorization")
            threading.Event().wait(0.02)
            with lock:
                fault = state["faults"].pop(0) if state["faults"] else None
                state["at_once"] -= 1
                state["asked"] += [] if fault else body["answers"]
            said = fault if isinstance(fault, bytes) else None
            words = [len(one.split()) for one in body["answers"]]
            said = said or json.dumps({"rewards": words}).encode()
            self.send_response(fault if isinstance(fault, int) else 200)
            if fault == "cut":
                self.send_header("Content-Length", "1000")
            self.end_headers()
            # a byte now and then: no gap is long, the whole takes for ever
            for _ in range(60 if fault == "drip" else 0):
                self.wfile.write(b" ")
                threading.Event().wait(0.05)
            self.wfile.write(said)

        def log_message(self, *_):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}/rewards", state
    made.shutdown()


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFKIT_CACHE", str(tmp_path / "cache"))


def test_a_server_is_asked_once_for_each_answer(server, cached, capsys, monkeypatch):
    monkeypatch.setattr(combined.HttpReward, "_told", False)
    url, state = server
    source = reward_source("http", url=url)
    assert [one["reward"] for one in source(ROWS, ANSWERS)] == [4.0, 1.0]
    again = reward_source("http", url=url)
    assert [one["reward"] for one in again(ROWS[::-1], ANSWERS[::-1])] == [1.0, 4.0]
    assert sorted(state["asked"]) == ["The fox is white.", "White."]
    reward_source("http", url=url, version="2")(ROWS, ANSWERS)  # another model, the same address
    assert len(state["asked"]) == 4
    assert "are known from before" in capsys.readouterr().out


def test_faults_that_pass_are_waited_for_and_others_are_errors(server, cached, monkeypatch):
    url, state = server
    source = reward_source("http", url=url, wait=0.001, retries=2)
    state["faults"] = [503, 429]
    assert [one["reward"] for one in source(ROWS, ANSWERS)] == [4.0, 1.0]
    other = [{**ANSWERS[0], "text": "Blue"}]
    for faults, said in (
        ([500] * 3, "500 .*, 3 times"),
        ([401], "401 "),
        ([b"nonsense"], "is not"),
        ([b'{"rewards": [1, 2]}'], "2 rewards for 1"),
        ([b'{"rewards": [NaN]}'], "no finite number"),
        ([b'{"rewards": [1' + b"0" * 400 + b"]}"], "is not"),
        ([b'{"rewards": [1' + b"0" * 5000 + b"]}"], "is not"),
        ([b'{"rewards": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"], "is not"),
        (["cut"] * 3, "is cut"),
        (["drip"] * 3, "no whole reply within 0.5 seconds"),
        ([b" " * 9000] * 3, "longer than 8,192 bytes"),
    ):
        source.timeout = 0.5
        monkeypatch.setattr(combined, "MOST_BYTES", 8192 if "longer" in said else 2**26)
        state["faults"] = list(faults)
        with pytest.raises(ConfigError, match=said):
            source(ROWS[:1], other)


def test_no_more_requests_at_a_time_than_asked_for(server, cached, monkeypatch):
    url, state = server
    monkeypatch.setenv("MY_KEY", "secret")
    many = [{"text": "word " * n, "tokens": n, "ended": True} for n in range(1, 25)]
    source = reward_source("http", url=url, batch_size=2, concurrency=3, key_env="MY_KEY")
    found = source([ROWS[0]] * 24, many)
    assert [one["reward"] for one in found] == list(range(1, 25))
    assert 1 < state["most"] <= 3 and state["key"] == "Bearer secret"


def test_what_is_wrong_with_a_server_is_said_before_training(cached):
    with pytest.raises(ConfigError, match="is no address"):
        reward_source("http", url="nowhere")
    away = combined.HttpReward(url="http://127.0.0.1:9/rewards", retries=0)
    with pytest.raises(ConfigError, match="127.0.0.1:9/rewards"):
        away.reach()
    lacking = combined.HttpReward(url="http://127.0.0.1:9/", key_env="NO_SUCH_KEY")
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        lacking.reach()


# ---- names


def test_names_of_ours_are_taken_and_own_ones_may_be_given_again():
    def loss(policy_logps, *, scale=1.0):
        return -scale * policy_logps

    for _ in range(2):
        row = register_loss("mine", loss, "sft")
        register_dataset("mine", lambda kind, split, n, seed: [], ("sft",))
        register_reward("mine", lambda prompts, answers: [0.0 for _ in answers])
    assert row.defaults == {"scale": 1.0} and not get_method("mine").reference
    for register in (
        lambda: register_loss("dpo", loss),
        lambda: register_dataset("tiny-world", list),
        lambda: register_reward("weighted", loss),
    ):
        with pytest.raises(ConfigError, match="is there already"):
            register()
    with pytest.raises(DataError):
        load_records("mine", kind="sft", limit=3, on_bad_rows="error")[0]


# ---- who answers


RULE = """
    from prefkit.plugins import register_answerer

    def rule(prompts, *, word="white", settings=None):
        assert settings["max_new_tokens"] == 8
        return [f"{prompt} {word}." for prompt in prompts]

    register_answerer("rule", rule)
"""


def evaluation(answerer):
    parameters = {
        "models": {"base": "data/tiny/base", "rule": answerer},
        "prompts": 4,
        "max_new_tokens": 8,
    }
    return {"evaluate": {"pipeline": "evaluate", "parameters": parameters}}


def test_an_answerer_of_ones_own_is_judged_beside_models(tmp_path):
    file_of(tmp_path, RULE)
    config = config_of(tmp_path, evaluation({"answerer": "rule", "word": "black"}))
    found = open_run(run(config, output_root=tmp_path / "runs", progress="quiet")["evaluate"])
    made = read_jsonl(found.path / "generations.jsonl")
    mine = [row for row in made if row["model"] == "rule"]
    assert [row["answer"] for row in mine] == [f"{row['prompt']} black." for row in mine]
    assert {row["model"] for row in found.info["metrics"]["win_rates"]} == {"rule"}
    assert found.info["fingerprints"]["inputs"]["plugin mine.py"]


@pytest.mark.parametrize(
    "answerer, said",
    [
        ({"answerer": "rul"}, "Did you mean `rule`"),
        ({"answerer": "rule", "words": 1}, "Did you mean `word`"),
        ({"answerer": "rule", "settings": {}}, "no option `settings`"),
    ],
)
def test_an_answerer_that_cannot_be_asked_is_refused_before_anything_runs(answerer, said, tmp_path):
    file_of(tmp_path, RULE)
    with pytest.raises(ConfigError, match=said):
        run(config_of(tmp_path, evaluation(answerer)), output_root=tmp_path / "runs")
    assert not (tmp_path / "runs" / "own").exists()


@pytest.mark.parametrize(
    "made, said",
    [
        (["one"], "gave 1 answers to 2 prompts"),
        ("text", "gave 1 answers"),
        (["one", None], "gave None for an answer"),
        (iter(()), "for an answer"),
    ],
)
def test_what_an_answerer_gives_is_a_text_for_each_prompt(made, said):
    register_answerer("fixed", lambda conversations: made)
    with pytest.raises(DataError, match=said):
        of_config({"answerer": "fixed"}).answer({"a": ASKED, "b": ASKED}, {}, "", print)


def test_an_answerers_error_names_file_and_line_and_its_form_is_checked(tmp_path):
    plugins.load_plugins([file_of(tmp_path, RULE)])
    with pytest.raises(ConfigError, match=r"mine.py, line 5: .*AssertionError"):
        of_config({"answerer": "rule"}).answer({"a": ASKED}, {"max_new_tokens": 9}, "", print)
    with pytest.raises(ConfigError, match="first parameter is prompts or conversations"):
        register_answerer("other", lambda answers: answers)
    register_answerer("needs", lambda prompts, url: [url] * len(prompts))
    with pytest.raises(ConfigError, match="option url must be given"):
        of_config({"answerer": "needs"})
