"""Push clients of two ages: Debian's, in the chroot that has them, and current ones that `.ci/engines` built.

A name like `crane` is Debian's, `crane-current` the current one.  The same command works with both.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from tests.integration.support import rig

_CURRENT = "-current"


def around(tools: Sequence[str], client: str) -> list[str]:
    """Return the words before a shell that finds the client; `tools` are those for Debian's.

    A client that is not there skips the test.
    """
    if client.endswith(_CURRENT):
        return ["env", f"PATH={rig.program(client.removesuffix(_CURRENT)).parent}:{os.environ['PATH']}"]
    if subprocess.run([*tools, "which", client], capture_output=True, check=False).returncode != 0:
        rig.unavailable(f"{client} is not installed:")
    return list(tools)
