"""The dataset card: `model_cards/ferid.md`, filled with what was counted.

`ferid build` writes it into its folder, `ferid push` into the Hub repository. Its YAML is what `load_dataset` reads;
what only the build knows stands under `ferid_build`, so that a later push can say it too:

    configs:
    - config_name: category
      data_files: [{split: train, path: category/train-3f1c09a2b5d86e47.parquet}, ...]
    ferid_build:
      choices: {fold: 1}
      read: {dfew: 11697}
      rejected: {dfew: 2}
      truncated: {}
      left_out: {}
      layouts: {dfew: frames of 224 x 224}
"""

import os
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData, metadata_load

from ferid_dataset.errors import FeridError
from ferid_dataset.labels import LABELS
from ferid_dataset.sources import SOURCES
from ferid_dataset.sources.base import SPLITS, Choices, Reading, Rejected, Source
from ferid_dataset.stats import in_order

# Beside the package: in a clone, and in an installation, to which pyproject.toml adds the folder.
TEMPLATE = Path(__file__).parents[1] / "model_cards" / "ferid.md"
MARK = "<!-- written by ferid build -->"  # tells a folder or repository of ours from any other

CHOICES = {  # those that a reader of the rows must know, and the sources that they are about
    "fold": {"dfew", "mafw", "crema_d"},
    "frames": {"dfew", "ferv39k", "mafw", "crema_d"},
    "affectnet_classes": {"affectnet"},
    "ferplus_label_rule": {"ferplus"},
    "mafw_labels": {"mafw"},
}
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")  # as the Hub spells them
LEAVES = {  # a column of the Parquet files that is filled when this is inside
    "pictures": "images.list.element.bytes",
    "paths": "images.list.element.path",
    "faces": "faces.list.element.list.element.score",
    "embeddings": "faces.list.element.list.element.embedding.list.element",
}
PAPER = """@article{xing2024emollama,
  title   = {EMO-LLaMA: Enhancing Facial Emotion Understanding with Instruction Tuning},
  author  = {Xing, Bohao and Yu, Zitong and Liu, Xin and Yuan, Kaishen and Ye, Qilang and Xie, Weicheng and
             Yue, Huanjing and Yang, Jingyu and K{\\"a}lvi{\\"a}inen, Heikki},
  journal = {arXiv preprint arXiv:2408.11424},
  year    = {2024}
}"""


class BuildFacts(NamedTuple):
    """What only the build knows; all but the choices by source."""

    choices: dict[str, int | str]  # {"fold": 1, "frames": 8}
    read: dict[str, int]  # samples that the sources list
    rejected: dict[str, int]  # of those, unusable: rejected.jsonl says why
    truncated: dict[str, int]  # clips of which a part is used: truncated.jsonl
    left_out: dict[str, dict[str, int]]  # of those, excluded by the protocol: {"affectnet": {"uncertain": 3}}
    layouts: dict[str, str]  # {"raf_db": "aligned pictures of the basic set"}


def build_facts(
    choices: Choices, readings: Mapping[str, Reading], rejected: Iterable[Rejected], truncated: Iterable[Rejected]
) -> BuildFacts:
    """The facts of a build: what was chosen, what the sources hold, and what of it is unusable or cut short."""
    return BuildFacts(
        # Named one by one: `Choices` also holds a path, which is nobody's business.
        choices={name: getattr(choices, name) for name, sources in CHOICES.items() if sources & set(readings)},
        read={source: reading.read for source, reading in readings.items()},
        rejected=_by_source(rejected),
        truncated=_by_source(truncated),
        left_out={source: reading.left_out for source, reading in readings.items() if reading.left_out},
        layouts={source: reading.layout for source, reading in readings.items() if reading.layout},
    )


def _by_source(rows: Iterable[Rejected]) -> dict[str, int]:
    return dict(sorted(Counter(row.id.split("/")[0] for row in rows).items()))


