"""Convert an `EngineImage` to JSON and back without loss: its `fingerprint` must be the same after a restart."""

from __future__ import annotations

from typing import Any

from k3dreg.docker.image import ChildManifest, EngineImage, ImageStore
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.platform import Platform


def image_to_json(image: EngineImage) -> dict[str, Any]:
    """Return the image as a JSON object."""
    return {
        "id": str(image.id),
        "store": image.store.value,
        "tags": list(image.tags),
        "repoDigests": list(image.repo_digests),
        "diffIDs": [str(digest) for digest in image.diff_ids],
        "descriptor": None if image.descriptor is None else image.descriptor.to_json(),
        "children": [
            {"descriptor": child.descriptor.to_json(), "available": child.available, "kind": child.kind}
            for child in image.children
        ],
        "platform": None if image.platform is None else image.platform.to_json(),
        "size": image.size,
    }


def image_from_json(value: dict[str, Any]) -> EngineImage:
    """Return the image of a JSON object that `image_to_json` made.

    Raises `K3dregError`, `ValueError`, `KeyError`, `TypeError` or `AttributeError` for any other object.
    """
    descriptor, platform = value["descriptor"], value["platform"]
    return EngineImage(
        id=Digest.parse(value["id"]),
        store=ImageStore(value["store"]),
        tags=tuple(map(str, value["tags"])),
        repo_digests=tuple(map(str, value["repoDigests"])),
        diff_ids=tuple(map(Digest.parse, value["diffIDs"])),
        descriptor=None if descriptor is None else Descriptor.from_json(descriptor),
        children=tuple(
            ChildManifest(Descriptor.from_json(child["descriptor"]), child["available"] is True, str(child["kind"]))
            for child in value["children"]
        ),
        platform=None if platform is None else Platform.from_json(platform),
        size=int(value["size"]),
    )
