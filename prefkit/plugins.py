"""What a plug-in imports: functions that add rewards, judges, losses, data sets and answerers by a
name.

A config names the files (`plugins: [my_reward.py]`), an installed package offers itself by an entry
point of the group `prefkit.plugins`.
"""

from prefkit.data.own import register_dataset
from prefkit.judging.answerers import register_answerer
from prefkit.judging.judges import register_judge
from prefkit.judging.rewards import register_reward
from prefkit.train.methods import register_loss

__all__ = [
    "register_answerer",
    "register_dataset",
    "register_judge",
    "register_loss",
    "register_reward",
]
