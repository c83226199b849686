"""The joint loss, against values worked by hand and its gradient against finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cov3d.labels import UNKNOWN
from cov3d.training.loss import JointLoss, group_weights, groups, neighbour_targets

LABELS = torch.tensor([[1, 1], [1, 2], [1, 3], [1, 4], [0, UNKNOWN], [1, UNKNOWN]])


def even_loss(**settings) -> JointLoss:
    """A loss from a training set with one scan of each group but five negatives, so that w = 1 for presence."""
    presence = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    severity = np.array([1, 2, 3, 4, *[UNKNOWN] * 6])
    return JointLoss(presence, severity, **settings)


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
    np.testing.assert_allclose(neighbour_targets(e), expected, atol=1e-7)


def test_groups_tell_severities_negatives_and_the_superset():
    assert groups(LABELS[:, 0], LABELS[:, 1]).tolist() == [0, 1, 2, 3, 4, 5]


def test_presence_loss_of_undecided_logits_is_worked_by_hand():
    presence = np.array([1, 0, 0])  # twice as many negatives: w = 2
    loss = JointLoss(presence, np.full(3, UNKNOWN), severity_factor=0, presence_smoothing=0.1)
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
    loss = JointLoss(presence, severity, 0.6, 0.1, 0.2).double()
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
