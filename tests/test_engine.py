"""The engine: every layout and every head gives the log-probs and gradients of one plain forward
pass for each answer.
"""

import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.qwen2 import modeling_qwen2

import prefkit.model.kernels as engine
from prefkit.core import ConfigError
from prefkit.data.rows import Row
from prefkit.losses import dpo_loss
from prefkit.model.batches import (
    LAYOUTS,
    batch_logps,
    can_read,
    choose_layout,
    collate,
    scored_logps,
)
from prefkit.model.kernels import (
    ATTENTION,
    blocks_of,
    halves,
    head_logps,
    pack_rows,
    shared_prefix,
    use_rows,
)

PAD = 2  # also the token that ends an answer
SMALL = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)


def small(
    tied=True, dtype=torch.float32, lora=None, config=Qwen2Config, model=Qwen2ForCausalLM, **changes
):
    torch.manual_seed(1)
    made = model(config(**SMALL, tie_word_embeddings=tied, **changes)).to(dtype).eval()
    if lora:
        made = get_peft_model(made, LoraConfig(r=4, target_modules=lora, task_type="CAUSAL_LM"))
        torch.manual_seed(2)
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
        made = made.to(dtype)
    return made


def random_rows(seed, n, answers=("chosen", "rejected"), prompts=(1, 30), longest=25):
    draw = torch.Generator().manual_seed(seed)
    number = lambda low, high: int(torch.randint(low, high + 1, (), generator=draw))
    ids = lambda length: torch.randint(3, 97, (length,), generator=draw).tolist()
    rows = [
        {
            "prompt_ids": ids(number(*prompts)),
            **{f"{name}_ids": ids(number(0, longest)) + [PAD] for name in answers},
        }
        for _ in range(n)
    ]
    rows[0][f"{answers[0]}_ids"] = [PAD]  # an answer of one token
    return rows


def one_by_one(model, rows, answers):
    "The oracle: every answer alone, nothing padded, all scores, log_softmax."
    found = []
    for name, row in itertools.product(answers, rows):
        ids, start = (
            torch.tensor([row["prompt_ids"] + row[f"{name}_ids"]]),
            max(1, len(row["prompt_ids"])),
        )
        logps = (
            model(input_ids=ids)
            .logits[0]
            .to(torch.promote_types(next(model.parameters()).dtype, torch.float32))
            .log_softmax(-1)
        )
        found.append(logps[:-1].gather(-1, ids[0, 1:, None])[start - 1 :].sum())
    return torch.stack(found)


