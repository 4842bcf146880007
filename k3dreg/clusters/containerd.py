"""Make containerd's `hosts.toml` and k3s' `registries.yaml`, the two files that give a node a mirror.

k3s turns `registries.yaml` into `hosts.toml` files.  The mirror "*" becomes the directory `_default`, which containerd
uses for every registry that has no directory of its own.
"""

from __future__ import annotations

# A placeholder for the user's name and password, which k3dreg does not know.
LOGIN = "BASE64"


def registries_yaml(url: str, *, ca: str = "", auth: bool = False) -> str:
    """Return a `registries.yaml` with the mirror `url` for every registry.

    `ca` is the path of a certificate on the node, "" for none.  `auth` adds placeholders for a user and a password.
    """
    text = f'mirrors:\n  "*":\n    endpoint:\n      - {url}\n'
    if ca or auth:
        text += f'configs:\n  "{url.partition("://")[2]}":\n'
    if auth:
        text += "    auth:\n      username: USER\n      password: PASSWORD\n"
    if ca:
        text += f"    tls:\n      ca_file: {ca}\n"
    return text


def hosts_toml(url: str, *, ca: str = "", only: bool = False, auth: bool = False) -> str:
    """Return a `hosts.toml` with the mirror `url`.

    `ca` is the path of a certificate, "" for none.  `auth` adds a header with a placeholder for user and password.

    With `only`, containerd never asks the image's own registry: it asks `server` last, which is that registry by
    default (containerd, docs/hosts.md).
    """
    header = f'authorization = ["Basic {LOGIN}"]\n' if auth else ""
    text = f'server = "{url}"\n' if only else ""
    if only and ca:
        text += f'ca = "{ca}"\n'
    if only and header:
        text += f"[header]\n  {header}"
    text += f'[host."{url}"]\n  capabilities = ["pull", "resolve"]\n'
    if ca:
        text += f'  ca = "{ca}"\n'
    if header:
        text += f'  [host."{url}".header]\n    {header}'
    return text
