"""Small files of the formats that data sets are published in."""

import gzip
import io
import tarfile
import zipfile

import lmdb
import numpy as np
from PIL import Image
from scipy import io as scipy_io

NUM = {"train": 7, "test": 5}


def random_images(num, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, *shape), np.uint8)


def idx(array):
    header = np.array([0x800 + array.ndim, *array.shape], ">u4").tobytes()
    return gzip.compress(header + array.tobytes())


def encoded(image, kind="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def tarred(files, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def mnist_files():
    """The four files, and the images and labels in them."""
    files, splits = {}, {}
    for seed, (split, part) in enumerate((("train", "train"), ("test", "t10k"))):
        images = random_images(NUM[split], (28, 28), seed)
        labels = np.arange(NUM[split], dtype=np.uint8) % 10
        files[f"{part}-images-idx3-ubyte.gz"] = idx(images)
        files[f"{part}-labels-idx1-ubyte.gz"] = idx(labels)
        splits[split] = images[..., None], labels
    return files, splits


def cifar10_files():
    splits, members = {}, {}
    for seed, (split, num) in enumerate((("train", 10), ("test", 3))):
        images = random_images(num, (32, 32, 3), seed)
        labels = np.arange(num, dtype=np.uint8)
        splits[split] = images, labels
        planes = np.moveaxis(images, -1, 1).reshape(num, -1)
        rows = np.concatenate([labels[:, None], planes], axis=1)
        parts = np.split(rows, 5) if split == "train" else [rows]
        names = [f"data_batch_{i}.bin" for i in range(1, 6)]
        for name, part in zip(
            names if split == "train" else ["test_batch.bin"], parts, strict=True
        ):
            members[f"cifar-10-batches-bin/{name}"] = part.tobytes()
    names = "\n".join("abcdefghij") + "\n\n"
    members["cifar-10-batches-bin/batches.meta.txt"] = names.encode()
    return {"cifar-10-binary.tar.gz": tarred(members, "w:gz")}, splits


def svhn_files():
    files, splits = {}, {}
    for seed, (split, num) in enumerate(NUM.items()):
        images = random_images(num, (32, 32, 3), seed)
        labels = np.arange(num) % 10
        stored = {"X": np.moveaxis(images, 0, -1), "y": np.where(labels, labels, 10)}
        stored["y"] = stored["y"][:, None]
        buffer = io.BytesIO()
        scipy_io.savemat(buffer, stored)
        files[f"{split}_32x32.mat"] = buffer.getvalue()
        splits[split] = images, labels
    return files, splits


FACES = {"train": 5, "validation": 2, "test": 3}


def celeba_files():
    images, rows = {}, []
    for i in range(sum(FACES.values())):
        name = f"{i + 1:06d}.jpg"
        face = np.full((218, 178, 3), 20 * i, np.uint8)
        images[f"img_align_celeba/{name}"] = encoded(face, "jpeg", quality=95)
        rows.append((name, [0, 0, 0, 0, 0, 1, 1, 2, 2, 2][i]))
    table = "{}\n{}\n{}\n".format
    points = " ".join(
        f"{p}_{axis}"
        for p in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
        for axis in "xy"
    )
    import tensorflow_datasets as tfds

    features = tfds.builder_cls("celeb_a")(data_dir="/nowhere").info.features
    attributes = " ".join(features["attributes"])
    return {
        "img_align_celeba.zip": zipped(images),
        "list_eval_partition.txt": "".join(f"{n} {p}\n" for n, p in rows).encode(),
        "list_attr_celeba.txt": table(
            len(rows), attributes, "\n".join(f"{n}  {'-1 ' * 39}1" for n, _ in rows)
        ).encode(),
        "list_landmarks_align_celeba.txt": table(
            len(rows), points, "\n".join(f"{n} {'7 ' * 10}" for n, _ in rows)
        ).encode(),
        "identity_CelebA.txt": "".join(f"{n} 11\n" for n, _ in rows).encode(),
    }


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def celeba_hq_tar(num=20, damaged=()):
    images = random_images(num, (4, 4, 3))
    members = {}
    for i, image in enumerate(images):
        big = np.asarray(Image.fromarray(image).resize((256, 256), 0))
        data = encoded(big)
        data = data[: len(data) // 2] if i in damaged else data
        members[f"data256x256/{i + 1:05d}.png"] = data
    return tarred(members)


def write_lmdb(path, values):
    """A database of these values, with keys like LSUN's, in the order of the keys."""
    environment = lmdb.open(str(path), map_size=2**24)
    with environment.begin(write=True) as transaction:
        for i, value in enumerate(values):
            transaction.put(f"{i:040x}".encode(), value)
    environment.close()
    return path


def church_zip(folder, part, num):
    """A database of webp values in the layout of LSUN, zipped."""
    images = random_images(num, (60, 90, 3), seed=num)
    path = write_lmdb(
        folder / f"church_outdoor_{part}_lmdb",
        [encoded(image, "webp", quality=90) for image in images],
    )
    return zipped(
        {f"{path.name}/{f.name}": f.read_bytes() for f in sorted(path.iterdir())}
    )
