"""The families of streaming memories, one file each: what counts alone know about an item.

| file | what it asks | features |
|---|---|---|
| popularity.py | what does everybody take now? (dense: defined for every item) | 4 |
| successors.py | what came after or near the newest items? | 4 |
| occurrences.py | what came the last times, after the newest item and among the same company? | 2 |
| sessions.py | what else lies in others' sessions that share items with this history? | 1 |
| own.py | what does this user come back to? (where repeats are welcome) | 3 |

A sparse family is kernels that are called once a query:

    speak(n, ..., X_CS)     adds its sums to the features of the candidates, new ones among them; returns the
                            number of candidates
    share(..., out)         shares what a feature adds to a shown item's score [P], or to all of them [K, P],
                            out among the history items that it was summed over

and logarithms are taken of the sums in `candidates.py`, after all have spoken. A popularity family is one
kernel that writes the dense columns. Axes: C = candidate slots of a query, K = shown items, P = places of the
window and one more for what rests on none, S = sparse features. h_k is the k-th newest item of the history.
"""
