"""What images were a moment ago, for as long as their names mean them."""

from __future__ import annotations

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.image import EngineImage, ImageStore

# Seconds.  Within them nothing is noticed of a platform of an image that somebody else has pulled, or of which the
# engine has lost blobs; which image a name means is asked each time.
_KEPT_FOR = 2.0
_MOST = 256


@frozen
class _Seen:
    image: EngineImage
    generation: int
    until: float


class InspectCache:
    """Images by the names that they were inspected by.  `generation`: see `Connection`."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def get(self, name: str, generation: int) -> EngineImage | None:
        """The image that was inspected a moment ago; None if it was not, or if it is better looked at again."""
        seen = self._seen.get(name)
        if seen is None or seen.generation != generation or seen.until < self._clock.seconds():
            self._seen.pop(name, None)
            return None
        return seen.image

    def put(self, name: str, image: EngineImage, generation: int) -> None:
        """It was inspected just now.  Only for the containerd store: the others inspect as fast as they do anything.

        An image that has lost blobs is not kept: it may be mended at any time.
        """
        if image.store is ImageStore.CONTAINERD and not image.is_damaged:
            self._seen.pop(name, None)
            self._seen[name] = _Seen(image, generation, self._clock.seconds() + _KEPT_FOR)
            if len(self._seen) > _MOST:
                del self._seen[next(iter(self._seen))]
