"""One module a source dataset: each reads its own layout on disk into the columns of `base.SAMPLES`."""
