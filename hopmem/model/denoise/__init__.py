"""The map that retrieves best under given noise: what is tried, how it is refined, and how it is judged.

`learning` puts it together; `candidates` are closed forms from the second moments of `fisher`, `refine` descends from
the best of them, `search` holds what all of them are judged on, and `validation` judges.
"""