def read_build_facts(out: str | os.PathLike) -> BuildFacts:
    """The facts that stand in the card of a built FERID.

    Raises:
        FeridError: `out` holds none.
    """
    try:
        return BuildFacts(**metadata_load(Path(out) / "README.md")["ferid_build"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FeridError(f"{out} holds no FERID, or one of an older release: build it again") from error


def contents(files: Iterable[Path]) -> set[str]:
    """Which of "pictures", "paths", "faces" and "embeddings" the rows hold, by the footers of their Parquet files."""
    found = set()
    for file in files:
        footer = pq.read_metadata(file)
        place = {footer.schema.column(index).path: index for index in range(footer.num_columns)}
        groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
        found |= {
            name for name, leaf in LEAVES.items() if any(g.column(place[leaf]).statistics.num_values for g in groups)
        }
    return found - {"paths"} if "pictures" in found else found  # a picture that is inside keeps its file name


def dataset_card(
    name: str,
    files: Mapping[str, Mapping[str, str]],
    stats: Mapping[str, Any],
    facts: BuildFacts,
    inside: set[str],
) -> str:
    """
    Fill the dataset card.

    Args:
        name (`str`):
            What `load_dataset` is given: "ferid" for a folder, "user/ferid" on the Hub.
        files (`dict`):
            The names of the Parquet files, `{"category": {"train": "train-3f1c09a2b5d86e47.parquet"}}`; the first
            config is the default one.
        stats (`dict`):
            What [`~stats.count_ferid`] returned.
        facts (`BuildFacts`):
            What only the build knows.
        inside (`set[str]`):
            What [`contents`] found in the files.
    """
    instructions = stats["total"]["instructions"]
    metadata = DatasetCardData(
        configs=[_config(config, names, config == next(iter(files))) for config, names in files.items()],
        size_categories=[SIZES[bisect((1e3, 1e4, 1e5, 1e6), sum(sum(s.values()) for s in instructions.values()))]],
        ferid_build=facts._asdict(),
    )
    sources = [SOURCES[source["source"]] for source in stats["sources"]]
    here = "" if "/" in name else f"  # in the folder that holds {name}/"
    drawn = " **These are drawn faces, no photographs: what is measured on them says nothing about people.**"
    choices = ", ".join(f"`{choice}` {value}" for choice, value in facts.choices.items())
    return TEMPLATE.read_text(encoding="utf-8").format(
        metadata=metadata.to_yaml(),
        mark=MARK,
        sources=", ".join(source.title for source in sources),
        drawn=drawn if stats["drawn"] else "",
        load="\n".join(f'load_dataset("{name}", "{config}"){here}' for config in files),
        rows=_rows_table(stats),
        labels=_labels_table(stats),
        choices=f" Chosen for this build: {choices}." if choices else "",
        pictures=_pictures(name, inside, "conversation" in files, sources),
        faces=_faces(inside),
        terms="\n".join(_terms(source, facts) for source in sources),
        citations="\n\n".join([PAPER, *(source.citation.strip() for source in sources if source.citation)]),
    )


def _config(config: str, names: Mapping[str, str], default: bool) -> dict[str, Any]:
    # Names, not patterns: `datasets` keys its cache by what stands here.
    data_files = [{"split": split, "path": f"{config}/{name}"} for split, name in names.items()]
    return {"config_name": config, "data_files": data_files} | ({"default": True} if default else {})


def table(head: list[str], lines: Iterable[Iterable[Any]]) -> str:
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(f'{c:,}' if isinstance(c, int) else c for c in line)} |" for line in cells)


def _rows_table(stats: Mapping[str, Any]) -> str:
    lines = []
    for config, total in stats["total"]["instructions"].items():
        counts = [(source["source"], source["instructions"].get(config)) for source in stats["sources"]]
        counts = [(source, splits) for source, splits in counts if splits]
        counts += [("**all**", total)] if len(counts) > 1 else []
        lines += [[config, source, *(splits.get(split, "-") for split in SPLITS)] for source, splits in counts]
    return table(["config", "source", *SPLITS], lines)


def _labels_table(stats: Mapping[str, Any]) -> str:
    classes = [
        (source, split, source["classes"][split])
        for source in stats["sources"]
        for split in SPLITS
        if split in source["classes"]
    ]
    labels = in_order({label for *_, counts in classes for label in counts}, LABELS)
    lines = [
        [source["source"], split, *(counts.get(label, "-") for label in labels), _ratio(source, split)]
        for source, split, counts in classes
    ]
    return table(["source", "split", *labels, "largest / smallest"], lines)


def _ratio(source: Mapping[str, Any], split: str) -> str:
    return f"{source['long_tail_ratio']:.1f}" if split == "train" else "-"


def _pictures(name: str, inside: set[str], conversations: bool, sources: list[Source]) -> str:
    if "pictures" in inside:
        return "The pictures are inside the Parquet files: pass them on only as far as the terms below allow."
    if "paths" in inside:
        return "No pictures are inside: rows hold their absolute paths and load on the machine of the build."
    roots = " ".join(f"--{source.name.replace('_', '-')} ROOT" for source in sources)
    published = f"""from pathlib import Path

Path("annotations/published").mkdir(parents=True, exist_ok=True)
for split, rows in load_dataset("{name}", "conversation").items():
    rows.select_columns(["id", "messages"]).to_json(f"annotations/published/{{split}}.jsonl")
"""
    save = f"Save the conversations, which are joined by `id`:\n\n```python\n{published}```\n\nThen build:"
    return f"""No pictures are published: `images` is empty. Who holds the sources gets them back with `ferid build`.
{save if conversations else "Build:"}

```bash
ferid build ferid {roots}{" --annotations annotations" if conversations else ""}
```"""


def _faces(inside: set[str]) -> str:
    if "embeddings" in inside:
        return "`faces` holds boxes, landmarks and **embeddings, which identify people: keep them private**."
    if "faces" in inside:
        return "`faces` holds boxes and landmarks that a face finder found, and no embeddings."
    return "`faces` is null or empty: no faces were looked for, none were found, or they are not published."


def _terms(source: Source, facts: BuildFacts) -> str:
    name = source.name
    counts = {"unusable": facts.rejected.get(name, 0), "cut short": facts.truncated.get(name, 0)}
    counts |= {f"left out ({reason})": count for reason, count in facts.left_out.get(name, {}).items()}
    read = [facts.layouts.get(name), f"{facts.read[name]:,} listed"]
    read += [f"{count:,} {what}" for what, count in counts.items() if count]
    parts = [source.page and f"<{source.page}>", f"Access: {source.access}", f"Licence: {source.licence}"]
    parts.append(f"Read: {', '.join(filter(None, read))}")
    return f"- **{source.title}** (`{name}`). " + " ".join(f"{part.rstrip('.')}." for part in parts if part)
