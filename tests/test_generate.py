"""Generation: equal to transformers when greedy, drawn from the right distribution, independent of the batch, without side effects."""
import pytest
import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM, TemperatureLogitsWarper, TopPLogitsWarper

from prefkit.core import ConfigError, project_root
from prefkit.generate import _choose, generate, next_token_probs
from prefkit.world import tiny_config, tiny_records

TOKENIZER = AutoTokenizer.from_pretrained(project_root() / "data/tiny/base")
CHATS = [[{"role": "user", "content": record["prompt"]}] for record in tiny_records("prompts", "test", 6)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = Qwen2ForCausalLM(tiny_config(TOKENIZER, hidden_size=64, num_hidden_layers=2, initializer_range=0.2))
    return made.train() # a training model, so that a mode that is not put back is seen


def test_greedy_equals_transformers(model):
    ours = generate(model, TOKENIZER, CHATS, max_new_tokens=12, batch_size=3)
    model.eval()
    for chat, answer in zip(CHATS, ours):
        ids = TOKENIZER.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=12, do_sample=False, eos_token_id=[TOKENIZER.eos_token_id, TOKENIZER.pad_token_id])
        assert answer["text"] == TOKENIZER.decode(made[0, ids["input_ids"].shape[1]:], skip_special_tokens=True).strip()
    model.train()


def test_draws_do_not_depend_on_the_batch_nor_touch_global_state(model):
    before = torch.get_rng_state()
    one, six = (generate(model, TOKENIZER, CHATS, max_new_tokens=8, temperature=0.9, top_p=0.9, batch_size=size) for size in (1, 6))
    assert one == six and torch.equal(before, torch.get_rng_state()) and model.training
    assert one != generate(model, TOKENIZER, CHATS, max_new_tokens=8, temperature=0.9, top_p=0.9, seed=1)


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.6, 0.95), (1.5, 0.5), (0.6, 0.05)])
def test_probabilities_equal_those_of_transformers(temperature, top_p):
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 3
    warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits)) if top_p < 1 else logits / temperature
    torch.testing.assert_close(next_token_probs(logits, temperature=temperature, top_p=top_p), warped.softmax(-1), atol=1e-6, rtol=1e-5)


def test_draws_follow_the_distribution_and_never_fall_outside_top_p():
    logits, n = torch.tensor([[2.0, 1.0, 0.0, -3.0]]), 40_000
    drawn = _choose(logits.expand(n, 4), torch.rand(n, generator=torch.Generator().manual_seed(0)), 1.0, 0.9).bincount(minlength=4) / n
    torch.testing.assert_close(drawn, next_token_probs(logits, top_p=0.9)[0], atol=0.01, rtol=0)
    assert drawn[3] == 0
    largest = torch.full((1,), 1 - 2.0**-24) # the largest number that torch.rand gives
    assert _choose(logits, largest, 1.0, 0.9).item() < 3 and _choose(logits, torch.zeros(1), 1.0, 0.9).item() == 0


def test_says_which_answers_were_cut_off(model):
    answers = generate(model, TOKENIZER, CHATS, max_new_tokens=3)
    assert all(answer["tokens"] <= 3 for answer in answers)
    assert all(answer["ended"] or answer["tokens"] == 3 for answer in answers)


def test_stops_at_the_end_of_turn(model):
    end = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    class Ends(torch.nn.Module): # says one word, then ends
        device, training = torch.device("cpu"), False
        def __call__(self, input_ids, past_key_values=None, **_):
            logits = torch.zeros(len(input_ids), 1, len(TOKENIZER))
            logits[..., 300 if past_key_values is None else end] = 9.0
            return type("Out", (), {"logits": logits, "past_key_values": ()})
        def eval(self): return self
        def train(self, mode): return self
    answers = generate(Ends(), TOKENIZER, CHATS, max_new_tokens=10)
    assert all(answer == {"text": TOKENIZER.decode([300]).strip(), "tokens": 2, "ended": True} for answer in answers)


def test_refuses_settings_out_of_range(model):
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_new_tokens": 0}):
        with pytest.raises(ConfigError, match="must be"): generate(model, TOKENIZER, CHATS, **wrong)
