"""`ferid import`: records find their samples, each is accounted for, and nothing that is there is lost."""

import json

import numpy as np
import pytest
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ferid_dataset.build import build_ferid
from ferid_dataset.errors import FeridError
from ferid_dataset.import_conversations import import_conversations
from ferid_dataset.sources.base import Choices

QUESTION = "What is the emotion of the person in the video?"
ANSWER = "The person in the video is expressing sadness. The corners of the mouth are turned down."


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """MAFW, DFEW and FERV39k by frames, RAF-DB and AffectNet: a few samples each."""
    root = tmp_path_factory.mktemp("sources")
    mafw, dfew, raf_db = root / "MAFW", root / "DFEW", root / "RAF-DB"
    lists = mafw / "Train & Test Set/single/no_caption/set_1"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("00025.mp4 sadness\n02522.mp4 anger\n00031.mp4 sadness\n")
    (lists / "test.txt").write_text("00044.mp4 happiness\n")
    for clip in ("00025", "02522", "00031", "00044"):
        picture(mafw / f"data/frames/{clip}/0001.jpg")
    splits = dfew / "EmoLabel_DataSplit"
    for split, rows in (("train", "2522,1\n7,2\n"), ("test", "9,2\n")):
        (splits / f"{split}(single-labeled)").mkdir(parents=True)
        (splits / f"{split}(single-labeled)/set_1.csv").write_text("video_name,label\n" + rows)
    for clip in ("02522", "00007", "00009"):
        picture(dfew / f"Clip/clip_224x224/{clip}/0001.jpg")
    (raf_db / "basic/EmoLabel").mkdir(parents=True)
    (raf_db / "basic/EmoLabel/list_patition_label.txt").write_text("train_00001.jpg 5\ntest_0001.jpg 4\n")
    for name in ("train_00001", "test_0001"):
        picture(raf_db / f"basic/Image/aligned/{name}_aligned.jpg")
    ferv39k = root / "FERV39k"
    (ferv39k / "4_setups/All_scenes").mkdir(parents=True)
    (ferv39k / "4_setups/All_scenes/train_All.csv").write_text("Action/Happy/0267 Happy\nCrime/Happy/0267 Happy\n")
    (ferv39k / "4_setups/All_scenes/test_All.csv").write_text("Action/Sad/0001 Sad\n")
    for clip in ("Action/Happy/0267", "Crime/Happy/0267", "Action/Sad/0001"):
        picture(ferv39k / f"2_ClipsforFaceCrop/{clip}/0001.jpg")
    return {"mafw": mafw, "dfew": dfew, "raf_db": raf_db, "ferv39k": ferv39k}


@pytest.fixture(scope="module")
def ferid(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "ferid"
    build_ferid(out, configs=["category"], choices=Choices(frames=1), **sources)
    return out


@pytest.fixture
def run(ferid, tmp_path):
    """Imports records, or text, or a file."""

    def run(records, name="mafw.json", **options):
        file = tmp_path / name
        file.write_text(records if isinstance(records, str) else json.dumps(records), encoding="utf-8")
        return import_conversations(file, ferid, tmp_path / "annotations", **options)

    return run


def record(id="x", answer=ANSWER, question=f"<video>\n{QUESTION}", **media):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": id, **media, "conversations": turns}


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def ids(tmp_path):
    return [line["id"] for file in sorted((tmp_path / "annotations").glob("*/*.jsonl")) for line in lines(file)]


def test_a_record_becomes_a_line_and_a_row(run, sources, tmp_path):
    imported = run([record("00025", video="MAFW/clips/00025.mp4"), record("00044", video="MAFW/clips/00044.mp4")])
    assert str(imported) == "mafw/test.jsonl: 1 conversations added\nmafw/train.jsonl: 1 conversations added"
    (line,) = lines(tmp_path / "annotations/mafw/train.jsonl")
    assert line.pop("created").endswith("+00:00")
    assert line == {
        "id": "mafw/00025",
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}],
        "model": "imported from mafw.json",
        "prompt_version": "",
        "input_tokens": 0,
        "output_tokens": 0,
        "cost": 0.0,
    }
    assert [file.name for file in (tmp_path / "annotations").iterdir()] == ["mafw"]
    build_ferid(tmp_path / "ferid", annotations=tmp_path / "annotations", choices=Choices(frames=1), **sources)
    rows = load_dataset(str(tmp_path / "ferid"), "conversation", cache_dir=str(tmp_path / "cache"))
    assert {split: rows[split]["id"][:] for split in rows} == {"train": ["mafw/00025"], "test": ["mafw/00044"]}
    assert rows["train"][0]["messages"][1]["content"] == ANSWER


