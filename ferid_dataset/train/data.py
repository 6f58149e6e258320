"""The rows that a training reads, and those that it is validated on.

rows = load_training_rows(script_args, stage_args, seed=0)      Dataset of the mixed configs, classes balanced
"""

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset

from ferid_dataset.errors import FeridError
from ferid_dataset.train.arguments import StageArguments
from ferid_dataset.train.mixture import mix_rows, parse_mix, print_histogram
from ferid_dataset.train.validation import fixed_sample


def load_config(name: str, config: str | None) -> DatasetDict:
    """
    Raises:
        FeridError: `name` is no FERID, or was built without this config.
    """
    try:
        return load_dataset(name, name=config)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        remedy = f"make one with `ferid build {name} --folder ROOT`"
        if config == "conversation":
            remedy = f"build it with the conversations, `ferid build {name} --annotations FOLDER`"
        raise FeridError(f"{name} is no FERID with the config {config}: {remedy} ({reason})") from error


def load_split(name: str, config: str | None, split: str) -> Dataset:
    """
    Raises:
        FeridError: as [`load_config`], or there is no such split.
    """
    splits = load_config(name, config)
    if split not in splits:
        raise FeridError(f"{name} has no split {split}, only {', '.join(splits)}")
    return splits[split]


def load_training_rows(script_args, stage_args: StageArguments, seed: int, quiet: bool = False) -> Dataset:
    """The rows of an epoch; where they were mixed or balanced, a table of their classes is printed.

    Args:
        quiet: whether this is another process than the first, which prints nothing.

    Raises:
        FeridError: the dataset has no such config or split, or the mix makes no sense.
    """
    name, split = script_args.dataset_name, script_args.dataset_train_split
    if stage_args.data_mix is None:
        weights = {script_args.dataset_config: 1.0}
    else:
        weights = parse_mix(stage_args.data_mix)
    rows = {config: load_split(name, config, split) for config in weights}
    mixed = mix_rows(rows, weights, balance=stage_args.balance, seed=seed)
    if not quiet and (len(weights) > 1 or stage_args.balance):
        print_histogram(list(rows.values()), mixed)
    return mixed


def load_validation_rows(script_args, stage_args: StageArguments, seed: int) -> Dataset:
    """The fixed sample that validation by generation asks about.

    Raises:
        FeridError: there is no config `category` or no such split.
    """
    name, split = script_args.dataset_name, stage_args.validate_split
    try:
        rows = load_split(name, "category", split)
    except FeridError as error:
        raise FeridError(f"--validate_steps: {error}; --validate_split names another") from error
    return fixed_sample(rows, stage_args.validate_rows, seed)


def count_by_source(rows: Dataset, split: str) -> list[dict]:
    """[{"source": "raf_db", "split": "train", "rows": 12271}, ...] of rows that may be a selection."""
    sources, counts = np.unique(rows.select_columns("source")["source"][:], return_counts=True)
    return [{"source": str(source), "split": split, "rows": int(n)} for source, n in zip(sources, counts, strict=True)]
