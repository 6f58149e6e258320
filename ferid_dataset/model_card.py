"""The model card: `model_cards/emo_llama.md`, filled with the recipe and with what was measured.

    write_model_card("runs/adapter", "user/emo-llama", recipe, [metrics])   at the end of a training

`metrics` are what `metrics.json` files hold. The recipe says how the model was made, in whatever words and tables; the
keys that are known are

    {"base_model": "runs/checkpoint",                                             a Hub id, or a folder of this machine
     "data": [{"config": "category", "source": "raf_db", "split": "train", "rows": 12271}],
     "drawn": False,                                                              whether all its faces are drawn ones
     "trained": {"LoRA": 4884480, "projector": 590976},                           parameters of each part
     "hyperparameters": {"learning_rate": 2e-4, "num_train_epochs": 2}, "seed": 0,
     "versions": {"torch": "2.13.0"}}                                             added when missing

No path of the machine that trained or measured gets into the card. Beside it, in the folder and never published,
stands what it was made of, so that a later `ferid push-model` can say it too:

    model_card.json   {"recipe": {...}, "metrics": [...]}
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCardData, metadata_load

from ferid_dataset.card_results import eval_results, is_drawn, results
from ferid_dataset.dataset_card import PAPER, table
from ferid_dataset.labels import LABELS
from ferid_dataset.sources import SOURCES
from ferid_dataset.stats import in_order

TEMPLATE = Path(__file__).parents[1] / "model_cards" / "emo_llama.md"
MARK = "<!-- written by ferid push-model -->"  # tells a repository of ours from any other
RECORD = "model_card.json"
LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "huggingface-hub")
TITLES = {
    "data": "Data",
    "trained": "What was trained (parameters)",
    "hyperparameters": "Settings",
    "versions": "Libraries",
}
# A path of this machine inside a text: /home/me/x, ~/x, ./x, ../x, C:\x; not the slashes of a URL or of "and/or".
PATH = re.compile(r"""(?<![\w:/.~])(?:~?/|\.{1,2}/|[A-Za-z]:[\\/])[^\s'",;|)\]}]+""")


class Licence(NamedTuple):
    """What the metadata of a card say, and why."""

    id: str  # as the Hub spells it
    why: str
    name: str | None = None  # of one that the Hub calls "other"
    link: str | None = None


class Form(NamedTuple):
    """What lies in the repository."""

    adapter: bool  # on a base that is loaded with it; else a whole model
    base_model: str | None  # Hub id; None where the base is a folder of this machine
    licence: Licence


def write_model_card(
    folder: str | os.PathLike,
    repo_id: str,
    recipe: Mapping[str, Any] | None,
    metrics: Sequence[Mapping[str, Any]],
    *,
    license: str | None = None,
) -> Path:
    """
    Write `README.md` into the folder of a trained model, and what it was made of beside it.

    Args:
        folder (`str` or `os.PathLike`):
            The folder of a checkpoint or an adapter.
        repo_id (`str`):
            The repository that the card speaks of, such as "user/emo-llama".
        recipe (`dict`, *optional*):
            How the model was made, as above.
        metrics (`list[dict]`):
            What was measured, as `metrics.json` has it. None: the card says that nothing was measured yet.
        license (`str`, *optional*):
            As the Hub spells it; by default what can be known of the base, or "other".

    Returns:
        `Path`: the card.
    """
    folder = Path(folder)
    recipe = json.loads(json.dumps(recipe or {}, default=_plain))
    if recipe:
        recipe.setdefault("versions", {name: version(name) for name in LIBRARIES})
    base = base_of(folder, recipe)
    # A name that is no folder here was loaded from the Hub just now.
    public = base if base and not os.path.exists(base) and is_hub_id(base) else None
    form = Form((folder / "adapter_config.json").is_file(), public, licence_of(license, folder, base))
    record = {"recipe": recipe, "metrics": list(metrics)}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    card = folder / "README.md"
    card.write_text(model_card(repo_id, recipe, metrics, form), encoding="utf-8")
    return card


def _plain(value: Any) -> Any:
    """JSON of what a recipe may hold besides: data classes, sets, paths."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def read_record(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Recipe and metrics that [`write_model_card`] left in a folder; empty where it left none."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return dict(record["recipe"]), list(record["metrics"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}, []


def model_card(repo_id: str, recipe: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], form: Form) -> str:
    """The card's text, with its YAML; `huggingface_hub.ModelCard` reads it back."""
    name = repo_id.rpartition("/")[2]
    licence = form.licence
    metadata = ModelCardData(
        language="en",
        license=licence.id,
        license_name=licence.name,
        license_link=licence.link,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=form.base_model,
        base_model_relation=form.base_model and ("adapter" if form.adapter else "finetune"),
        tags=["facial-expression-recognition", "emo-llama", "ferid", *(["peft", "lora"] if form.adapter else [])],
        model_name=name,
        eval_results=eval_results(metrics) or None,
    )
    return TEMPLATE.read_text(encoding="utf-8").format(
        metadata=metadata.to_yaml(),
        mark=MARK,
        name=name,
        repo=repo_id if is_hub_id(repo_id) else name,
        options="{" + ", ".join(_options(metrics)) + "}",
        warning=_warning(recipe, metrics),
        form=_form(form),
        results=results(metrics),
        groups=_groups(metrics),
        training=_training(recipe, form),
        licence=_licence(licence, recipe),
        citations="\n\n".join([PAPER, *(s.citation.strip() for s in _sources(recipe) if s.citation)]),
    )


def _warning(recipe: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    drawn = [is_drawn(figures) for figures in metrics]
    what = ["Trained"] if recipe.get("drawn") else []
    what += ["measured"] if drawn and all(drawn) else []
    lines = [f"{' and '.join(what).capitalize()} on drawn faces, no photographs: this says nothing about people."]
    if any(drawn) and not all(drawn):
        some = "Some of the figures are of drawn faces, no photographs: those say nothing about people."
        lines = [*(lines if what else []), some]
    return f"\n**{' '.join(lines)}**\n" if what or len(set(drawn)) == 2 else ""


def _form(form: Form) -> str:
    if not form.adapter:
        return "This is the whole model."
    if form.base_model is None:
        return "This is an adapter on a checkpoint that is not on the Hub."
    return f"This is an adapter on `{form.base_model}`, which is loaded with it (`pip install peft`)."


def _options(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those that the model was asked, as far as they are known."""
    labels = {label for figures in metrics for label in figures.get("labels") or figures.get("recall") or ()}
    return in_order(labels, LABELS) or list(LABELS[:7])


def _groups(metrics: Sequence[Mapping[str, Any]]) -> str:
    if any(figures.get("by_group") for figures in metrics):
        return "Look at the results by group above, and at their intervals, before you rely on any."
    return "Results by age, gender and race were not measured: measure them before you rely on any."


# What was trained


def _training(recipe: Mapping[str, Any], form: Form) -> str:
    if not recipe:
        return "How this model was trained is not recorded."
    base = f"`{form.base_model}`" if form.base_model else "a checkpoint that is not on the Hub"
    parts = [f"Trained from {base}."]
    rest = {key: value for key, value in recipe.items() if key not in ("base_model", "model_name_or_path", "drawn")}
    loose = {key: value for key, value in rest.items() if not isinstance(value, Mapping | list) and value is not None}
    tables = {key: value for key, value in rest.items() if isinstance(value, Mapping | list) and value}
    if loose:
        tables["hyperparameters"] = {**tables.get("hyperparameters", {}), **loose}
    for key in (*TITLES, *(key for key in tables if key not in TITLES)):
        if key in tables:
            parts.append(f"### {TITLES.get(key, key.replace('_', ' ').capitalize())}\n\n{_any_table(tables[key])}")
    return "\n\n".join(parts)


def _any_table(value: Mapping[str, Any] | list) -> str:
    """{name: value}, {name: {column: value}} or [{column: value}] as Markdown."""
    if isinstance(value, Mapping) and not any(isinstance(inner, Mapping) for inner in value.values()):
        return table(["", "value"], [[name, _text(inner)] for name, inner in value.items() if _is_told(name, inner)])
    if isinstance(value, Mapping):
        value = [{"": name, **(row if isinstance(row, Mapping) else {"value": row})} for name, row in value.items()]
    if not all(isinstance(row, Mapping) for row in value):
        return "\n".join(f"- {_text(item)}" for item in value)
    columns = list(dict.fromkeys(name for row in value for name in row))
    return table(columns, [[_text(row.get(name)) for name in columns] for row in value])


def _is_told(name: str, value: Any) -> bool:
    """Settings that are nobody's business, or say nothing, are not told."""
    secret = name.endswith("hub_token") or str(value).startswith("hf_")
    return value is not None and not secret and name not in ("output_dir", "logging_dir", "run_name", "hub_model_id")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return " ".join(public_text(str(value)).split()).replace("|", r"\|")  # the cells of a table


# Where it comes from


def base_of(folder: Path, recipe: Mapping[str, Any]) -> str | None:
    """What the model was trained from, as the adapter or the recipe names it."""
    try:
        named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError):
        named = None
    return named or recipe.get("base_model") or recipe.get("model_name_or_path")


def is_hub_id(name: str) -> bool:
    """Whether the Hub could have a model of this name."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name))


def public_text(text: str) -> str:
    """The text with every path of this machine cut down to its last name."""
    if "/" in text and not PATH.match(text) and os.path.exists(text):  # a relative one
        return Path(text).name
    return PATH.sub(lambda found: re.split(r"[\\/]", found[0].rstrip("\\/"))[-1] or "a folder", text)


def licence_of(
    given: str | None, folder: Path, base: str | None, base_card: Mapping[str, Any] | None = None
) -> Licence:
    """
    The licence of the weights, as far as it can be known.

    Args:
        given: what the user says.
        folder: the model's folder.
        base: what it was trained from, a Hub id or a folder.
        base_card: the metadata of the base's card on the Hub.
    """
    if given:
        return Licence(given, f"`{given}`, as stated by whoever published this model.")
    local = [Path(place) for place in (folder, base) if place and Path(place).is_dir()]
    if any((place / "conversion.json").is_file() for place in local):
        why = "Converted from weights of LLaMA-VID, which are CC BY-NC 4.0: not for commercial use."
        return Licence("cc-by-nc-4.0", why)
    if base_card is None and base:
        base_card = _metadata(Path(base) / "README.md")
    if (base_card or {}).get("license"):
        name, link = base_card.get("license_name"), base_card.get("license_link")
        return Licence(base_card["license"], f"`{name or base_card['license']}`, that of the base model.", name, link)
    why = (
        "Not stated: the licences of the vision tower, of the language model and of the face network that this model "
        "is made of all hold, and are not known here. Ask whoever published it."
    )
    return Licence("other", why, "terms-of-parts-and-data", "README.md")


def _metadata(card: Path) -> dict[str, Any]:
    try:
        return metadata_load(card) or {}
    except (OSError, ValueError):
        return {}


def _licence(licence: Licence, recipe: Mapping[str, Any]) -> str:
    lines = [f"{source.title}: {source.licence.rstrip('.')}." for source in _sources(recipe)]
    terms = "The pictures that it was trained on have terms of their own; most are for research only"
    terms += ":\n\n" + "\n".join(f"- {line}" for line in lines) if lines else "."
    return f"{licence.why} {terms}"


def _sources(recipe: Mapping[str, Any]) -> list:
    """The source datasets that the recipe's data name, in the order of `SOURCES`."""
    named = set(_words(recipe.get("data")))
    return [source for name, source in SOURCES.items() if name in named]


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield str(name)
            yield from _words(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _words(inner)
    elif isinstance(value, str):
        yield value
