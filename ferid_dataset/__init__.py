"""FERID, the data wing: from labelled face pictures to the rows that `load_dataset("ferid", "category")` reads.

The road, each file one station: `sources/` read what lies on disk -> `verify.py` opens every picture and clip ->
`faces.py` looks for faces -> `ferid.py`, the builder, joins them to rows -> `build.py` writes the folder -> `stats.py`
counts it, `publish.py` pushes it. `labels.py` owns the words for expressions, `prompts.py` the wording of
instructions. Nothing is imported here, so importing it is instant:

    from ferid_dataset.build import build_ferid
    build_ferid("ferid", raf_db="RAF-DB", dfew="DFEW")
"""
