"""How much a shopper wants what is shown: by taste and by what follows what, whoever shows it.

Axes: V = visits, K = items shown, C = categories, F = favourite categories, R = successors of an item.
"""

import numpy as np

from producers.simulator.market import Floats, Ints
from producers.simulator.tastes import SUCCESSOR_SHARES
from producers.simulator.users import Shop


def wishes(shop: Shop, user_V: Ints, last_V: Ints, place_VK: Ints, made: int) -> Floats:
    """Return the chance that each user's next step, were it free, would go to each item, [V, K].

    It is what `Shop` draws steps from: successors of the last item (`last_V`, -1: none), favourite
    categories, what is popular everywhere, and what a burst makes hot. 0 for an item that the user has met,
    that can't be had, or that is none (-1). A noise user's wishes are 0 too.
    """
    items, market = shop.items, shop.market
    there_C = items.there(made)
    category_VK = items.category_P[place_VK]
    within_C = items.cumulative[items.first_C + there_C] - items.cumulative[items.first_C]
    share_VK = items.weight_P[place_VK] / within_C[category_VK]  # of its category's draw
    taste_VF = shop.tastes.of(user_V)
    liked_VKF = category_VK[:, :, None] == taste_VF[:, None, :]
    taste_VK = (liked_VKF * shop.taste_shares(taste_VF)[:, None, :]).sum(axis=2) * share_VK
    trend_VK = shop.trend_shares()[category_VK] * share_VK
    next_VR = np.where(last_V[:, None] < 0, -1, shop.tastes.successors(user_V, last_V))
    follow_VK = ((place_VK[:, :, None] == next_VR[:, None, :]) * np.array(SUCCESSOR_SHARES)).sum(axis=2)
    follow_V1 = np.where(last_V < 0, 0.0, market.follow)[:, None]
    wish_VK = follow_V1 * follow_VK + (1 - follow_V1) * taste_VK
    wish_VK = market.trend * trend_VK + (1 - market.trend) * wish_VK
    for hot in shop.rhythm.fashions:
        of_item = hot.burst.kind == "item"
        hot_VK = place_VK == hot.target if of_item else (category_VK == hot.target) * share_VK
        wish_VK = (1 - hot.burst.share) * wish_VK + hot.burst.share * hot_VK
    first_VK = place_VK - items.first_C[category_VK]
    wanted_VK = (place_VK >= 0) & (first_VK < there_C[category_VK]) & ~items.gone_P[place_VK]
    wanted_VK &= ~shop.met(user_V, place_VK) & ~shop.noise_U[user_V][:, None]
    return np.where(wanted_VK, wish_VK, 0.0)
