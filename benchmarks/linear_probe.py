"""The opponent of `learning.py`: scikit-learn's logistic regression on what the frozen networks say of each picture.

    python benchmarks/linear_probe.py CHECKPOINT FERID

    vit            the vision tower's class token, and the mean of its patches on a 4 x 4 grid     384 + 16 * 384
    priors         the face's upright landmarks and its embedding                                  136 + 128
    at the face    the patches averaged at the landmarks of each face region, and those landmarks   5 * 384 + 136
    vit + priors   all of it

These are the very tensors that EMO-LLaMA is given: the same tower, the same faces. Each probe's regularisation is
chosen by five-fold cross-validation inside the training split with no person in two folds, and so is the best probe.
Who is the same person is told by the face embeddings (dlib's, average linkage at 0.4; against the names in the file
names of one set of photos that gave an adjusted Rand index of 0.89). A picture without a face is a person of its own,
its priors the mean of the others'.
"""

import sys

import numpy as np
import torch
from datasets import Dataset, load_dataset
from sklearn.cluster import AgglomerativeClustering
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

import modeling_emo_llama  # noqa: F401  registers the classes
from ferid_dataset.collate import FeridCollator
from modeling_emo_llama.face_info_mining import upright_shape

STRENGTHS = (1e-4, 3e-4, 1e-3, 1e-2, 1e-1)  # C of the logistic regression
SAME_PERSON = 0.4  # mean distance of dlib embeddings; 0.6 is dlib's own limit for a single pair


@torch.inference_mode()
def frozen_features(model, processor, rows: Dataset) -> dict[str, np.ndarray]:
    """What the frozen networks say of each row: `{name: (rows, size)}`, and `found (rows,)`."""
    tower, mining, collator = model.model.vision_tower, model.model.face_info_mining, FeridCollator(processor)
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    columns = {name: [] for name in ("class", "grid", "regions", "shape", "embedding", "found")}
    for start in tqdm(range(0, len(rows), 32), desc="frozen features"):
        batch = collator([rows[i] for i in range(start, min(start + 32, len(rows)))])
        tokens = tower(batch["pixel_values"].to(tower.dtype)).last_hidden_state.float()
        patches = tokens[:, -side * side :].unflatten(1, (side, side))
        landmarks = batch["face_landmarks"][:, 0]
        columns["class"].append(tokens[:, 0])
        columns["grid"].append(F.adaptive_avg_pool2d(patches.permute(0, 3, 1, 2), 4).flatten(1))
        columns["regions"].append(mining.see_regions(patches, landmarks).flatten(1))
        columns["shape"].append(upright_shape(landmarks).flatten(1))
        columns["embedding"].append(batch["face_embeddings"][:, 0])
        columns["found"].append(batch["face_mask"][:, 0])
    features = {name: torch.cat(parts).numpy() for name, parts in columns.items()}
    for name in ("regions", "shape", "embedding"):
        features[name][~features["found"]] = features[name][features["found"]].mean(0)
    return features


def probes_of(features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The features of each probe: `{name: (rows, size)}`."""
    vit, priors = ("class", "grid"), ("shape", "embedding")
    names = {
        "vit": vit,
        "priors": priors,
        "vit + priors": (*vit, *priors, "regions"),
        "at the face": ("regions", "shape"),
    }
    return {name: np.concatenate([features[part] for part in parts], 1) for name, parts in names.items()}


def persons(found: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """A number for each person, `(rows,)`, by the faces that were found and their embeddings `(rows, size)`."""
    groups = len(found) + np.arange(len(found))
    if found.sum() > 1:
        clusters = AgglomerativeClustering(n_clusters=None, distance_threshold=SAME_PERSON, linkage="average")
        groups[found] = clusters.fit_predict(embeddings[found])
    return groups


def fit_probe(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[object, float, float]:
    """The probe of the best strength, fitted to all rows; the strength; its UAR in the cross-validation."""
    folds = list(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(features, labels, groups))
    uars = {}
    for strength in STRENGTHS:
        predicted = cross_val_predict(logistic_regression(strength), features, labels, cv=folds)
        uars[strength] = recall_score(labels, predicted, average="macro")
    best = max(uars, key=uars.get)
    return logistic_regression(best).fit(features, labels), best, uars[best]


def logistic_regression(strength: float):
    classifier = LogisticRegression(C=strength, max_iter=300, class_weight="balanced")
    return make_pipeline(StandardScaler(), classifier)


def probe_predictions(model, processor, splits: dict[str, Dataset]) -> dict[str, dict]:
    """`{probe: {"strength", "uar_cv", "predictions": rows of predictions.jsonl}}` of the test split."""
    features = {split: frozen_features(model, processor, splits[split]) for split in ("train", "test")}
    train, test = (probes_of(features[split]) for split in ("train", "test"))
    labels, faces = np.array(splits["train"]["label"]), features["train"]
    groups = persons(faces["found"], faces["embedding"])
    results, rows = {}, splits["test"].select_columns(["id", "source", "label", "options"])
    for name in train:
        probe, strength, uar = fit_probe(train[name], labels, groups)
        predicted = probe.predict(test[name]).tolist()
        predictions = [
            {"id": row["id"], "source": row["source"], "label": row["label"], "prediction": label, "options": options}
            for row, label in zip(rows, predicted, strict=True)
            for options in [sorted({*labels.tolist(), row["label"]})]
        ]
        results[name] = {"strength": strength, "uar_cv": float(uar), "predictions": predictions}
    return results


def main(checkpoint: str, ferid: str) -> None:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    for name, result in probe_predictions(model, processor, load_dataset(ferid, "category")).items():
        truth, predicted = ([row[key] for row in result["predictions"]] for key in ("label", "prediction"))
        uar = recall_score(truth, predicted, average="macro")
        print(
            f"{name:14} C {result['strength']:g}   UAR {result['uar_cv']:.3f} in cross-validation, {uar:.3f} on test"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