@pytest.mark.parametrize(
    ("id", "media", "sample"),
    [
        ("mafw/00025", {}, "mafw/00025"),
        ("00025", {}, "mafw/00025"),
        ("17", {"video": "00025.mp4"}, "mafw/00025"),
        (17, {"video": "clips/00025.MP4"}, "mafw/00025"),
        ("00031", {"video": "MAFW/clips/00025.mp4"}, "mafw/00025"),  # ids may be serial numbers
        ("17", {"video": "D:\\data\\MAFW\\clips\\00025.mp4"}, "mafw/00025"),
        ("17", {"image": "data/frames/00025/0007.jpg"}, "mafw/00025"),
        ("17", {"image": ["data/frames/00025/0001.jpg", "data/frames/00025/0002.jpg"]}, "mafw/00025"),
        ("17", {"video": "MAFW/02522.mp4"}, "mafw/02522"),
        ("17", {"video": "DFEW/2522.mp4"}, "dfew/02522"),
        ("mafw/02522", {"video": "02522.mp4"}, "mafw/02522"),
        ("17", {"video": "7.mp4"}, "dfew/00007"),
        ("17", {"image": "RAF-DB/aligned/train_00001_aligned.jpg"}, "raf_db/train_00001"),
        ("train_00001", {"image": "train_00001.jpg"}, "raf_db/train_00001"),
        ("17", {"video": "FERV39k/2_ClipsforFaceCrop/Crime/Happy/0267"}, "ferv39k/Crime/Happy/0267"),
        ("Action/Happy/0267", {}, "ferv39k/Action/Happy/0267"),
    ],
)
def test_a_record_finds_its_sample(run, tmp_path, id, media, sample):
    assert run([record(id, **media)]).left_out == []
    assert ids(tmp_path) == [sample]


@pytest.mark.parametrize(
    ("id", "media", "reason"),
    [
        ("00026", {"video": "MAFW/clips/00026.mp4"}, "no such sample: 00026, MAFW/clips/00026.mp4"),
        ("17", {"video": "0267.mp4"}, "no such sample: 17, 0267.mp4"),
        ("17", {"image": "00025.jpg"}, "no such sample: 17, 00025.jpg"),  # a picture is no clip
        ("17", {"video": "train_00001.mp4"}, "no such sample: 17, train_00001.mp4"),
        ("", {}, "no such sample: "),
        ("x", {"video": ""}, "no such sample: x, "),
        ("x", {"video": None}, "no such sample: x"),
        ("x", {"video": {"path": 1}}, "no such sample: x, {'path': 1}"),
        ("17", {"video": "2522.mp4"}, "several samples have this name, --source can say which: 17, 2522.mp4"),
        ("17", {"video": ["00025.mp4", "00031.mp4"]}, "several samples have this name, --source can say which: "),
        ("mafw/00025", {"video": "00031.mp4"}, "id and media are of different samples: mafw/00025, 00031.mp4"),
    ],
)
def test_a_record_without_a_sample_is_left_out_whole(run, tmp_path, id, media, reason):
    odd = record(id, **media)
    imported = run([odd, record("mafw/00044")])
    assert [(row.place, row.record) for row in imported.left_out] == [("mafw.json[0]", odd)]
    assert imported.left_out[0].reason.startswith(reason)
    assert lines(imported.report) == [{"place": "mafw.json[0]", "reason": imported.left_out[0].reason, "record": odd}]
    assert str(imported).endswith(
        f"1 of 2 records are left out, see {tmp_path / 'annotations/mafw.json.left_out.jsonl'}"
    )
    assert ids(tmp_path) == ["mafw/00044"]


def test_the_source_can_be_named(run, tmp_path):
    assert run([record("2522")], source="dfew").added == {"dfew/train.jsonl": 1}
    assert run([record("02522")], source="mafw").added == {"mafw/train.jsonl": 1}
    with pytest.raises(FeridError, match="has no source 'affectnet': choose from dfew, ferv39k, mafw, raf_db"):
        run([record("2522")], source="affectnet")


