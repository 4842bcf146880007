"""Turn the Engine API's JSON into values of `k3dreg.docker.image`.  No I/O.

Engines differ: by version and store, members are missing, null or empty, and Podman writes IDs without `sha256:`.
Such a member is taken as empty, unless k3dreg cannot serve an image without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from k3dreg.docker.image import ChildManifest, EngineImage, EngineInfo, ImageStore, PullProgress
from k3dreg.docker.members import items, mapping, number, text
from k3dreg.formats.text import one_line
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BadRequest, EngineError
from k3dreg.oci.platform import Platform

# The `DriverStatus` entry of the containerd image store, in every engine version that has this store.
_CONTAINERD_DRIVER = ["driver-type", "io.containerd.snapshotter.v1"]
# Characters: enough for a sentence that contains the longest reference (638) twice.
_LONGEST_LINE = 1600
# Characters.  The versions of Linux distributions' engines have some forty.
_LONGEST_VERSION = 64

# Go's names of architectures, by the kernel's.
_MACHINES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i386": "386",
    "i686": "386",
    "loongarch64": "loong64",
}

_HTML = re.compile(r"<(?:!doctype|html|head|body)\b.*", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(r"<title>([^<]{1,100})</title>", re.IGNORECASE)
# An absolute path of at least two parts that is not part of a URL or of an image's name.
_PATH = re.compile(r"(?<![\w:/.\]-])/(?:[\w.@%+=,:-]+/)+[\w.@%+=,-]*")


def readable(text: str) -> str:
    """Return an engine's message as one line, without HTML, control characters and paths of the engine's host."""
    text = _HTML.sub(_name_page, text)
    text = _PATH.sub("(a path)", text)
    text = one_line(text)
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}…"


def _name_page(html: re.Match[str]) -> str:
    title = _TITLE.search(html.group())
    return f"(an HTML page: {title[1]})" if title else "(an HTML page)"


def error_message(body: bytes) -> str:
    """Return the message of an error answer: `{"message": …}`, or plain text of old engines; "" if there is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace").strip()
    message = value.get("message") if isinstance(value, dict) else None
    return message if isinstance(message, str) else ""


def stream_error(message: Mapping[str, object]) -> str | None:
    """Return the error in a message of a progress stream, or None if it has none.

    The error is in `errorDetail`, and in the older member `error`.
    """
    detail, error = message.get("errorDetail"), message.get("error")
    if detail is None and error is None:
        return None
    return text(mapping(detail).get("message")) or text(error)


def parse_version(text: str) -> tuple[int, int]:
    """Return an API version such as `1.51` as two numbers.  Raises `EngineError` for any other text."""
    match = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", text)
    if match is None:
        raise EngineError(f"not the version of an Engine API: {text[:50]!r}")
    return int(match[1]), int(match[2])


def object_of(value: object, what: str) -> Mapping[str, Any]:
    """Return `value` if it is a JSON object.  Raises `EngineError` if not; `what` completes "the answer to ..."."""
    if not isinstance(value, dict):
        raise EngineError(f"the engine's answer to {what} is not an object")
    return value


def parse_info(info: Mapping[str, Any], version: Mapping[str, Any], api: tuple[int, int]) -> EngineInfo:
    """Return the engine that the answers to `/info` and `/version` describe.  `api` is the version of the requests."""
    components = [part for part in items(version.get("Components")) if isinstance(part, dict)]
    if any(part.get("Name") == "Podman Engine" for part in components):
        store = ImageStore.PODMAN
    elif _CONTAINERD_DRIVER in items(info.get("DriverStatus")):
        store = ImageStore.CONTAINERD
    else:
        store = ImageStore.CLASSIC
    return EngineInfo(
        # Podman generates another ID for each answer.
        id="" if store is ImageStore.PODMAN else text(info.get("ID")),
        # Cleaned like the engine's messages, because logs and the status page show it.
        version=readable(text(version.get("Version")) or text(info.get("ServerVersion")))[:_LONGEST_VERSION],
        api_version=api,
        store=store,
        driver=text(info.get("Driver")),
        root_dir=text(info.get("DockerRootDir")),
        os_type=text(info.get("OSType")) or "linux",
        platform=_own_platform(info),
        insecure_registries=_insecure_registries(info.get("RegistryConfig")),
        mirrors=_mirrors(info.get("RegistryConfig")),
        containerd_address=text(mapping(info.get("Containerd")).get("Address")),
        containerd_namespace=text(mapping(mapping(info.get("Containerd")).get("Namespaces")).get("Containers")),
        driver_status=_pairs(info.get("DriverStatus")),
        security_options=tuple(each for each in items(info.get("SecurityOptions")) if isinstance(each, str)),
    )


