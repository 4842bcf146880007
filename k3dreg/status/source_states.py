"""Finds out which sources of image content k3dreg can use."""

from __future__ import annotations

from collections.abc import Sequence

from k3dreg.docker.image import EngineInfo
from k3dreg.engine_files.engine_files import IEngineFiles
from k3dreg.engine_files.layout import LayerPaths, content_directories
from k3dreg.oci.errors import K3dregError
from k3dreg.status.overview import SourceState


async def source_states(
    info: EngineInfo, local: IEngineFiles, passed: IEngineFiles | None, *, reader: str, may_be_passed: bool = False
) -> Sequence[SourceState]:
    """Return the state of each source, the fastest first.

    `local` are the engine's files on this machine.  `passed` are the files whose directories a helper container has
    passed, None without one.  `reader` is the value of `--reader`.  `may_be_passed`: a helper container would pass the
    directories to a daemon in this place, but not to this process.

    An engine or file that cannot be reached raises nothing, as the result says so.
    """
    directories = _directories(info)
    if not directories:
        return (SourceState("export", "available; k3dreg cannot read the files of this engine's image store"),)
    if read := await _readable(local, directories):
        states = [SourceState("the engine's files", f"available, at {read}")]
    elif passed is not None and (read := await _readable(passed, directories)):
        states = [SourceState("the engine's files", f"a helper container passed {read}")]
    elif may_be_passed:
        states = [SourceState("the engine's files", "a helper container passes them when k3dreg starts")]
    else:
        there = f"a container with -v {info.root_dir}:{info.root_dir}:ro"
        advice = f"run k3dreg as root on the engine's machine, or in {there}"
        states = [SourceState("the engine's files", "k3dreg cannot read them from here", advice)]
    states.append(SourceState("reader containers", "off, as --reader says" if reader == "off" else "on"))
    states.append(SourceState("export", "available, and the slowest"))
    return states


async def _readable(files: IEngineFiles, directories: Sequence[str]) -> str:
    """Return the first of `directories` that `files` can reach; "" if there is none."""
    for directory in directories:
        try:
            if (await files.stat(directory)).is_directory:
                return directory
        except K3dregError:
            continue
    return ""


def _directories(info: EngineInfo) -> Sequence[str]:
    layers = LayerPaths.of(info)
    return content_directories(info) if layers is None else (layers.database,)
