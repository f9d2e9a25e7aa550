import os

import pytest

from experiments.data.folders import classes, held_out, list_pictures
from tests.data_files import encoded, put, random_images

PICTURE = encoded(random_images(1, (4, 4, 3))[0])


def names(folder):
    return list_pictures(folder).names


def test_pictures_are_listed_by_name_or_by_content_in_alphabetical_order(tmp_path):
    put(tmp_path, {
        "b.JPG": PICTURE, "a.png": b"damaged", "below/deeper/c.webp": b"",
        "no_suffix": PICTURE, "d.dat": encoded(random_images(1, (4, 4))[0], "webp"),
        "notes.txt": b"a text", "labels.h5": b"\x89HDF\r\n\x1a\n",
        "a.eps": b"%!PS-Adobe", "raw.nef": b"II*\0" + bytes(40),
        "paper.pdf": b"%PDF-1.4", "empty": b"",
    })  # fmt: skip
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for ever
    listing = list_pictures(tmp_path)
    assert listing.names == [
        "a.png", "b.JPG", "below/deeper/c.webp", "d.dat", "no_suffix",
    ]  # fmt: skip
    others = ["a.eps", "empty", "labels.h5", "notes.txt", "paper.pdf", "pipe"]
    assert listing.others == [*others, "raw.nef"]
    assert listing.left_out.endswith("WEBP: a.eps, empty, labels.h5, ...")
    assert "7 that are not AVIF, BMP, GIF" in listing.left_out


def test_nothing_is_said_where_nothing_is_left_out(tmp_path):
    put(tmp_path, {"a.png": PICTURE})
    assert list_pictures(tmp_path).left_out == ""


def test_what_is_hidden_or_of_the_system_is_left_out(tmp_path):
    hidden = [
        ".ipynb_checkpoints/a-checkpoint.png", ".Trash-1000/files/a.png", "._a.png",
        "Thumbs.db", "desktop.ini", ".hidden.png", "__MACOSX/a.png", "@eaDir/a.png",
        "$RECYCLE.BIN/a.png", "class/.DS_Store",
    ]  # fmt: skip
    put(tmp_path, dict.fromkeys(hidden, PICTURE) | {"class/a.png": PICTURE})
    listing = list_pictures(tmp_path)
    assert listing.names == ["class/a.png"]
    assert listing.num_hidden == len(hidden)
    assert "10 hidden" in listing.left_out
    # Above the folder a dot says nothing.
    assert names(tmp_path / ".Trash-1000") == ["files/a.png"]


def test_what_a_run_has_drawn_is_no_picture_to_learn_from(tmp_path):
    run = {"config.json": b"", "model.json": b"", "samples/ebm_0000002.png": PICTURE}
    put(tmp_path, {"a.png": PICTURE} | {f"runs/mine/{n}": d for n, d in run.items()})
    listing = list_pictures(tmp_path)
    assert listing.names == ["a.png"]
    assert "directories of runs: runs/mine" in listing.left_out
    # It can be scored by its own name.
    assert names(tmp_path / "runs" / "mine") == ["samples/ebm_0000002.png"]


def test_links_are_followed_once_and_loops_are_not(tmp_path):
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    put(elsewhere, {"1.png": PICTURE, "deeper/2.png": PICTURE})
    put(root, {"z/3.png": PICTURE})
    (elsewhere / "back").symlink_to(root)
    (elsewhere / "itself").symlink_to(elsewhere)
    for name in ("cats", "dogs"):  # both lead to the same pictures
        (root / name).symlink_to(elsewhere)
    (root / "a").symlink_to("z")  # comes first, but z is no link
    (root / "up").symlink_to("..")
    listing = list_pictures(root)
    assert listing.names == ["cats/1.png", "cats/deeper/2.png", "z/3.png"]
    assert listing.loops == ["up", "cats/back"]
    assert "links to a folder that they are in: up, cats/back" in listing.left_out


def test_a_picture_and_the_links_to_it_are_one(tmp_path):
    put(tmp_path, {"z/1.png": PICTURE})
    put(tmp_path / "elsewhere", {".blob": PICTURE})
    for name, target in (
        ("a.png", "z/1.png"), ("b.png", "elsewhere/.blob"), ("c.png", "b.png"),
        ("gone.png", "nowhere"),
    ):  # fmt: skip
        (tmp_path / name).symlink_to(target)
    assert names(tmp_path) == ["b.png", "gone.png", "z/1.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="no mode keeps root out")
def test_folder_that_may_not_be_read_is_an_error(tmp_path):
    (tmp_path / "secret").mkdir(mode=0)
    with pytest.raises(PermissionError, match="secret"):
        list_pictures(tmp_path)


def test_names_that_are_no_text_are_listed_and_divided(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(PICTURE)
    [name] = names(tmp_path)
    assert os.fsencode(name) == b"caf\xe9.png"
    assert held_out([name, "a.png"], 0.1)


MANY = [f"class_{i % 7}/{i:05}.png" for i in range(5000)]


def sides(some):
    return [{some[i] for i in side} for side in held_out(some, 0.1)]


def test_about_the_share_is_held_out_and_all_are_somewhere():
    training, others = sides(MANY)
    assert training | others == set(MANY) and not training & others
    assert abs(len(others) - 500) < 4 * (5000 * 0.1 * 0.9) ** 0.5
    # Of each class as of all.
    of_class = [sum(n.startswith(f"class_{k}/") for n in others) for k in range(7)]
    assert min(of_class) > 40


def test_other_names_send_nobody_to_the_other_side():
    training, others = sides(MANY[:300])
    for more in (["!new.png"], MANY[300:], [f"{n}~" for n in MANY]):
        again = sides(MANY[:300] + more)
        assert training <= again[0] and others <= again[1]
    fewer = sides(MANY[10:300])
    assert fewer[0] <= training and fewer[1] <= others


def test_order_is_that_of_each_name_and_not_of_the_alphabet():
    for side in (0, 1):
        order = [MANY[:200][i] for i in held_out(MANY[:200], 0.1)[side]]
        again = [MANY[::-1][i] for i in held_out(MANY[::-1], 0.1)[side]]
        kept = [name for name in again if name in order]
        assert kept == order != sorted(order)


def test_of_two_and_more_each_side_has_one():
    for num in range(2, 9):
        for start in range(60):
            training, others = sides(MANY[start : start + num])
            assert training and others
            assert len(training) + len(others) == num
    assert held_out(["a.png"], 0.1) == ([0], [])


def test_accents_are_the_same_however_they_are_written():
    one, other = "caf\u00e9.png", "cafe\u0301.png"
    rest = MANY[:100]
    assert held_out([one, *rest], 0.1) == held_out([other, *rest], 0.1)


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ([], []),
        (["0.png", "1.png"], []),
        (["a/0.png", "a/1.png"], []),
        (["a/0.png", "b/1.png", "2.png"], []),
        (["b/0.png", "a/x/1.png", "a/y/2.png"], ["a", "b"]),
    ],
)
def test_classes_are_the_folders_that_all_pictures_are_in(listed, expected):
    assert classes(listed) == expected
