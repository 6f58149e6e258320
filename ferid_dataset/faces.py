"""Face priors in bulk: every picture is looked at once, and again only when it has changed.

They are kept in `<cache>/<source>/<split>.parquet`. Embeddings identify people: the cache stays on the machine.
One row:

    id "folder/train/anger/0001" · stamp "dlib 20112 1763856000000000000 /photos/train/angry/0001.jpg"
    faces [[{"box": [30, 24, 75, 70], "score": 1.2, "landmarks": [[30, 40], ...], "embedding": [0.1, ...], ...}]]
"""

import multiprocessing
import os
import signal
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.utils import tqdm

from ferid_dataset.errors import FeridError
from ferid_dataset.ferid import FACES
from ferid_dataset.sources.base import Rejected

CACHE = pa.schema({"id": pa.string(), "stamp": pa.string(), "faces": FACES})
SAMPLES_PER_TASK = 8
SAMPLES_PER_SAVE = 5_000  # what a killed process loses at most; an interrupted one loses nothing


def find_faces(
    samples: pa.Table,
    analyzer: str,
    cache: str | os.PathLike,
    num_proc: int | None = None,
    cropped: Collection[str] = (),
) -> tuple[pa.Table, list[Rejected]]:
    """Looks for faces in every sample that the cache does not know yet, and brings the cache up to date.

    A sample without a face stays, with an empty list; one that cannot be opened is rejected. When called from a
    script, guard it with `if __name__ == "__main__"`: the worker processes import that script.

    Args:
        samples: a table of `SAMPLES`.
        analyzer: the face backend, a name that `load_face_analyzer` takes, such as "dlib".
        cache: the folder of the Parquet files.
        num_proc: worker processes of one thread each; all cores by default.
        cropped: sources whose pictures are face crops, such as "raf_db": no detector looks at them.

    Raises:
        FeridError: no such backend, its package is missing, or a worker process died.
    """
    rejected: list[Rejected] = []
    for (source, split), rows in _parts(samples):
        file = Path(cache, source, f"{split}.parquet")
        settings = {"assume_cropped": True} if source in cropped else {}
        how = f"{analyzer} cropped" if settings else analyzer
        stamps = pa.array([_stamp(how, paths) for paths in rows["paths"].to_pylist()], pa.string())
        rows = rows.select(["id", "paths"]).append_column("stamp", stamps)
        cached = pq.read_table(file) if file.exists() else CACHE.empty_table()
        known = cached.filter(pc.is_in(_key(cached), _key(rows)))
        todo = rows.filter(pc.invert(pc.is_in(_key(rows), _key(known))))
        if len(todo):
            rejected += _look(todo.to_pylist(), analyzer, settings, known, file, num_proc)
    kept = pc.invert(pc.is_in(samples["id"], pa.array([row.id for row in rejected], pa.string())))
    return samples.filter(kept), rejected


def count_without_face(rows: pa.Table) -> int:
    """In how many rows somebody looked for faces and found none in any frame."""
    looked = rows["faces"].drop_null().combine_chunks()
    has_face = pc.greater(pc.list_value_length(looked.flatten()), 0)
    return len(looked) - pc.count_distinct(pc.list_parent_indices(looked).filter(has_face)).as_py()


def _parts(samples: pa.Table) -> Iterator[tuple[tuple[str, str], pa.Table]]:
    """((source, split), its rows) for each that occurs."""
    for part in samples.group_by(["source", "split"]).aggregate([]).sort_by("source").to_pylist():
        of_part = pc.and_(pc.equal(samples["source"], part["source"]), pc.equal(samples["split"], part["split"]))
        yield (part["source"], part["split"]), samples.filter(of_part)


def _key(rows: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(rows["id"], rows["stamp"], " ")


def _stamp(how: str, paths: list[str]) -> str:
    """Changes when a picture does, or when it is to be looked at in another way."""
    files = [
        os.stat(file) for file in {path.rpartition("::")[2] for path in paths}
    ]  # a frame:// path ends in its clip
    size = sum(file.st_size for file in files)
    newest = max(file.st_mtime_ns for file in files)
    return f"{how} {size} {newest} {paths[0]}"


def _look(
    todo: list[dict], analyzer: str, settings: dict, known: pa.Table, file: Path, num_proc: int | None
) -> list[Rejected]:
    """Analyses `todo` in worker processes and writes what is found, with what is known, to `file`."""
    from modeling_emo_llama.face_analysis import load_face_analyzer

    try:
        load_face_analyzer(analyzer, **settings)  # here as well: a worker that cannot start has no way to say why
    except (ImportError, ValueError) as error:
        raise FeridError(str(error)) from error

    rejected, found, saved = [], [], 0
    tasks = [todo[start : start + SAMPLES_PER_TASK] for start in range(0, len(todo), SAMPLES_PER_TASK)]
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        max_workers=min(num_proc or _cores(), len(tasks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_use_one_thread,
    )
    try:
        with tqdm(total=len(todo), desc=f"faces {file.parent.name}/{file.stem}", unit=" pictures") as bar:
            with _deaf_to_interrupt():  # which the worker processes inherit: Ctrl-C is for this one
                tasks = {
                    pool.submit(_analyze, [row["paths"] for row in task], analyzer, settings): task for task in tasks
                }
            for future in as_completed(tasks):
                for row, faces in zip(tasks[future], future.result(), strict=True):
                    if isinstance(faces, str):
                        rejected.append(Rejected(row["id"], row["paths"][0], f"cannot be read: {faces}"))
                    else:
                        found.append({"id": row["id"], "stamp": row["stamp"], "faces": faces})
                    bar.update()
                if len(found) - saved >= SAMPLES_PER_SAVE:
                    _save(known, found, file)
                    saved = len(found)
    except BrokenProcessPool as error:
        raise FeridError(
            "a process that looks for faces died, perhaps for want of memory: build again with fewer (--num-proc 1); "
            "what was found is kept"
        ) from error
    finally:
        _save(known, found, file)
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()  # after Ctrl-C, nobody wants to wait for its imports and its task
    return sorted(rejected)


def _save(known: pa.Table, found: list[dict], file: Path) -> None:
    table = pa.concat_tables([known, pa.Table.from_pylist(found, schema=CACHE)]).sort_by("id")
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    pq.write_table(table, unfinished, row_group_size=10_000)
    unfinished.replace(file)


def _use_one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # read when the backend's libraries are loaded, which is later


def _cores() -> int:
    """The cores that this process may use, which in a container are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _deaf_to_interrupt() -> Iterator[None]:
    """Holds Ctrl-C back, here until the end of the block and in processes that are started in it for good."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _analyze(samples: list[list[str]], analyzer: str, settings: dict) -> list[list[list[dict]] | str]:
    """The faces of each frame of each sample, as rows of the `faces` column; or why a frame cannot be opened."""
    from modeling_emo_llama.face_analysis import load_face_analyzer

    analyze = load_face_analyzer(analyzer, **settings)
    found = []
    for paths in samples:
        try:
            # As rows are read (upright, whatever the EXIF orientation), so that pixels mean the same.
            images = [datasets.Image().decode_example({"path": path, "bytes": None}).convert("RGB") for path in paths]
        except Exception as error:  # Pillow's decoders raise anything from OSError to struct.error on broken bytes
            found.append(str(error) or type(error).__name__)
            continue
        found.append([[_row(face) for face in frame] for frame in analyze(images)])
    return found


def _row(face) -> dict:
    return vars(face) | {"landmarks": list(face.landmarks)}
