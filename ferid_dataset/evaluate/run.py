"""`ferid evaluate`: a model, the rows of one split, and three files.

    DIR/predictions.jsonl                   a line a row, see `predict.py`
    DIR/predictions-3f1c09a2.unfinished     its lines so far; the name tells of which model and which rows
    DIR/confusion_matrix.png
    DIR/metrics.json                        written last: where it is, the evaluation is complete

A run that was stopped goes on with the row that it had come to.
"""

import json
import os
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars, enable_progress_bars, load_dataset
from datasets.fingerprint import Hasher
from datasets.utils import tqdm

from ferid_dataset.errors import FeridError
from ferid_dataset.evaluate.confusion_picture import save_confusion_picture
from ferid_dataset.evaluate.metrics import compute_metrics, read_predictions, write_metrics
