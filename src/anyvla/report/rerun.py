"""Write an episode as a rerun recording (rerun.io): cameras, actions and proprio on one timeline."""

from __future__ import annotations

from pathlib import Path

from anyvla.data.episode import EpisodeDataset


def write_recording(dataset: EpisodeDataset, index: int, path: Path) -> Path:
    """Write episode `index` as an .rrd file. Raises ImportError, with the extra to install, if rerun is missing."""
    try:
        import rerun
    except ImportError as error:
        raise ImportError("a rerun recording needs rerun: pip install 'anyvla[rerun]'") from error
    episode = dataset[index]
    robot = episode.embodiment
    stream = rerun.RecordingStream("anyvla", recording_id=f"{dataset.fingerprint[:16]}-{index}")
    path.parent.mkdir(parents=True, exist_ok=True)
    stream.save(path)
    for text in episode.instructions:
        stream.log("instruction", rerun.TextLog(text), static=True)
    for step, seconds in enumerate(episode.timestamps):
        stream.set_time("step", sequence=step)
        stream.set_time("time", duration=float(seconds))
        for camera, images in episode.images.items():
            stream.log(f"camera/{camera}", rerun.Image(images[step]).compress(jpeg_quality=90))
        for what, space, array in (
            ("action", robot.action, episode.actions),
            ("proprio", robot.proprio, episode.proprio),
        ):
            for group, dims in zip(space.groups, space.slices().values(), strict=True):
                if not group.names:
                    stream.log(f"{what}/{group.name}", rerun.Scalars(array[step, dims]))
                for name, value in zip(group.names, array[step, dims], strict=False):
                    stream.log(f"{what}/{group.name}/{name}", rerun.Scalars(value))
    stream.flush()
    return path
