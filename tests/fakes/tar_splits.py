"""Layers as the classic store keeps them: a tar-split, and the files by themselves."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from pathlib import Path


def split(tar: bytes) -> tuple[bytes, dict[str, bytes]]:
    """The `tar-split.json.gz` of a layer's tar, and the contents that it leaves out, by name."""
    lines: list[dict[str, object]] = []
    contents = {}
    at = 0

    def segment(until: int) -> None:
        # In two parts, as the engine writes them: headers and padding by themselves.
        middle = (at + until) // 2
        parts = (tar[at:middle], tar[middle:until])
        lines.extend({"type": 2, "payload": base64.b64encode(part).decode()} for part in parts)

    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as members:
        for member in members:
            if not member.isreg():
                continue
            name = member.name.encode("utf-8", "surrogateescape")
            entry: dict[str, object] = {"type": 1, "payload": "AAAAAAAAAAA="}
            try:
                entry["name"] = name.decode()
            except UnicodeDecodeError:
                entry["name_raw"] = base64.b64encode(name).decode()
            segment(member.offset_data)
            if member.size:
                entry["size"] = member.size
                contents[member.name] = tar[member.offset_data : member.offset_data + member.size]
            lines.append(entry)
            at = member.offset_data + member.size
    segment(len(tar))
    text = "".join(json.dumps({**line, "position": n}, separators=(",", ":")) + "\n" for n, line in enumerate(lines))
    return gzip.compress(text.encode()), contents


def unpack(contents: dict[str, bytes], root: Path) -> None:
    """The files of a layer in a directory."""
    root.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        path = Path(str(root) + "/" + name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