@pytest.mark.parametrize(
    ("conversations", "reason"),
    [
        ([], "no conversation of questions with answers"),
        (None, "no conversation of questions with answers"),
        ("What?", "no conversation of questions with answers"),
        ([{"from": "human", "value": QUESTION}], "no conversation of questions with answers"),
        ([{"from": "gpt", "value": ANSWER}], "turns are not text of human and gpt in turn: see number 1"),
        ([{"from": "human", "value": QUESTION}] * 2, "turns are not text of human and gpt in turn: see number 2"),
        ([{"from": "system", "value": "Be kind."}], "turns are not text of human and gpt in turn: see number 1"),
        ([{"from": "human", "value": 3}], "turns are not text of human and gpt in turn: see number 1"),
        (["human"], "turns are not text of human and gpt in turn: see number 1"),
        (record(question="<video>\n")["conversations"], "a turn without text: see number 1"),
        (record(answer=" \n ")["conversations"], "a turn without text: see number 2"),
        (record(answer="half \ud83d")["conversations"], "half a character: text that UTF-8 cannot write"),
        (
            record(question=f"{QUESTION} Choose one from the following options: {{anger, joy}}.")["conversations"],
            "a category question: ferid build writes these itself",
        ),
    ],
)
def test_odd_turns_are_left_out_whole(run, tmp_path, conversations, reason):
    odd = {"id": "mafw/00025", "conversations": conversations}
    imported = run([odd, record("mafw/00044")])
    assert [(row.reason, row.record) for row in imported.left_out] == [(reason, odd)]
    assert lines(imported.report)[0]["record"] == odd
    assert ids(tmp_path) == ["mafw/00044"]


def test_markers_are_removed_wherever_they_stand(run, tmp_path):
    run([record("mafw/00025", question=f"{QUESTION}\n<image>", answer=f"<video> {ANSWER}")])
    (line,) = lines(tmp_path / "annotations/mafw/train.jsonl")
    assert [message["content"] for message in line["messages"]] == [QUESTION, ANSWER]


def test_json_lines_and_what_is_none(run, tmp_path):
    text = "\n".join([json.dumps(record("mafw/00025")), '{"id": "mafw/00031", "conv', "", json.dumps([1]), "null"])
    imported = run("\ufeff" + text, "part.jsonl")
    assert imported.added == {"mafw/train.jsonl": 1}
    assert [(row.place, row.record) for row in imported.left_out] == [
        ("part.jsonl:2", '{"id": "mafw/00031", "conv'),
        ("part.jsonl:4", [1]),
        ("part.jsonl:5", None),
    ]
    assert {row.reason for row in imported.left_out} == {"no record of conversations"}
    assert imported.records == 4


def test_one_record_alone(run):
    assert run(json.dumps(record("mafw/00025"), indent=2)).added == {"mafw/train.jsonl": 1}


def test_a_second_import_adds_nothing(run, tmp_path):
    records = [record("mafw/00025"), record("raf_db/train_00001"), record("nobody"), record("mafw/00025")]
    first = run(records)
    assert (first.records, first.added, first.present, len(first.left_out)) == (
        4,
        {"mafw/train.jsonl": 1, "raf_db/train.jsonl": 1},
        1,  # the record that comes twice
        1,
    )
    before = {file: file.read_bytes() for file in (tmp_path / "annotations").rglob("*.jsonl")}
    second = run(records)
    assert (second.added, second.present, len(second.left_out)) == ({}, 3, 1)
    assert {file: file.read_bytes() for file in (tmp_path / "annotations").rglob("*.jsonl")} == before


def test_what_is_there_stays(run, tmp_path):
    folder = tmp_path / "annotations/mafw"
    folder.mkdir(parents=True)
    mine = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nobody knows."}]
    (folder / "train.jsonl").write_text(json.dumps({"id": "mafw/00031", "messages": mine, "note": "ä"}))  # no newline
    (folder / "train-1of2.jsonl").write_text(json.dumps({"id": "mafw/02522", "messages": mine}) + "\n")
    imported = run([record("mafw/00025"), record("mafw/00031"), record("mafw/02522")])
    assert imported.added == {"mafw/train.jsonl": 1}
    assert [row.reason for row in imported.left_out] == [
        "the sample has another conversation already: mafw/00031",
        "the sample has another conversation already: mafw/02522",
    ]
    assert [line["id"] for line in lines(folder / "train.jsonl")] == ["mafw/00031", "mafw/00025"]
    assert lines(folder / "train.jsonl")[0] == {"id": "mafw/00031", "messages": mine, "note": "ä"}


