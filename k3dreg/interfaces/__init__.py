"""What crosses rooms.  Adapters implement these, use cases are given them, `service` joins the two.

Every coroutine here may raise `k3dreg.model.errors.K3dregError`s; each says which.  Cancelling the Deferred
around a coroutine ends that caller's own part of the work and nobody else's.
"""

from __future__ import annotations

from k3dreg.interfaces.content import (
    IBlob,
    IBlobStore,
    IBlobWriter,
    IByteStream,
    ICatalogue,
    IFileHandle,
    IPieceStream,
    ISocketConsumer,
    IStaging,
    ITakenStream,
    ITaking,
)
from k3dreg.interfaces.engine import (
    FileStat,
    IContentSink,
    IEngine,
    IEngineFiles,
    IEngineRequests,
    IImageEvents,
    IImageNames,
    INamesVersion,
    NamesVersion,
)
from k3dreg.interfaces.pushed import IPushed, PushedManifest
from k3dreg.interfaces.sources import (
    ICredentialSource,
    IFallback,
    IImageSource,
    ILooseContent,
    IOrigin,
    IRepair,
    ServedManifest,
)
from k3dreg.interfaces.use_cases import (
    IDiscovery,
    IMonitoring,
    IObserver,
    IRegistry,
    IUploads,
    IUsers,
    Pushed,
    UploadStatus,
)

__all__ = [
    "FileStat",
    "IBlob",
    "IBlobStore",
    "IBlobWriter",
    "IByteStream",
    "ICatalogue",
    "IContentSink",
    "ICredentialSource",
    "IDiscovery",
    "IEngine",
    "IEngineFiles",
    "IEngineRequests",
    "INamesVersion",
    "NamesVersion",
    "IFallback",
    "IFileHandle",
    "IImageEvents",
    "IImageNames",
    "IImageSource",
    "ILooseContent",
    "IMonitoring",
    "IObserver",
    "IOrigin",
    "IPieceStream",
    "IPushed",
    "IRegistry",
    "IRepair",
    "ISocketConsumer",
    "IStaging",
    "ITakenStream",
    "ITaking",
    "IUploads",
    "IUsers",
    "Pushed",
    "PushedManifest",
    "ServedManifest",
    "UploadStatus",
]
