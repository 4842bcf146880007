"""containerd's `hosts.toml` and k3s' `registries.yaml`: the two ways to tell a node of a mirror.

k3s makes the first of the second: the mirror "*" becomes the directory `_default`, which containerd takes for every
registry that has no directory of its own.
"""

from __future__ import annotations


def registries_yaml(url: str, *, ca: str = "", auth: bool = False) -> str:
    """Every registry's mirror is at `url`; `ca` is a file on the node, `auth` leaves room for a name and a password."""
    text = f'mirrors:\n  "*":\n    endpoint:\n      - {url}\n'
    if ca or auth:
        text += f'configs:\n  "{url.partition("://")[2]}":\n'
    if auth:
        text += "    auth:\n      username: USER\n      password: PASSWORD\n"
    if ca:
        text += f"    tls:\n      ca_file: {ca}\n"
    return text


def hosts_toml(url: str, *, ca: str = "", only: bool = False) -> str:
    """The mirror at `url`; with `only` the image's own registry is never asked.

    `server` is the host that is asked last, and the image's own registry where there is none (containerd,
    docs/hosts.md).
    """
    text = f'server = "{url}"\n' if only else ""
    if only and ca:
        text += f'ca = "{ca}"\n'
    text += f'[host."{url}"]\n  capabilities = ["pull", "resolve"]\n'
    return text + (f'  ca = "{ca}"\n' if ca else "")