def _pairs(value: object) -> Mapping[str, str]:
    """Return a list of pairs of texts as a mapping."""
    pairs = (each for each in items(value) if isinstance(each, list) and len(each) == 2)
    return {name: told for name, told in pairs if isinstance(name, str) and isinstance(told, str)}


def _insecure_registries(settings: object) -> frozenset[str]:
    """Return the insecure registries that Docker's settings name.

    Insecure networks are in another member, `InsecureRegistryCIDRs`, which always contains 127.0.0.0/8.
    """
    configs = mapping(mapping(settings).get("IndexConfigs"))
    return frozenset(name.lower() for name, config in configs.items() if mapping(config).get("Secure") is False)


def _mirrors(settings: object) -> tuple[str, ...]:
    return tuple(mirror for mirror in items(mapping(settings).get("Mirrors")) if isinstance(mirror, str))


def _own_platform(info: Mapping[str, Any]) -> Platform | None:
    """Return the engine's own platform.  `Architecture` is the kernel's name (Docker), or Go's (Podman)."""
    told = text(info.get("Architecture"))
    machine = _MACHINES.get(told, told)
    return Platform(text(info.get("OSType")) or "linux", machine) if machine else None


def parse_image(value: Mapping[str, Any], store: ImageStore) -> EngineImage:
    """Return the image that an answer to `GET /images/{name}/json` describes.

    Raises `EngineError` for a missing `Id`, or an invalid digest or descriptor.  An image of which no platform is
    complete has an empty `RootFS` and no platform, which is no error.
    """
    identity = text(value.get("Id"))
    try:
        image_id = Digest.parse(identity if ":" in identity else f"sha256:{identity}")
        layers = items(mapping(value.get("RootFS")).get("Layers"))
        diff_ids = tuple(Digest.parse(layer) for layer in layers if isinstance(layer, str))
        described = value.get("Descriptor")
        descriptor = Descriptor.from_json(described) if described else None
        children = tuple(_child(child) for child in items(value.get("Manifests")) if isinstance(child, dict))
    except BadRequest as error:
        raise EngineError(f"the engine's answer about an image does not parse: {error}") from error
    platform = Platform(text(value.get("Os")), text(value.get("Architecture")), text(value.get("Variant")))
    return EngineImage(
        id=image_id,
        store=store,
        tags=_names(value, "RepoTags"),
        repo_digests=_names(value, "RepoDigests"),
        diff_ids=diff_ids,
        descriptor=descriptor,
        children=children,
        platform=platform if platform.os or platform.architecture else None,
        size=number(value.get("Size")),
    )


def _child(value: Mapping[str, Any]) -> ChildManifest:
    descriptor = Descriptor.from_json(value.get("Descriptor"))
    return ChildManifest(
        descriptor,
        value.get("Available") is True,
        text(value.get("Kind")) or "unknown",
        number(mapping(value.get("Size")).get("Content")),
    )


def _names(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
    # Engines before API 1.43 give an image without names the name "<none>:<none>".  Podman lists the digest by which an
    # image was pulled among its tags.
    by_digest = key == "RepoDigests"
    names = (name for name in items(value.get(key)) if isinstance(name, str) and not name.startswith("<none>"))
    return tuple(name for name in names if by_digest or "@" not in name)


class PullTally:
    """The sums of the layers' bytes in one pull.

    They count the layers that the engine has mentioned so far, so `total` grows when it mentions another one.
    """

    def __init__(self) -> None:
        self._layers: dict[str, tuple[int, int]] = {}

    def add(self, message: Mapping[str, object]) -> PullProgress | None:
        """Count the next message of the stream, and return the progress; None for a message without a status."""
        status, layer = message.get("status"), message.get("id")
        if not isinstance(status, str):
            return None
        if isinstance(layer, str) and layer:
            self._add_layer(layer, status, message.get("progressDetail"))
        current = sum(done for done, _ in self._layers.values())
        total = sum(whole for _, whole in self._layers.values())
        return PullProgress(readable(status), current, total)

    def _add_layer(self, layer: str, status: str, detail: object) -> None:
        if status == "Downloading" and isinstance(detail, dict):
            current, total = detail.get("current"), detail.get("total")
            if isinstance(current, int):
                whole = total if isinstance(total, int) and total > 0 else 0
                self._layers[layer] = (current, max(whole, current))
        elif status in ("Download complete", "Pull complete", "Verifying Checksum") and layer in self._layers:
            self._layers[layer] = (self._layers[layer][1], self._layers[layer][1])
