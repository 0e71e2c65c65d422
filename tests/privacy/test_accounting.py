"""Epsilons against dp-accounting's own figures, and against known bounds."""

import math

import dp_accounting
import pytest
from dp_accounting import NeighboringRelation, pld, rdp

from fedlite.errors import UserError
from fedlite.privacy import accounting, tree

DELTA = 1e-3


@pytest.mark.parametrize(("noise", "rounds"), [(0.7, 30), (1.0, 100), (4.0, 300)])
def test_poisson_is_dp_accountings_figure(noise, rounds):
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(noise)), rounds
    )
    ours = accounting.sampled_epsilon("poisson", 100, 10, noise, rounds, DELTA)
    assert ours == pytest.approx(pld.PLDAccountant().compose(event).get_epsilon(DELTA), rel=1e-3)
    assert ours <= rdp.RdpAccountant().compose(event).get_epsilon(DELTA)


@pytest.mark.parametrize(("noise", "rounds"), [(1.5, 30), (4.0, 300)])
def test_fixed_size_lies_between_a_true_attack_and_the_renyi_bound(noise, rounds):
    """The attack: everybody else sends -C, one client sends C or -C."""
    ours = accounting.sampled_epsilon("uniform", 100, 10, noise, rounds, DELTA)
    attack = accounting.sampled_epsilon("poisson", 100, 10, noise / 2, rounds, DELTA)
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.SampledWithoutReplacementDpEvent(
            100, 10, dp_accounting.GaussianDpEvent(noise / 2)
        ),
        rounds,
    )
    accountant = rdp.RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    assert attack <= ours <= accountant.compose(event).get_epsilon(DELTA)
    # As dp-accounting has it: each draw is a Gaussian of twice the sensitivity, replaced.
    once = pld.privacy_loss_distribution.from_gaussian_mechanism(
        noise / 2, sampling_prob=0.1, neighboring_relation=NeighboringRelation.REPLACE_ONE
    )
    own = once.self_compose(rounds).get_epsilon_for_delta(DELTA)
    assert ours == pytest.approx(own, rel=1e-3)


def test_all_clients_every_round_is_no_sampling():
    poisson = accounting.sampled_epsilon("poisson", 10, 10, 8.0, 16, DELTA)
    assert poisson == pytest.approx(accounting.gaussian_epsilon(8.0, 16, DELTA), rel=1e-3)
    uniform = accounting.sampled_epsilon("uniform", 10, 10, 8.0, 16, DELTA)
    assert uniform == pytest.approx(accounting.gaussian_epsilon(8.0, 64, DELTA), rel=1e-3)


def test_gaussian_is_dp_accountings_figure():
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(3.0), 5)
    own = pld.PLDAccountant().compose(event).get_epsilon(DELTA)
    assert accounting.gaussian_epsilon(3.0, 5, DELTA) == pytest.approx(own, rel=1e-3)


def test_a_tree_costs_no_more_than_its_renyi_bound():
    """One pass: alpha (floor(log2 T) + 1) / (2 sigma^2), Kairouz et al. 2021, appendix D."""
    event = dp_accounting.SingleEpochTreeAggregationDpEvent(2.0, 100)
    accountant = rdp.RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    bound = accountant.compose(event).get_epsilon(DELTA)
    squared = tree.sensitivity_squared(100, separation=100)
    ours = accounting.gaussian_epsilon(2.0, squared, DELTA)
    assert 0.7 * bound < ours < bound


@pytest.mark.parametrize("participation", accounting.SAMPLED)
def test_no_noise_no_rounds(participation):
    assert accounting.sampled_epsilon(participation, 100, 10, 0.0, 5, DELTA) == math.inf
    assert accounting.sampled_epsilon(participation, 100, 10, 1.0, 0, DELTA) == 0
    assert accounting.gaussian_epsilon(0.0, 4, DELTA) == math.inf
    assert accounting.gaussian_epsilon(1.0, 0, DELTA) == 0


@pytest.mark.parametrize("target", [0.5, 8.0])
def test_the_solved_multiplier_keeps_to_epsilon_and_no_more(target):
    def epsilon_of(noise):
        return accounting.sampled_epsilon("poisson", 100, 10, noise, 20, DELTA)

    noise = accounting.solve_noise_multiplier(epsilon_of, target)
    assert 0.99 * target < epsilon_of(noise) <= target
    assert epsilon_of(noise / 1.002) > target


def test_an_epsilon_out_of_reach_is_refused():
    with pytest.raises(UserError, match="out of reach"):
        accounting.solve_noise_multiplier(lambda noise: 1.0, 0.5)