def left_padded(model, rows, answers):
    "Padding on the left, as samplers have it: mask and positions."
    texts = [row["prompt_ids"] + row[f"{name}_ids"] for name in answers for row in rows]
    width = max(map(len, texts))
    ids = torch.tensor([[PAD] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    logps = (
        model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
        .logits.log_softmax(-1)[:, :-1]
        .gather(-1, ids[:, 1:, None])
        .squeeze(-1)
    )
    lengths = [len(row[f"{name}_ids"]) for name in answers for row in rows]
    return torch.stack([row[-length:].sum() for row, length in zip(logps, lengths)])


def gradients(model, values):
    model.zero_grad()
    (values**2 / 1000).sum().backward()
    return torch.cat(
        [weight.grad.flatten() for weight in model.parameters() if weight.requires_grad]
    )


def relative(one, other):
    return float((one - other).norm() / other.norm())


@pytest.fixture
def double_norms(monkeypatch):
    """Qwen's norms compute in float32 whatever the model's type; here in the type of what they are
    given.
    """

    def forward(self, states):
        return (
            self.weight
            * states
            * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )

    monkeypatch.setattr(modeling_qwen2.Qwen2RMSNorm, "forward", forward)


LORA = {"none": None, "attention": ["q_proj", "v_proj"], "head": ["q_proj", "lm_head"]}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "tied, lora",
    [(True, "none"), (False, "none"), (False, "attention"), (True, "attention"), (False, "head")],
)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_every_layout_gives_the_plain_numbers_and_gradients(
    double_norms, monkeypatch, layout, tied, lora, dtype, tolerance
):
    model = small(tied, dtype, LORA[lora])
    assert use_rows(model) and halves(model) is not None
    # seven tokens at a time, so that there are several pieces
    monkeypatch.setattr(engine, "PIECE", 97 * 7)
    for seed, answers in (
        (0, ("chosen", "rejected")),
        (1, ("response",)),
        (2, ("s0", "s1", "s2", "s3")),
    ):
        rows = random_rows(seed, 5, answers)
        wanted, found = (
            one_by_one(model, rows, answers),
            batch_logps(model, collate(rows, answers, PAD, layout)),
        )
        assert relative(found, wanted) < tolerance
        assert (
            relative(gradients(model, found), gradients(model, one_by_one(model, rows, answers)))
            < tolerance
        )
    # so the left-padded reading is the same thing, too
    assert relative(left_padded(model, rows, answers), wanted) < 10 * tolerance


def alike(rows, shared):
    "Rows whose prompts begin with the same tokens."
    first = list(range(5, 5 + shared))
    return [{**row, "prompt_ids": first + row["prompt_ids"]} for row in rows]


@pytest.mark.parametrize("lora", LORA)
@pytest.mark.parametrize("shared", [1, 23])
def test_what_all_prompts_begin_with_is_read_once_with_the_plain_numbers_and_gradients(
    shared, lora
):
    model = small(lora=LORA[lora])
    use_rows(model)
    for seed, answers in ((0, ("chosen", "rejected")), (1, ("response",))):
        apart = random_rows(seed, 6, answers)
        rows = alike(apart, shared)
        batch = collate(rows, answers, PAD, "packed")
        tokens = len(pack_rows(apart, answers)["input_ids"][0])
        assert batch.reads["input_ids"].numel() == tokens + shared
        wanted, found = one_by_one(model, rows, answers), batch_logps(model, batch)
        assert relative(found, wanted) < 1e-5
        plain = gradients(model, one_by_one(model, rows, answers))
        assert relative(gradients(model, found), plain) < 1e-5


def test_a_prompt_that_all_others_begin_with_keeps_its_last_token():
    rows = [Row([5, 6, 7], {"a": [8]}), Row([5, 6, 7, 9], {"a": [8]}), Row([5, 6, 7], {"a": [9]})]
    assert shared_prefix(rows) == 2 and shared_prefix(rows[:1]) == 0
    assert shared_prefix([Row([], {"a": [8]}), Row([5], {"a": [8]})]) == 0
    assert shared_prefix([Row([5], {"a": [8]}), Row([5], {"a": [9]})]) == 0
    batch = pack_rows(rows, ("a",))
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 7, 9, 8, 7, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4, 2, 3]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_prompt_the_first_token_is_read_and_not_scored(layout):
    model = small()
    use_rows(model)
    rows = random_rows(3, 4, prompts=(0, 0)) + random_rows(4, 2)
    batch = collate(rows, ("chosen", "rejected"), PAD, layout)
    found = batch_logps(model, batch)
    assert relative(found, one_by_one(model, rows, ("chosen", "rejected"))) < 1e-5
    assert batch.lengths.tolist() == [
        len(row[f"{name}_ids"]) - (not row["prompt_ids"])
        for name in ("chosen", "rejected")
        for row in rows
    ]
    assert found[0] == 0  # an answer of one token with nothing before it
    assert gradients(model, found).isfinite().all()


def test_accumulating_eight_times_four_rows_equals_one_batch_of_thirty_two():
    model, rows = small(), random_rows(5, 32)
    use_rows(model)

    def gradient(parts, layout):
        model.zero_grad()
        for part in parts:
            chosen, rejected = batch_logps(
                model, collate(part, ("chosen", "rejected"), PAD, layout)
            ).chunk(2)
            (
                dpo_loss(
                    chosen, rejected, torch.full_like(chosen, -50), torch.full_like(chosen, -50)
                ).sum()
                / len(rows)
            ).backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters()])

    whole = gradient([rows], "apart")
    for layout in LAYOUTS:
        assert relative(gradient([rows[i : i + 4] for i in range(0, 32, 4)], layout), whole) < 1e-5


