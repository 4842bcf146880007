"""The status page as a tree of tags.  Whatever is put into it as text is escaped when it is flattened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from twisted.web.template import Tag, flattenString, tags

from k3dreg.clusters.containerd import hosts_toml, registries_yaml
from k3dreg.model.activity import RequestReport
from k3dreg.model.overview import Listed, Live, Overview, Running, Saved

# What a `Host` header may look like to be shown in a snippet for copying.
_HOST = re.compile(r"[A-Za-z0-9.\-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
_MEGABYTE = 1e6
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))

_VERBS = {"pull": "Docker pulls", "export": "Docker exports", "transfer": "sending"}


async def flatten(tag: Tag) -> bytes:
    """The HTML."""
    return await flattenString(None, tag)


def host_of(header: str | None) -> str:
    """The address that the page is seen under, from a `Host` header; a stand-in for one that cannot be."""
    return header if header and len(header) <= 255 and _HOST.fullmatch(header) else "localhost:5000"


def document(overview: Overview, live: Live, host: str) -> Tag:
    """The whole page, without its doctype."""
    head = tags.head(
        tags.meta(charset="utf-8"),
        tags.meta(name="viewport", content="width=device-width, initial-scale=1"),
        tags.title("k3dreg"),
        tags.link(rel="icon", href="/status.svg", type="image/svg+xml"),
        tags.link(rel="stylesheet", href="/status.css"),
        tags.script(src="/status.js", defer="defer"),
    )
    body = tags.body(
        tags.header(
            tags.h1("k3dreg"), tags.p(f"version {overview.version}, an OCI registry of Docker's images", class_="quiet")
        ),
        Tag("main")(
            _facts(overview, live.saved),
            _section("Under way", tags.div(running(live.running), id="running")),
            _section("Recent requests", tags.div(recent(live.recent), id="recent")),
            _section("Images Docker can give", _listed(overview.images, overview.image_count)),
            _section("Pushed here", _listed(overview.pushed, overview.pushed_count)),
            _snippets(host),
        ),
    )
    return tags.html(head, body, lang="en")


def running(activities: Sequence[Running]) -> Tag:
    """What is under way, each with a bar."""
    if not activities:
        return tags.p("Nothing.", class_="quiet")
    return tags.ul(*map(_running, activities))


def _running(activity: Running) -> Tag:
    done, total = activity.progress.done, activity.progress.total
    said = f"{done / _MEGABYTE:.1f}"
    # The engine's word for the size of an export is not exact.
    said += f" of {total / _MEGABYTE:.1f} MB" if done <= total else " MB"
    said += f", {activity.seconds:.0f} s"
    if activity.waiters:
        said += f", {activity.waiters} waiting"
    bar = tags.progress(**{"aria-label": f"{_VERBS.get(activity.kind, activity.kind)} {activity.subject}"})
    if total and done <= total:
        bar(max=str(total), value=str(done))
    return tags.li(
        f"{_VERBS.get(activity.kind, activity.kind)} ",
        tags.span(activity.subject, class_="name"),
        " ",
        tags.span(said, class_="quiet"),
        bar,
    )


def recent(reports: Sequence[RequestReport]) -> Tag:
    """Requests that have ended, each with its outcome and why."""
    if not reports:
        return tags.p("None yet.", class_="quiet")
    return tags.ul(*map(_report, reports))


def _report(report: RequestReport) -> Tag:
    failed = report.aborted or report.status >= 400
    outcome = f"{report.status}{' broken off' if report.aborted else ''}"
    steps = f", after: {', '.join(report.steps)}" if report.steps else ""
    source = f" from {report.source}" if report.source else ""
    facts = f"{source}{steps}, {report.sent / _MEGABYTE:.1f} MB in {report.seconds:.2f} s, {report.client}"
    return tags.li(
        tags.span(f"{datetime.fromtimestamp(report.at, UTC):%H:%M:%S} ", class_="quiet"),
        tags.span(outcome, class_="bad" if failed else "good"),
        f" {report.method} ",
        tags.span(report.subject, class_="name"),
        tags.span(facts, class_="quiet"),
        *([tags.p(report.reason), tags.p(f"request {report.id}", class_="quiet")] if report.reason else []),
    )


def saved(counted: Saved) -> Tag:
    """What did not come over the internet."""
    return tags.div(
        tags.p(f"{_size(counted.bytes)} given to nodes, {counted.pulls} manifests without a pull"),
        tags.p(f"{_size(counted.fetched)} fetched for that since the start", class_="quiet"),
    )


def _facts(overview: Overview, counted: Saved) -> Tag:
    engine = [tags.p(overview.engine or "unknown"), tags.p(overview.where, class_="quiet")]
    if overview.trouble:
        engine.append(tags.p(overview.trouble, class_="bad"))
    sources = [
        tags.p(f"{each.name}: {each.says}", *([tags.br(), tags.code(each.open_it)] if each.open_it else []))
        for each in overview.sources
    ]
    used = f"{_size(overview.cache_bytes)} of {_size(overview.cache_limit)}, {overview.cache_blobs} blobs"
    return tags.div(
        tags.div(tags.h2("Engine"), *engine),
        tags.div(tags.h2("Where bytes come from"), *sources),
        tags.div(tags.h2("Kept"), tags.p(used)),
        tags.div(tags.h2("Saved"), tags.div(saved(counted), id="saved")),
        class_="facts",
    )


def _listed(images: Sequence[Listed], count: int) -> Tag:
    if not images:
        return tags.p("None.", class_="quiet")
    rows = []
    for image in images:
        age = "" if image.age is None else f", {_age(image.age)} old"
        facts = f" {_size(image.size)}{age}, {image.digest[:19]}"
        rows.append(tags.li(tags.span(image.name, class_="name"), tags.span(facts, class_="quiet")))
    if count > len(images):
        rows.append(tags.li(f"and {count - len(images)} more", class_="quiet"))
    return tags.ul(*rows)


def _snippets(host: str) -> Tag:
    k3s, containerd = registries_yaml(f"http://{host}"), hosts_toml(f"http://{host}")
    # Each can be scrolled, so each can be reached by keyboard.
    return _section(
        "Point a cluster here",
        tags.p("With an address of this machine that the nodes reach. k3d and k3s, ", tags.code("registries.yaml")),
        tags.pre(k3s, tabindex="0", role="region", **{"aria-label": "registries.yaml"}),
        tags.p("kind and any containerd, ", tags.code("/etc/containerd/certs.d/_default/hosts.toml")),
        tags.pre(containerd, tabindex="0", role="region", **{"aria-label": "hosts.toml"}),
    )


def _section(title: str, *contents: Tag) -> Tag:
    return tags.section(tags.h2(title), *contents)


def _size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / _MEGABYTE:.1f} MB"


def _age(seconds: float) -> str:
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
