"""Count features: what counts alone know about an item, one family a file.

| file | question | features |
|---|---|---|
| popularity.py | what is popular now? | 4, of every item |
| transitions.py | what came after or near the newest items? | 3 |
| recent_transitions.py | what came right after the newest item, recently? | 1 |
| context_matches.py | what came the last times after the newest item, with the same items before it? | 2 |
| repeats.py | what does this user come back to? (where repeats are allowed) | 3 |
| sessions.py | what else is in sessions of others that share items with this history? | 1 |
| newest.py | what appeared last? (candidates alone) | 0 |

family.py is the protocol of a family, bank.py the list of families and the one pass that returns a query's
candidates with all their features. Axes: B = queries, L = places of a window (newest first), C = candidate
slots of a query, N = candidates of all queries, F = features, M = item rows, K = shown items. h_k is the k-th
newest item of the history.
"""