def test_dropout_falls_on_packed_batches_too_and_gradient_checkpointing_changes_nothing():
    model, rows = small(), random_rows(6, 4)
    use_rows(model)
    batch = collate(rows, ("chosen", "rejected"), PAD, "packed")
    plain = gradients(model, batch_logps(model, batch))
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert relative(gradients(model, batch_logps(model, batch)), plain) < 1e-6
    dropping = small(attention_dropout=0.5).train()
    use_rows(dropping)
    torch.manual_seed(0)
    with torch.no_grad():
        assert not torch.equal(batch_logps(dropping, batch), batch_logps(dropping, batch))


@pytest.mark.parametrize(
    "config, model", [(LlamaConfig, LlamaForCausalLM), (GemmaConfig, GemmaForCausalLM)]
)
def test_other_models_read_packed_batches(config, model):
    extra = {"head_dim": 8} if config is GemmaConfig else {}
    made, rows = small(config=config, model=model, **extra), random_rows(7, 5)
    assert choose_layout(made, rows, ("chosen", "rejected"), PAD) == "packed"
    batch = collate(rows, ("chosen", "rejected"), PAD, "packed")
    assert relative(batch_logps(made, batch), one_by_one(made, rows, ("chosen", "rejected"))) < 1e-5


def test_positions_that_are_learned_are_read_as_well():
    torch.manual_seed(0)
    model, rows = (
        GPT2LMHeadModel(
            GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128)
        ).eval(),
        random_rows(8, 5),
    )
    layout = choose_layout(model, rows, ("chosen", "rejected"), PAD)
    found = batch_logps(model, collate(rows, ("chosen", "rejected"), PAD, layout))
    assert relative(found, one_by_one(model, rows, ("chosen", "rejected"))) < 1e-5


def test_a_model_that_cannot_read_packed_batches_gets_what_it_can_read_and_that_is_said(capsys):
    rows, answers = random_rows(9, 4), ("chosen", "rejected")
    window = small(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    assert (
        choose_layout(window, rows, answers, PAD) == "apart" and "apart" in capsys.readouterr().out
    )
    # rows that fit into the window may be packed: the mask that is lost would hide nothing
    wide = small(use_sliding_window=True, sliding_window=64, max_window_layers=0)
    assert choose_layout(wide, rows, answers, PAD) == "packed" and not use_rows(wide)
    eager = Qwen2ForCausalLM._from_config(Qwen2Config(**SMALL), attn_implementation="eager")
    assert choose_layout(eager, rows, answers, PAD) == "apart" and not use_rows(eager)
    deaf = small(initializer_range=0.5)  # so that positions matter
    original = deaf.model.forward
    # passes nothing on to its attention
    deaf.model.forward = lambda *args, blocks=None, back=None, **kwargs: original(*args, **kwargs)
    assert (
        choose_layout(deaf, rows, answers, PAD) == "shared" and "shared" in capsys.readouterr().out
    )
    deaf.model.forward = lambda *args, blocks=None, back=None, position_ids=None, **kwargs: (
        original(*args, **kwargs)
    )
    assert choose_layout(deaf, rows, answers, PAD) == "apart" and not can_read(
        deaf, rows, answers, PAD, "shared"
    )
    assert (
        choose_layout(small(), rows, answers, PAD) == "packed"
        and capsys.readouterr().out.count("cannot") == 1
    )


def test_a_packed_batch_is_refused_by_a_model_that_was_not_told():
    with pytest.raises(ConfigError, match="use_rows"):
        batch_logps(small(), collate(random_rows(0, 2), ("chosen", "rejected"), PAD, "packed"))


def test_a_model_whose_scores_are_bent_is_read_whole():
    class Bent(Qwen2ForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = 3 * torch.tanh(out.logits / 3)
            return out

    model, rows = small(model=Bent), random_rows(10, 4)
    use_rows(model)
    assert halves(model) is None
    for layout in LAYOUTS:
        batch = collate(rows, ("chosen", "rejected"), PAD, layout)
        assert (
            relative(batch_logps(model, batch), one_by_one(model, rows, ("chosen", "rejected")))
            < 1e-5
        )
        _, states = scored_logps(model, batch, hidden=True)
        assert states.shape == (batch.response_tokens, 32)


def test_a_model_that_reads_packed_batches_generates_and_is_saved_as_before(tmp_path):
    model = small()
    ids, mask = (
        torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]]),
        torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
    )
    before = model.generate(
        ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    use_rows(model)
    assert torch.equal(
        model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0),
        before,
    )
    model.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


