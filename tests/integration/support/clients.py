"""Push clients of two ages: Debian's, in the chroot that has them, and current ones that `.ci/engines` built.

A name like `crane` is Debian's, `crane-current` the current one.  The same command works with both.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.integration.support import rig

_CURRENT = "-current"


def around(tools: Sequence[str], client: str) -> list[str]:
    """Return the words before a shell that finds the client; `tools` are those for Debian's.

    A client that is not there skips the test.
    """
    if client.endswith(_CURRENT):
        directory = rig.program(client.removesuffix(_CURRENT)).parent
        # Their settings and Go's cache are below HOME, which tox does not pass on.
        return ["env", f"PATH={directory}:{os.environ['PATH']}", f"HOME={Path.home()}"]
    if subprocess.run([*tools, "which", client], capture_output=True, check=False).returncode != 0:
        rig.unavailable(f"{client} is not installed:")
    return list(tools)
