"""Reads a LeRobot v3.0 dataset in place: `meta/` says where in `data/*.parquet` and `videos/*.mp4` each episode lies.

Datasets written by anyvla carry their embodiment in `info.json`; for any other the caller declares it, because
LeRobot does not say what the numbers of an action mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from anyvla.config import build, to_dict
from anyvla.data.episode import Embodiment, Episode
from anyvla.data.formats import video
from anyvla.registry import nearest

VERSION = "v3.0"
OWN_KEY = "anyvla"  # what anyvla alone knows, in info.json and as a prefix of columns; LeRobot ignores it
CAMERA_PREFIX = "observation.images."
STATE = "observation.state"
ACTION = "action"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_HASHED_BYTES = 16 << 20  # of the head and of the tail of a file


class LeRobotDataset:
    """A dataset folder as an `EpisodeDataset`.

    `embodiment` is needed if `info.json` has no `anyvla` key; it also chooses the cameras and their order. Raises
    ValueError with the way out for a folder that is no dataset, half written, of another version, or that lacks a
    camera or a file.
    """

    def __init__(self, root: Path | str, embodiment: Embodiment | None = None) -> None:
        self.root = Path(root)
        self._info = _read_info(self.root)
        own = self._info.get(OWN_KEY, {})
        if embodiment is None:
            if "embodiment" not in own:
                raise ValueError(_declare(self.root, self._info))
            embodiment = build(Embodiment, own["embodiment"], where=f"{self.root}/meta/info.json, embodiment")
        self.embodiment = embodiment
        self.provenance: dict[str, Any] = own.get("provenance", {})
        self.notes: dict[str, Any] = own.get("notes", {})
        self.fps = float(self._info["fps"])
        self._camera_keys = {name: self._camera_key(name) for name in embodiment.cameras}
        if abs(embodiment.control_hz / self.fps - 1) > 0.01:
            raise ValueError(
                f"{self.root} was recorded at {self.fps:g} steps per second, the embodiment declares control_hz="
                f"{embodiment.control_hz:g}: declare the rate of the data"
            )
        self._check_size(ACTION, embodiment.action.size)
        self._check_size(STATE, embodiment.proprio.size)
        self._episodes = self._read_episodes()
        self._tables: dict[Path, pa.Table] = {}

    @cached_property
    def lengths(self) -> list[int]:
        """Steps of each episode."""
        return [int(e["length"]) for e in self._episodes]

    def __len__(self) -> int:
        return len(self._episodes)

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`; a camera's frames are decoded when first asked for. Raises IndexError past the end."""
        row = self._episode(index)
        table = self._rows(row)
        task_index = table["task_index"][0].as_py()
        return Episode(
            images=_Images(self, row),
            proprio=_matrix(table[STATE]),
            actions=_matrix(table[ACTION]),
            instruction=self._tasks[task_index],
            extra=json.loads(row.get(f"{OWN_KEY}/extra") or "{}"),
        )

    def frames(self, camera: str, episode: int, indices: Sequence[int]) -> UInt8[np.ndarray, "K H W 3"]:
        """Single frames of one camera, in the order of `indices` (steps of the episode)."""
        row = self._episode(episode)
        if camera not in self._camera_keys:
            raise ValueError(f"no camera {camera!r}: {nearest(camera, list(self._camera_keys))}")
        outside = [i for i in indices if not 0 <= i < row["length"]]
        if outside:
            raise IndexError(f"episode {episode} has {row['length']} steps; no step {outside[0]}")
        path, start = self.locate(camera, row)
        return video.decode_at(path, self.fps, [start + int(i) for i in indices])

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the rows, the videos and what they mean, but not over where and when they were made."""
        digest = hashlib.sha256()
        facts = {k: v for k, v in self._info.items() if k != OWN_KEY} | {"embodiment": to_dict(self.embodiment)}
        digest.update(json.dumps(facts, sort_keys=True).encode())
        for path in sorted(self.root.glob("data/**/*.parquet")) + sorted(self.root.glob("meta/**/*.parquet")):
            _hash_file(digest, path, self.root)
        for key in self._camera_keys.values():
            for path in sorted((self.root / "videos" / key).glob("**/*.mp4")):
                _hash_file(digest, path, self.root)
        return digest.hexdigest()

    @cached_property
    def statistics(self) -> dict[str, dict[str, list[float]]]:
        """`{"action" | "proprio": {"min" | "max" | "mean" | "std" | "q01" | ...: one value per dim}}`."""
        path = self.root / "meta/stats.json"
        way_out = (
            "write the dataset anew with anyvla.data.formats.lerobot_writer.write_dataset(root, embodiment, episodes)"
        )
        if not path.is_file():
            raise ValueError(f"{path} is missing, so nothing can be normalised: {way_out}")
        stats = _read_json(path)
        for key in (ACTION, STATE):
            missing = [q for q in ("min", "max", "mean", "std", "q01", "q99") if q not in stats.get(key, {})]
            if missing:
                raise ValueError(f"{path} lacks {', '.join(missing)} of {key!r}: {way_out}")
        return {
            name: {q: values for q, values in stats[key].items() if q != "count"}
            for name, key in (("action", ACTION), ("proprio", STATE))
        }

    @cached_property
    def _tasks(self) -> dict[int, str]:
        table = pq.read_table(self.root / "meta/tasks.parquet")
        names = [c for c in table.column_names if c != "task_index"]  # the index of a pandas frame, named or not
        return dict(zip(table["task_index"].to_pylist(), table[names[0]].to_pylist(), strict=True))

    def _camera_key(self, name: str) -> str:
        features = self._info["features"]
        for key in (CAMERA_PREFIX + name, name):
            if key in features:
                if features[key]["dtype"] != "video":
                    raise ValueError(
                        f"{self.root}: camera {name!r} is stored as {features[key]['dtype']!r}, not as video; "
                        "convert the dataset with LeRobot's image-to-video script first"
                    )
                return key
        known = [k.removeprefix(CAMERA_PREFIX) for k, f in features.items() if f["dtype"] == "video"]
        raise ValueError(
            f"{self.root} has no camera {name!r}: {nearest(name, known) if known else 'it holds no videos'}"
        )

    def _check_size(self, key: str, size: int) -> None:
        feature = self._info["features"].get(key)
        if feature is None:
            raise ValueError(f"{self.root} has no feature {key!r}: {nearest(key, list(self._info['features']))}")
        if list(feature["shape"]) != [size]:
            raise ValueError(
                f"{self.root}: {key!r} has shape {list(feature['shape'])}, the embodiment declares {size} dims"
            )

    def _read_episodes(self) -> list[dict[str, Any]]:
        paths = sorted((self.root / "meta/episodes").glob("*/*.parquet"))
        if not paths:
            raise ValueError(f"{self.root} is incomplete: meta/episodes holds no parquet file; copy the dataset again")
        rows: list[dict[str, Any]] = []
        for path in paths:
            names = [n for n in pq.read_schema(path).names if not n.startswith("stats/")]
            rows += pq.read_table(path, columns=names).to_pylist()
        rows.sort(key=lambda r: r["episode_index"])
        if len(rows) != self._info["total_episodes"]:
            raise ValueError(
                f"{self.root} is incomplete: info.json counts {self._info['total_episodes']} episodes, "
                f"meta/episodes lists {len(rows)}; copy the dataset again"
            )
        wanted = {self._data(r) for r in rows} | {self.locate(c, r)[0] for r in rows for c in self._camera_keys}
        for path in [self.root / "meta/tasks.parquet", *sorted(wanted)]:
            _existing(path)
        return rows

    def _episode(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.root} has {len(self)} episodes; no episode {index}")
        return self._episodes[index]

    def _data(self, row: dict[str, Any]) -> Path:
        where = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        return self.root / self._info["data_path"].format(**where)

    def locate(self, camera: str, row: dict[str, Any]) -> tuple[Path, int]:
        """The video file of a camera and the number of the episode's first frame in it; `row` is its episode's row."""
        if camera not in self._camera_keys:
            raise KeyError(f"no camera {camera!r}: {nearest(camera, list(self._camera_keys))}")
        key = self._camera_keys[camera]
        where = {"chunk_index": row[f"videos/{key}/chunk_index"], "file_index": row[f"videos/{key}/file_index"]}
        path = self.root / self._info["video_path"].format(video_key=key, **where)
        return path, round(row[f"videos/{key}/from_timestamp"] * self.fps)

    def _rows(self, row: dict[str, Any]) -> pa.Table:
        path = self._data(row)
        if path not in self._tables:
            self._tables[path] = pq.read_table(path, columns=["index", "task_index", STATE, ACTION])
        table = self._tables[path]
        first = row["dataset_from_index"] - table["index"][0].as_py()
        part = table.slice(first, row["length"])
        if len(part) != row["length"] or part["index"][0].as_py() != row["dataset_from_index"]:
            raise ValueError(f"{path} does not hold the rows of episode {row['episode_index']}; copy the dataset again")
        return part


class _Images(Mapping[str, np.ndarray]):
    """Camera name -> frames of one episode, decoded once, so that reading only its numbers costs no decoding."""

    def __init__(self, dataset: LeRobotDataset, row: dict[str, Any]) -> None:
        self._dataset, self._row = dataset, row
        self._decoded: dict[str, np.ndarray] = {}

    def __getitem__(self, camera: str) -> UInt8[np.ndarray, "T H W 3"]:
        if camera not in self._decoded:
            path, start = self._dataset.locate(camera, self._row)
            self._decoded[camera] = video.decode(path, self._dataset.fps, start, self._row["length"])
        return self._decoded[camera]

    def __contains__(self, camera: object) -> bool:  # the inherited one would decode
        return camera in self._dataset.embodiment.cameras

    def __iter__(self) -> Iterator[str]:
        return iter(self._dataset.embodiment.cameras)

    def __len__(self) -> int:
        return len(self._dataset.embodiment.cameras)


def _read_info(root: Path) -> dict[str, Any]:
    if root.name.endswith(".partial"):
        raise ValueError(f"{root} is a dataset still being written: run the same command to finish it")
    path = root / "meta/info.json"
    if not path.is_file():
        if root.with_name(root.name + ".partial").is_dir():
            raise ValueError(f"{root} is half written ({root.name}.partial exists): run the same command to finish it")
        if not root.is_dir():
            raise ValueError(f"there is no dataset at {root}: no such folder")
        raise ValueError(f"{root} is not a LeRobot dataset, or half written: it has no meta/info.json")
    info = _read_json(path)
    version = str(info.get("codebase_version", "unknown"))
    if version != VERSION:
        raise ValueError(
            f"{root} is a LeRobot dataset of version {version}; version {VERSION} is read. Convert it with LeRobot's "
            "script convert_dataset_v21_to_v30"
        )
    return info


def _declare(root: Path, info: dict[str, Any]) -> str:
    cameras = [k.removeprefix(CAMERA_PREFIX) for k, f in info["features"].items() if f["dtype"] == "video"]
    sizes = {key: info["features"].get(key, {}).get("shape", ["?"])[0] for key in (STATE, ACTION)}
    return (
        f"{root} does not say what its numbers mean: pass embodiment=Embodiment(name, cameras, proprio, action, "
        f"control_hz) with cameras among {cameras}, a proprio space of {sizes[STATE]} dims, an action space of "
        f"{sizes[ACTION]} dims, and control_hz={info.get('fps')}"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); copy the dataset again") from None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"the dataset is incomplete: {path} is missing; copy it again")
    return path


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of equally long lists, or of numbers where D is 1, as a float32 matrix."""
    values = column.combine_chunks()
    flat = (values.flatten() if pa.types.is_nested(values.type) else values).to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat.reshape(len(column), -1), dtype=np.float32)


def _hash_file(digest: Any, path: Path, root: Path) -> None:
    """Name, size, and contents: of large files the head and the tail, where parquet and mp4 keep their index."""
    size = path.stat().st_size
    digest.update(f"{path.relative_to(root).as_posix()}:{size}:".encode())
    with path.open("rb") as file:
        digest.update(file.read(_HASHED_BYTES))
        if size > 2 * _HASHED_BYTES:
            file.seek(size - _HASHED_BYTES)
        digest.update(file.read())
