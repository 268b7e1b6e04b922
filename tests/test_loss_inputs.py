"""What losses may ask for is typed: the fields of a class for each kind of data."""

import pytest
import torch

from prefkit.core import ConfigError
from prefkit.train.inputs import INPUTS, PairInputs, SampleInputs
from prefkit.train.methods import METHODS, Method, add_method


def test_every_method_asks_for_fields_of_its_kind():
    for method in METHODS.values():
        assert set(method.inputs()) <= set(INPUTS[method.kind].names())
        assert "others" not in method.inputs()


def test_inputs_are_taken_by_name_and_what_is_of_no_field_stays_for_those_who_watch():
    one = torch.ones(3, requires_grad=True)
    known = {"policy_chosen_logps": one, "policy_worst_logps": 2 * one, "chosen_rewards": None}
    inputs = PairInputs.of(known)
    assert inputs.asked(["policy_chosen_logps"]) == {"policy_chosen_logps": one}
    assert list(inputs.others) == ["policy_worst_logps"] and inputs.chosen_rewards is None
    bare = inputs.detach()
    assert not bare.policy_chosen_logps.requires_grad and one.requires_grad
    assert not bare.others["policy_worst_logps"].requires_grad
    assert bare.ref_chosen_logps is None


def test_a_trial_has_the_shapes_that_the_fields_name():
    trial = SampleInputs.trial(answers=6, prompts=3, samples=2, longest=5)
    assert trial.token_logps.shape == (6, 5) and trial.sampled_logps.shape == (3, 2)
    assert trial.mask.dtype == torch.bool and trial.lengths.dtype == torch.int64
    assert trial.ref_chosen_logps.shape == (3,)


def test_a_loss_that_asks_for_what_its_data_do_not_have_is_refused_with_what_they_have():
    def asks(policy_logps, ref_explore_logps):
        return policy_logps

    with pytest.raises(ConfigError) as caught:
        add_method(Method("asks", asks, "sft", reference=False))
    assert str(caught.value) == (
        "asks: the loss asks for ref_explore_logps, which sft data do not have; they have "
        "policy_logps, ref_logps, lengths."
    )
    assert (caught.value.field, caught.value.reason) == ("loss", "does not fit")
    assert "ref_explore_logps" not in PairInputs.names()  # it is watched only
