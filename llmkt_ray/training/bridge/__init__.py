"""The one place that knows RecBole: its shims, its settings, its datasets, its models.

`registry` and `settings` import no RecBole, so that a study can be checked in milliseconds; `dataset` and `models` do.
"""
