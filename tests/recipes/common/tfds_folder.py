"""A tiny data set in TensorFlow Datasets' format on disk, written without tensorflow."""

import io
import json
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

VERSIONS = {"mnist": "3.0.1", "cifar10": "3.0.2"}  # those that tfds asks for


def write(folder: Path, name: str, splits: dict[str, tuple[np.ndarray, list[int]]]) -> None:
    """`folder/name/VERSION`, of split -> (images uint8 (n, h, w, c), labels)."""
    home = folder / name / VERSIONS[name]
    home.mkdir(parents=True)
    for split, (images, labels) in splits.items():
        # a group of one record, as tfds writes them: any record can be read by itself
        shard = home / f"{name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(shard), "group_size:1")
        for image, label in zip(images, labels, strict=True):
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(_png(image))
            example.features.feature["label"].int64_list.value.append(label)
            if name == "cifar10":
                example.features.feature["id"].bytes_list.value.append(b"train_16399")
            writer.write(example.SerializeToString())
        writer.close()
    (height, width, channels) = next(iter(splits.values()))[0].shape[1:]
    _write_json(home / "features.json", _features(name, height, width, channels))
    _write_json(home / "dataset_info.json", _info(name, {k: len(v[1]) for k, v in splits.items()}))


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(file, "png")
    return file.getvalue()


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content))


def _features(name: str, *shape: int) -> dict:
    base = "tensorflow_datasets.core.features"
    dimensions = {"dimensions": [str(n) for n in shape]}
    text = {"id": {"pythonClassName": f"{base}.text_feature.Text", "text": {}}}
    image = {"dtype": "uint8", "encodingFormat": "png", "shape": dimensions}
    return {
        "pythonClassName": f"{base}.features_dict.FeaturesDict",
        "featuresDict": {
            "features": {
                **(text if name == "cifar10" else {}),
                "image": {"pythonClassName": f"{base}.image_feature.Image", "image": image},
                "label": {
                    "pythonClassName": f"{base}.class_label_feature.ClassLabel",
                    "classLabel": {"numClasses": "10"},
                },
            }
        },
    }


def _info(name: str, lengths: dict[str, int]) -> dict:
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    return {
        "name": name,
        "version": VERSIONS[name],
        "fileFormat": "array_record",
        "splits": [
            {"name": split, "shardLengths": [str(n)], "filepathTemplate": template}
            for split, n in lengths.items()
        ],
    }
