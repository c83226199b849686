"""The joint loss, against values worked by hand and its gradient against finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cov3d.config import LossSettings
from cov3d.labels import UNKNOWN
from cov3d.training.loss import (
    CHAIN,
    BalancedCrossEntropy,
    JointLoss,
    balanced_weights,
    group_weights,
    groups,
    neighbour_targets,
)
from cov3d.training.ordinal import cross_entropy, earth_movers, focal

LABELS = torch.tensor([[1, 1], [1, 2], [1, 3], [1, 4], [0, UNKNOWN], [1, UNKNOWN]])


def joint(presence, severity, severity_factor: float, **settings) -> JointLoss:
    """A joint loss, without smoothing unless it is said."""
    smoothing = {"presence_smoothing": 0.0, "severity_smoothing": 0.0}
    return JointLoss(presence, severity, severity_factor, LossSettings(**{**smoothing, **settings}))


def even_loss(**settings) -> JointLoss:
    """A loss from a training set with one scan of each group but five negatives, so that w = 1 for presence."""
    presence = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    severity = np.array([1, 2, 3, 4, *[UNKNOWN] * 6])
    return joint(presence, severity, **settings)


def test_class_weights_of_cov19_ct_db_are_the_papers():
    counts = [85, 62, 85, 26, 1110, 624]
    weights = group_weights(torch.repeat_interleave(torch.arange(6), torch.tensor(counts)))
    np.testing.assert_allclose(weights, [3.906, 5.355, 3.906, 12.769, 0.2991, 0.5321], rtol=2e-4)


def test_class_weights_average_one_over_the_training_set_also_when_groups_are_absent():
    group = torch.tensor([0, 0, 0, 4, 4, 4, 4, 5])
    weights = group_weights(group)
    assert weights[group].mean() == pytest.approx(1)
    assert weights[[1, 2, 3]].tolist() == [0, 0, 0]


def test_neighbour_targets_are_the_papers():
    e = 0.2
    expected = [
        [1 - e, e / 2, 0, 0, e / 2],  # mild
        [e / 2, 1 - e, e / 2, 0, 0],  # moderate
        [0, e / 2, 1 - e, e / 2, 0],  # severe
        [0, 0, e, 1 - e, 0],  # critical
        [e, 0, 0, 0, 1 - e],  # non-covid
    ]
    np.testing.assert_allclose(neighbour_targets(e, CHAIN), expected, atol=1e-7)


def test_groups_tell_severities_negatives_and_the_superset():
    assert groups(LABELS[:, 0], LABELS[:, 1]).tolist() == [0, 1, 2, 3, 4, 5]


def test_presence_loss_of_undecided_logits_is_worked_by_hand():
    presence = np.array([1, 0, 0])  # twice as many negatives: w = 2
    loss = joint(presence, np.full(3, UNKNOWN), severity_factor=0, presence_smoothing=0.1)
    positive = loss(torch.zeros(1, 6), torch.tensor([[1, UNKNOWN]]))
    negative = loss(torch.zeros(1, 6), torch.tensor([[0, UNKNOWN]]))
    assert positive.item() == pytest.approx((2 * 0.9 + 0.1) * math.log(2))
    assert negative.item() == pytest.approx((2 * 0.1 + 0.9) * math.log(2))


def test_severity_loss_of_undecided_logits_is_worked_by_hand():
    loss = even_loss(severity_factor=1, severity_smoothing=0.3)
    weights = [10 / 6] * 4 + [10 / 6 / 5] + [10 / 6]
    logs = [math.log(5)] * 5 + [-math.log(4 / 5)]
    for k, labels in enumerate(LABELS):
        assert loss(torch.zeros(1, 6), labels[None]).item() == pytest.approx(weights[k] * logs[k], rel=1e-5)


def test_a_smoothed_severity_is_worked_by_hand():
    loss = even_loss(severity_factor=1, severity_smoothing=0.2)
    z = torch.tensor([[0.0, 1.0, 2.0, 0.5, -1.0, 0.3]])
    log_q = (z[0, 1:] - z[0, 1:].exp().sum().log()).tolist()
    expected = -(10 / 6) * (0.1 * log_q[0] + 0.8 * log_q[1] + 0.1 * log_q[2])  # moderate
    assert loss(z, torch.tensor([[1, 2]])).item() == pytest.approx(expected, rel=1e-5)


def test_a_mixed_batch_is_the_mean_of_its_scans():
    loss = even_loss(severity_factor=0.7, presence_smoothing=0.1, severity_smoothing=0.1)
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    alone = [loss(logits[k : k + 1], LABELS[k : k + 1]).item() for k in range(6)]
    assert loss(logits, LABELS).item() == pytest.approx(np.mean(alone), rel=1e-6)


def test_superset_scans_pull_in_a_mixed_batch_too():
    loss = even_loss(severity_factor=1)
    logits = torch.zeros(6, 6, requires_grad=True)
    loss(logits, LABELS).backward()
    assert logits.grad[5, 1:5].lt(0).all()  # towards any severity
    assert logits.grad[5, 5] > 0  # away from non-covid


def test_severity_factor_weighs_the_two():
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    parts = [even_loss(severity_factor=f)(logits, LABELS).item() for f in (0, 1, 0.25)]
    assert parts[2] == pytest.approx(0.75 * parts[0] + 0.25 * parts[1], rel=1e-6)


def test_a_scans_weight_counts():
    loss = even_loss(severity_factor=0.5)
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    weighed = loss(logits, LABELS[[0, 4]], torch.tensor([2.0, 0.0]))
    assert weighed.item() == pytest.approx(loss(logits[:1], LABELS[:1]).item(), rel=1e-6)


def test_the_gradient_is_right_in_double_precision():
    presence, severity = np.array([1, 1, 1, 1, 0, 1]), np.array([1, 2, 3, 4, UNKNOWN, UNKNOWN])
    loss = joint(presence, severity, 0.6, presence_smoothing=0.1, severity_smoothing=0.2).double()
    logits = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: loss(z, LABELS), (logits,))


@pytest.mark.parametrize("height", [1e4, -1e4])
@pytest.mark.parametrize("column", range(6))
def test_huge_logits_stay_finite_with_their_gradients(height: float, column: int):
    logits = torch.zeros(6, 6)
    logits[:, column] = height
    logits.requires_grad_()
    loss = even_loss(severity_factor=0.5, presence_smoothing=0.1, severity_smoothing=0.1)(logits, LABELS)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_half_precision_logits_are_weighed_in_full():
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(2)).bfloat16()
    loss = even_loss(severity_factor=0.5)
    assert loss(logits, LABELS).item() == pytest.approx(loss(logits.float(), LABELS).item())


def test_activation_and_decodes_give_answers():
    logits = torch.tensor([[2.0, 0, 3, 0, 0, 9], [-2.0, 0, 0, 0, 1, 0]])
    loss = even_loss(severity_factor=0.5)
    activated = loss.activation(logits)
    assert activated.shape == (2, 5)
    np.testing.assert_allclose(activated[:, 1:].sum(1), 1, rtol=1e-6)
    assert loss.decodes(activated).tolist() == [[1, 2], [0, 4]]


# The other losses


def balanced(presence, severity, severity_factor: float, **settings) -> BalancedCrossEntropy:
    return BalancedCrossEntropy(np.array(presence), np.array(severity), severity_factor, LossSettings(**settings))


def test_balanced_weights_of_cov19_ct_db_are_the_papers():
    """258 graded scans; the paper prints (.15, .21, .15, .49) times 4."""
    weights = balanced_weights(np.repeat(range(4), [85, 62, 85, 26]), 4)
    np.testing.assert_allclose(weights / 4, [0.15, 0.21, 0.15, 0.49], atol=0.006)
    weights = balanced_weights(np.repeat(range(2), [1110, 882]), 2)
    np.testing.assert_allclose(weights / 2, [0.44, 0.56], atol=0.005)


def test_balanced_cross_entropy_is_torchs_where_all_scans_are_graded():
    severity = np.array([1, 1, 2, 3, 4, 4, 4])
    loss = balanced(np.ones(7, int), severity, 1.0)
    logits = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.stack([torch.ones(7, dtype=torch.long), torch.as_tensor(severity)], 1)
    weight = balanced_weights(severity - 1, 4)
    each = torch.nn.functional.cross_entropy(logits[:, 1:5], labels[:, 1] - 1, weight, reduction="none")
    torch.testing.assert_close(loss(logits, labels), each.mean())


def test_balanced_presence_is_the_cross_entropy_over_two_classes():
    presence = np.array([1, 0, 0, 0])
    loss = balanced(presence, np.full(4, UNKNOWN), 0.0)
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    labels = torch.stack([torch.as_tensor(presence), torch.full((4,), UNKNOWN)], 1)
    two = torch.stack([torch.zeros(4), logits[:, 0]], 1)
    each = torch.nn.functional.cross_entropy(two, labels[:, 0], balanced_weights(presence, 2), reduction="none")
    torch.testing.assert_close(loss(logits, labels), each.mean())


def test_scans_without_a_severity_cost_nothing_there_and_the_others_make_up_for_them():
    severity = np.array([1, 2, 3, 4, *[UNKNOWN] * 12])
    loss = balanced(np.ones(16, int), severity, 1.0)
    logits = torch.randn(16, 6, generator=torch.Generator().manual_seed(2))
    labels = torch.stack([torch.ones(16, dtype=torch.long), torch.as_tensor(severity)], 1)
    graded = torch.nn.functional.cross_entropy(logits[:4, 1:5], labels[:4, 1] - 1)
    torch.testing.assert_close(loss(logits, labels), graded)


def test_without_class_weights_every_class_counts_alike():
    presence, severity = np.array([1, 1, 0, 0, 0]), np.array([1, 2, UNKNOWN, UNKNOWN, UNKNOWN])
    assert joint(presence, severity, 0.5, class_weights="none").group_weights.tolist() == [1] * 6
    assert balanced([1, 1, 1, 1], [1, 1, 1, 2], 0.5, class_weights="none").severity_weights.tolist() == [1] * 4


LOG_Q = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
SECOND = torch.tensor([[0.0, 1.0, 0.0, 0.0]])


def test_the_costs_of_a_severity_are_worked_by_hand():
    assert cross_entropy(LOG_Q, SECOND).item() == pytest.approx(-math.log(0.2))
    assert focal(LOG_Q, SECOND, gamma=2.0).item() == pytest.approx(-(0.8**2) * math.log(0.2))
    assert focal(LOG_Q, SECOND, gamma=0.0).item() == pytest.approx(-math.log(0.2))
    assert earth_movers(LOG_Q, SECOND, order=range(4)).item() == pytest.approx(0.1**2 + 0.7**2 + 0.4**2)


def test_the_earth_movers_distance_grows_with_how_far_the_answer_is_off():
    order = [4, 0, 1, 2, 3]  # non-covid, mild, moderate, severe, critical
    target = torch.eye(5)[[4]]
    far = [earth_movers(torch.eye(5)[[k]].clamp(min=1e-30).log(), target, order).item() for k in order]
    assert far == pytest.approx([0, 1, 2, 3, 4])


@pytest.mark.parametrize("severity_loss", ["ce", "focal", "emd"])
@pytest.mark.parametrize("kind", [JointLoss, BalancedCrossEntropy])
def test_every_loss_is_finite_and_smallest_for_the_right_answer(kind, severity_loss: str):
    smoothing = {"presence_smoothing": 0.0, "severity_smoothing": 0.0}
    loss = kind(*np.array(LABELS.tolist()).T, 0.5, LossSettings(severity_loss=severity_loss, **smoothing))
    right = torch.full((6, 6), -20.0)
    right[:5, 0] = torch.tensor([20.0, 20, 20, 20, -20])
    right[5, :2] = 20.0
    right[range(5), range(1, 6)] = 20.0
    wrong = -right
    assert torch.isfinite(loss(right, LABELS)) and torch.isfinite(loss(wrong, LABELS))
    assert loss(right, LABELS) < 1.5 < loss(wrong, LABELS)
