"""Which ways to the bytes of images are open."""

from __future__ import annotations

from collections.abc import Sequence

from k3dreg.interfaces import IEngineFiles
from k3dreg.model.engine import EngineInfo
from k3dreg.model.engine_files import LayerPaths, content_directories
from k3dreg.model.errors import K3dregError
from k3dreg.model.overview import SourceState


async def source_states(info: EngineInfo, local: IEngineFiles, *, reader: bool) -> Sequence[SourceState]:
    """Fastest first.  `local` are the engine's files as they are on this machine; `reader` is the option of that name.

    Never raises for what cannot be reached: that is the answer.
    """
    directories = _directories(info)
    if not directories:
        return (SourceState("export", "open; this engine's image store is not one whose files k3dreg reads"),)
    read = ""
    for directory in directories:
        try:
            if (await local.stat(directory)).is_directory:
                read = directory
                break
        except K3dregError:
            continue
    if read:
        states = [SourceState("the engine's files", f"open, at {read}")]
    else:
        host = f"run k3dreg on the engine's machine, or in a container with -v {info.root_dir}:{info.root_dir}:ro"
        states = [SourceState("the engine's files", "closed: they cannot be read from here", host)]
    states.append(
        SourceState("reader containers", "on") if reader else SourceState("reader containers", "off", "--reader on")
    )
    states.append(SourceState("export", "open, and the slowest"))
    return states


def _directories(info: EngineInfo) -> Sequence[str]:
    layers = LayerPaths.of(info)
    return content_directories(info) if layers is None else (layers.database,)
