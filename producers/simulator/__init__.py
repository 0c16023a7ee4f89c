"""The made-up market: shoppers with tastes, what happens to them, and what recommending is worth to them."""
