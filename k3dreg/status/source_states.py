"""Which ways to the bytes of images are open."""

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
    """Fastest first.  `local` are the engine's files as they are on this machine, `passed` those whose directories a
    helper container passes, None where none does; `reader` is the option of that name.  `may_be_passed` says that one
    can pass them to a daemon, though not to this process.

    Never raises for what cannot be reached: that is the answer.
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
    states.append(
        SourceState("reader containers", "off", "--reader on")
        if reader == "off"
        else SourceState("reader containers", "on")
    )
    states.append(SourceState("export", "available, and the slowest"))
    return states


async def _readable(files: IEngineFiles, directories: Sequence[str]) -> str:
    """The first of the `directories` that is one there; "" if none is."""
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