def test_a_mended_file_takes_its_report_away(run, tmp_path):
    report = run([record("mafw/00025"), record("nobody")]).report
    assert report.exists()
    run([record("mafw/00025")])
    assert not report.exists()


def test_the_rules_only_report(run, tmp_path):
    records = [
        record("mafw/00025"),
        record("mafw/00031", answer="The person is angry, **very**"),
        record("mafw/00044"),
    ]
    imported = run(records, check=True)
    assert imported.broken == {
        "cut": ["mafw/00031"],
        "markdown": ["mafw/00031"],
        "unsupported": ["mafw/00031", "mafw/00044"],
        "contradiction": ["mafw/00031", "mafw/00044"],
    }
    assert ids(tmp_path) == ["mafw/00044", "mafw/00025", "mafw/00031"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no conversations: it must be a JSON list, or JSON lines"),
        ("no JSON", "holds no conversations"),
        ("[]", "holds no conversations"),
        ('[{"id": "mafw/00025", "messages": []}]', "holds no conversations"),
        ('{"data": []}', "holds no conversations"),
        ('[{"id": "mafw/00025", "conversations": [', "holds no conversations"),
        ("[" * 100_000, "holds no conversations"),
        (json.dumps([record("nobody")]), r"none of the 1 records .* such as mafw.json\[0\]: no such sample: nobody"),
    ],
)
def test_a_file_without_records_is_one_sentence(run, text, sentence):
    with pytest.raises(FeridError, match=sentence):
        run(text)


def test_what_is_missing_is_one_sentence(ferid, run, tmp_path):
    with pytest.raises(FeridError, match="there is no file .*none.json: give a file of conversations"):
        import_conversations(tmp_path / "none.json", ferid, tmp_path / "annotations")
    with pytest.raises(FeridError, match="cannot be read as UTF-8 text"):
        import_conversations(tmp_path, ferid, tmp_path / "annotations")
    (tmp_path / "latin.json").write_bytes(b'[{"conversations": "\xe4"}]')
    with pytest.raises(FeridError, match="cannot be read as UTF-8 text"):
        import_conversations(tmp_path / "latin.json", ferid, tmp_path / "annotations")
    (tmp_path / "one.json").write_text(json.dumps([record("mafw/00025")]))
    with pytest.raises(FeridError, match="there is no folder .*nowhere"):
        import_conversations(tmp_path / "one.json", tmp_path / "nowhere", tmp_path / "annotations")
    with pytest.raises(FeridError, match="one.json is a file: give the folder of the annotations"):
        import_conversations(tmp_path / "one.json", ferid, tmp_path / "one.json")
    (tmp_path / "annotations/mafw").mkdir(parents=True)
    (tmp_path / "annotations/mafw/train.jsonl").write_text("broken\n")
    with pytest.raises(FeridError, match="train.jsonl is not JSON lines"):
        run([record("mafw/00025")])
    assert (tmp_path / "annotations/mafw/train.jsonl").read_text() == "broken\n"


values = st.recursive(
    st.none() | st.integers() | st.text(max_size=8) | st.sampled_from(["mafw/00025", "00031.mp4", "human", "gpt"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "video", "image", "conversations", "from", "value"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(values, max_size=5))
def test_no_record_is_lost(ferid, tmp_path_factory, odd):
    folder = tmp_path_factory.mktemp("odd")
    file = folder / "odd.json"
    file.write_text(json.dumps([record("mafw/00044"), *odd]))
    imported = import_conversations(file, ferid, folder / "annotations")
    assert imported.records == len(odd) + 1
    assert imported.records == sum(imported.added.values()) + imported.present + len(imported.left_out)
    written = lines(imported.report) if imported.left_out else []
    assert [row["record"] for row in written] == [row.record for row in imported.left_out]