class Largest(TorchDispatchMode):
    "Elements of the largest tensor made inside."

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_table_of_scores_exists_in_pieces_only_forward_and_backward(monkeypatch, frozen, bias):
    torch.manual_seed(0)
    tokens, width, vocabulary = 300, 8, 1000
    head, targets = (
        torch.nn.Linear(width, vocabulary, bias=bias).requires_grad_(not frozen),
        torch.randint(vocabulary, (tokens,)),
    )
    hidden = torch.randn(tokens, width, requires_grad=True)
    monkeypatch.setattr(engine, "PIECE", 10 * vocabulary)
    with Largest() as seen:
        found = head_logps(head, hidden, targets)
        (found**2).sum().backward()
    assert seen.elements == 10 * vocabulary  # the piece; head.weight.grad has 8,000
    mine = [
        hidden.grad.clone(),
        *(weight.grad.clone() for weight in head.parameters() if not frozen),
    ]
    hidden.grad = None
    head.zero_grad()
    wanted = head(hidden).log_softmax(-1)[range(tokens), targets]
    (wanted**2).sum().backward()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        mine,
        [hidden.grad, *(weight.grad for weight in head.parameters() if not frozen)],
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_head_under_autocast_multiplies_in_its_type_and_sums_in_float32():
    torch.manual_seed(0)
    head, hidden, targets = (
        torch.nn.Linear(64, 500, bias=False),
        torch.randn(40, 64, requires_grad=True),
        torch.randint(500, (40,)),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head_logps(head, hidden, targets)
    assert found.dtype == torch.float32
    scores = (hidden.bfloat16() @ head.weight.bfloat16().T).float()
    torch.testing.assert_close(
        found, scores.log_softmax(-1)[range(40), targets], rtol=1e-5, atol=1e-5
    )
    found.sum().backward()
    assert head.weight.grad.dtype == torch.float32 and hidden.grad.dtype == torch.float32
    (exact,) = torch.autograd.grad(
        head(hidden).log_softmax(-1)[range(40), targets].sum(), head.weight
    )
    assert relative(head.weight.grad, exact) < 0.02


def test_scores_far_from_zero_stay_finite():
    head = torch.nn.Linear(4, 9, bias=False)
    with torch.no_grad():
        head.weight.mul_(1e4)
    hidden = torch.randn(6, 4, requires_grad=True)
    found = head_logps(head, hidden, torch.arange(6))
    found.sum().backward()
    assert found.isfinite().all() and hidden.grad.isfinite().all()
    torch.testing.assert_close(
        found, head(hidden).log_softmax(-1)[range(6), range(6)], rtol=1e-4, atol=1e-2
    )


def test_a_packed_batch_holds_every_token_once_and_rows_of_like_length_stand_together():
    rows = random_rows(11, 12)
    batch = pack_rows(rows, ("chosen", "rejected"))
    wanted = [
        token
        for row in rows
        for name in ("prompt", "chosen", "rejected")
        for token in row[f"{name}_ids"]
    ]
    assert (
        batch["input_ids"].tolist() == [wanted]
        and batch["position_ids"].shape == batch["input_ids"].shape
    )
    filled = torch.cat([places.flatten() for places in batch["blocks"]])
    assert torch.equal(filled[batch["back"]], torch.arange(len(wanted)))  # there and back
    lengths = [100, 12, 90, 10, 75, 74, 11, 30]
    blocks = blocks_of(lengths)
    assert sorted(sum(blocks, [])) == list(range(8)) and [
        [lengths[i] for i in block] for block in blocks
    ] == [[100, 90, 75, 74], [30], [12, 11, 10]]
