"""containerd's `hosts.toml` and k3s' `registries.yaml`: the two ways to tell a node of a mirror.

k3s makes the first of the second: the mirror "*" becomes the directory `_default`, which containerd takes for every
registry that has no directory of its own.
"""

from __future__ import annotations

# Where the user name and the password belong, which k3dreg does not know.
LOGIN = "BASE64"


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


def hosts_toml(url: str, *, ca: str = "", only: bool = False, auth: bool = False) -> str:
    """The mirror at `url`; with `only` the image's own registry is never asked; `auth` leaves room for a password.

    `server` is the host that is asked last, and the image's own registry where there is none (containerd,
    docs/hosts.md).
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
