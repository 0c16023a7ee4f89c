"""The default roles of event types, by the usual names of the field.

Names are compared without case, separators and the object of the action: `order_cancelled`, `Cancel-Order`
and `cancelled` are one. Only whole names count, and ambiguous ones (`show`, `mute`) are not listed.
"""

from typing import Literal

Role = Literal["positive", "neutral", "negative", "exposure", "ignore"]  # "ignore" by configuration only
DEFAULT: Role = "positive"  # of every other name, with weight 1

_NAMES: dict[Role, str] = {
    "positive": """
        view click like love fav favorite favourite bookmark save follow subscribe share comment rate
        rating review cart add_to_cart add_to_basket add_to_bag add_to_wishlist wishlist checkout buy
        purchase order transaction play listen watch stream read open visit page_view view_item
        select_item download upvote thumbs_up conversion
    """,
    "neutral": "undislike unhide unblock",  # a corrected mistake is not positive
    "negative": """
        dislike disliked downvote downvoted vote_down thumbs_down thumb_down
        unlike unliked unfav unfavorite unfavorited unfavourite unfavourited unbookmark unbookmarked
        unsave unsaved unstar unstarred unfollow unfollowed unsubscribe unsubscribed
        uninstall uninstalled app_uninstall
        hide hidden dismiss dismissed skip skipped not_interested uninterested not_relevant irrelevant
        block blocked report reported report_abuse report_spam mark_as_spam spam complaint complain complained
        reject rejected decline declined chargeback
        cancel canceled cancelled cancelation cancellation return returns returned refund refunds refunded
        remove removed removal delete deleted
        remove_from_cart removed_from_cart delete_from_cart remove_cart cart_remove cart_removed cart_removal
        remove_from_basket removed_from_basket basket_remove remove_from_bag removed_from_bag
        remove_from_wishlist removed_from_wishlist wishlist_remove
        remove_from_favorites remove_from_favourites remove_favorite remove_favourite
        remove_like remove_bookmark
        remove_from_list remove_from_watchlist remove_from_playlist remove_from_library
    """,
    "exposure": """
        impression impressions ad_impression viewable_impression exposure exposures expose exposed
        shown served displayed view_item_list product_list_viewed
    """,
}
_OBJECTS = (
    "order", "purchase", "item", "product", "booking", "reservation", "subscription", "content", "article",
    "post", "video", "movie", "track", "song", "offer", "recommendation",
)  # fmt: skip


def built_in_role(name: str) -> Role:
    """Return the role of an event type by its name alone.

    >>> [built_in_role(name) for name in ("Remove-From-Cart", "removeFromCart", "Order Cancelled")]
    ['negative', 'negative', 'negative']
    >>> built_in_role("report_view"), built_in_role("listItemsShown"), built_in_role("item_shown")
    ('positive', 'positive', 'exposure')
    """
    bare = _bare(name)
    without = [cut(thing) for thing in _OBJECTS for cut in (bare.removeprefix, bare.removesuffix)]
    return next((_ROLES[form] for form in (bare, *without) if form in _ROLES), DEFAULT)


def _bare(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


FAMILIAR = frozenset(name for names in _NAMES.values() for name in names.split())  # as spelled here
_ROLES: dict[str, Role] = {_bare(name): role for role, names in _NAMES.items() for name in names.split()}
