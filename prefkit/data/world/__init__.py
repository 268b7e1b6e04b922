"""A small world of made-up facts, questions and answers in which the true reward is known."""

from prefkit.data.splits import SPLITS
from prefkit.data.world.answerers import SFT_STYLES, VERBOSE_STYLES, Answerer, answer, pool
from prefkit.data.world.facts import ANIMALS, FACTS, WORLD_VERSION, World
from prefkit.data.world.judges import Reward, annotate, gold_reward, second_judge
from prefkit.data.world.pairs import CRITERIA, four_answers, preference_pair
from prefkit.data.world.styles import STYLES, WORDINGS, dress
from prefkit.data.world.tasks import (
    TASKS,
    Request,
    Sentence,
    Task,
    corrupt,
    is_held_out,
    prompts,
    read_request,
    truth,
)
from prefkit.data.world.text import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    IM_END,
    IM_START,
    SAMPLES,
    raw_documents,
    tiny_config,
    tiny_records,
    tokenizer_texts,
    train_tokenizer,
    write_samples,
)

__all__ = [
    "ANIMALS",
    "CHAT_TEMPLATE",
    "CRITERIA",
    "END_OF_TEXT",
    "FACTS",
    "IM_END",
    "IM_START",
    "SAMPLES",
    "SFT_STYLES",
    "SPLITS",
    "STYLES",
    "TASKS",
    "VERBOSE_STYLES",
    "WORDINGS",
    "WORLD_VERSION",
    "Answerer",
    "Request",
    "Reward",
    "Sentence",
    "Task",
    "World",
    "annotate",
    "answer",
    "corrupt",
    "dress",
    "four_answers",
    "gold_reward",
    "is_held_out",
    "pool",
    "preference_pair",
    "prompts",
    "raw_documents",
    "read_request",
    "second_judge",
    "tiny_config",
    "tiny_records",
    "tokenizer_texts",
    "train_tokenizer",
    "truth",
    "write_samples",
]
