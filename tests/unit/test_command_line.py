from __future__ import annotations

import pytest

from k3dreg import __version__
from k3dreg.cli import main


@pytest.mark.parametrize("command", ["", "ls", "gc", "doctor", "why", "warm", "config"])
def test_every_command_tells_k3dregs_own_version(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*([command] if command else []), "--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"k3dreg {__version__}\n"
