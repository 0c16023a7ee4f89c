"""SASRec: its causal mask, and its loss at earlier positions."""

import numpy as np
import torch
from harness.streams import Batches, Event, small_settings

from pipeline.models.sasrec import SasRecConfig, SasRecModel, SasRecNet, sampled_softmax
from pipeline.recommender import Recommender

DIM, LENGTH = 8, 6


def test_a_place_sees_older_items_alone() -> None:
    torch.manual_seed(0)
    net, items_BLD = SasRecNet(SasRecConfig(dim=DIM, history=LENGTH)), torch.randn(2, LENGTH, DIM)
    empty_BL = torch.zeros(2, LENGTH, dtype=torch.bool)
    empty_BL[1, 4:] = True
    before = net(items_BLD, empty_BL)
    for place in range(LENGTH):
        changed = items_BLD.clone()
        changed[:, place] += torch.randn(DIM)
        moved_BL = ~torch.isclose(net(changed, empty_BL), before, atol=1e-6).all(2)
        assert not moved_BL[:, place + 1 :].any()  # newest first: these are older
        assert moved_BL[0, : place + 1].all()
        assert moved_BL[1, : place + 1].all() == (place < 4)
    assert not before[1, 4:].any()


def test_the_sampled_softmax_is_torch_s_cross_entropy_without_the_target_among_the_negatives() -> None:
    torch.manual_seed(1)
    items_RD, vectors_ND = torch.randn(9, DIM), torch.randn(4, DIM)
    item_N, negatives_S = torch.tensor([1, 2, 3, 8]), torch.tensor([2, 5, 6, 7])
    expected = 0.0
    for vector, item in zip(vectors_ND, item_N.tolist(), strict=True):
        others = [other for other in negatives_S.tolist() if other != item]
        logits = torch.stack([vector @ items_RD[row] for row in (item, *others)])
        expected += float(torch.nn.functional.cross_entropy(logits[None], torch.tensor([0])))
    found = sampled_softmax(vectors_ND, item_N, negatives_S, items_RD)
    np.testing.assert_allclose(float(found), expected, rtol=1e-5)


def test_with_all_positions_one_event_teaches_every_transition_of_the_window() -> None:
    falls = []
    for all_positions in (False, True):
        table = {"sasrec": {"dim": DIM, "history": LENGTH, "all_positions": all_positions}}
        recommender = Recommender(small_settings(name="sasrec", features="none", tables=table))
        batches = Batches()
        recommender.step(batches([Event("other", f"item-{n}") for n in range(30)]))
        recommender.step(batches([Event("user", f"item-{n}") for n in (4, 3, 2, 1, 0)]))
        before = earlier_loss(recommender)
        recommender.step(batches([Event("user", "item-9")]))
        falls.append(before - earlier_loss(recommender))
    assert falls[1] > max(0.0, 2 * falls[0])


@torch.no_grad()
def earlier_loss(recommender: Recommender) -> float:
    """The loss of predicting items 0 to 3 from the older ones of the window 0, 1, 2, 3, 4."""
    model, rows = recommender.models[0], recommender.state.items.rows([f"item-{n}" for n in range(30)])
    assert isinstance(model, SasRecModel)
    items_RD = torch.from_numpy(model.tables["item"].gather(rows))
    vectors_LD = model.net(items_RD[None, :5], torch.zeros(1, 5, dtype=torch.bool))[0]
    return float(sampled_softmax(vectors_LD[1:], torch.arange(4), torch.arange(5, 30), items_RD))
