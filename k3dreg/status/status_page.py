"""The status page as a tree of tags.  `flatten` escapes all text in the tree."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from twisted.web.template import Tag, flattenString, tags

from k3dreg.reporting.activity import RequestReport
from k3dreg.status.cluster_snippets import Address, snippets
from k3dreg.status.overview import Listed, Live, Overview, Running, Saved

_MEGABYTE = 1e6
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))
# Characters of a digest, its algorithm included: as many as Docker's client shows.
_DIGEST = 19

_VERBS = {"pull": "Docker pulls", "export": "Docker exports", "transfer": "sending", "link": "linking"}


async def flatten(tag: Tag) -> bytes:
    """Return the HTML of the tag."""
    return await flattenString(None, tag)


def document(overview: Overview, live: Live, address: Address, now: float) -> Tag:
    """Return the whole page, without its doctype.  `now` is in seconds since the epoch."""
    head = tags.head(
        tags.meta(charset="utf-8"),
        tags.meta(name="viewport", content="width=device-width, initial-scale=1"),
        tags.title("k3dreg"),
        tags.link(rel="icon", href="/status.svg", type="image/svg+xml"),
        tags.link(rel="stylesheet", href="/status.css"),
        tags.script(src="/status.js", defer="defer"),
    )
    state = ("no engine", "bad") if overview.trouble else ("ready", "good")
    header = tags.header(
        tags.h1("k3dreg ", tags.span(state[0], class_=f"pill {state[1]}")),
        tags.p(
            f"version {overview.version}, an OCI registry of Docker's images. ",
            # assets/status.js writes here whether the page is kept up to date.
            tags.span(f"As of {_clock(now)} UTC.", id="live"),
            class_="quiet",
        ),
    )
    body = tags.body(
        header,
        Tag("main")(
            _facts(overview, live.saved),
            _section("Under way", tags.div(running(live.running), id="running")),
            _section("Recent requests", tags.div(recent(live.recent), id="recent")),
            _section("Images Docker can give", _listed(overview.images, overview.image_count)),
            _section("Pushed here", _listed(overview.pushed, overview.pushed_count)),
            _section("Point a cluster here", *snippets(address)),
        ),
    )
    return tags.html(head, body, lang="en")


def running(activities: Sequence[Running]) -> Tag:
    """Return the list of the work under way, each with a progress bar."""
    if not activities:
        return tags.p("Nothing.", class_="quiet")
    return tags.ul(*map(_running, activities))


def _running(activity: Running) -> Tag:
    done, total = activity.progress.done, activity.progress.total
    said = f"{done / _MEGABYTE:.1f}"
    # The engine's size of an image is not exactly that of its export, so `done` may exceed `total`.
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
    """Return the list of requests that have ended, each with its outcome and the reason of a failure."""
    if not reports:
        return tags.p("None yet.", class_="quiet")
    return tags.ul(*map(_report, reports))


def _report(report: RequestReport) -> Tag:
    failed = report.aborted or report.status >= 400
    outcome = f"{report.status}{' broken off' if report.aborted else ''}"
    steps = f", after: {', '.join(report.steps)}" if report.steps else ""
    source = f" from {report.source}" if report.source else ""
    sent = f", {_size(report.sent)}" if report.sent else ""
    facts = f"{source}{steps}{sent} in {report.seconds:.2f} s, {report.client}"
    return tags.li(
        tags.span(f"{_clock(report.at)} ", class_="quiet"),
        tags.span(outcome, class_="bad" if failed else "good"),
        f" {report.method} ",
        tags.span(report.subject, class_="name"),
        tags.span(facts, class_="quiet"),
        *([tags.p(report.reason), tags.p(f"request {report.id}", class_="quiet")] if report.reason else []),
    )


def saved(counted: Saved) -> Tag:
    """Return how many bytes k3dreg saved: those that clients got, less those that were downloaded for them."""
    images = f"{counted.pulls} {'image' if counted.pulls == 1 else 'images'}"
    return tags.div(
        tags.p(_size(max(0, counted.bytes - counted.fetched)), class_="big"),
        tags.p(f"not downloaded again, {images} served without a pull"),
        tags.p(f"{_size(counted.bytes)} served, {_size(counted.fetched)} fetched since the start", class_="quiet"),
    )


def _facts(overview: Overview, counted: Saved) -> Tag:
    engine = [tags.p(overview.engine or "unknown"), tags.p(overview.where, class_="quiet")]
    if overview.trouble:
        engine.append(tags.p(overview.trouble, class_="bad"))
    sources: list[Tag] = [
        tags.li(tags.span(f"{each.name}: "), each.says, *([tags.br(), tags.code(each.open_it)] if each.open_it else []))
        for each in overview.sources
    ]
    return tags.div(
        tags.div(tags.h2("Engine"), *engine),
        tags.div(
            tags.h2("Where images come from"),
            tags.ol(*sources) if sources else tags.p("Not known while the engine does not answer.", class_="quiet"),
        ),
        tags.div(tags.h2("Cache"), *_kept(overview)),
        tags.div(tags.h2("Saved"), tags.div(saved(counted), id="saved")),
        class_="facts",
    )


def _kept(overview: Overview) -> list[Tag]:
    """Return the use of the cache."""
    used, limit = overview.cache_bytes, overview.cache_limit
    bar = tags.progress(max=str(max(1, limit)), value=str(min(used, limit)), **{"aria-label": "use of the cache"})
    told = [
        tags.p(_size(used), class_="big"),
        tags.p(f"of {_size(limit)}, in {overview.cache_blobs} {'blob' if overview.cache_blobs == 1 else 'blobs'}"),
        bar,
    ]
    if overview.evicted_blobs:
        evicted = f"{overview.evicted_blobs} blobs, {_size(overview.evicted_bytes)}, evicted since the start"
        told.append(tags.p(evicted, class_="quiet"))
    return told


def _listed(images: Sequence[Listed], count: int) -> Tag:
    if not images:
        return tags.p("None.", class_="quiet")
    head = tags.tr(*(tags.th(title, scope="col") for title in ("Name", "Size", "Age", "Digest")))
    rows = [
        tags.tr(
            tags.td(image.name, class_="name"),
            tags.td(_size(image.size)),
            tags.td("" if image.age is None else _age(image.age)),
            tags.td(image.digest[:_DIGEST], class_="name quiet"),
        )
        for image in images
    ]
    more = [tags.p(f"and {count - len(images)} more", class_="quiet")] if count > len(images) else []
    return tags.div(tags.table(tags.thead(head), tags.tbody(*rows)), *more)


def _section(title: str, *contents: Tag) -> Tag:
    return tags.section(tags.h2(title), *contents)


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%H:%M:%S}"


def _size(number: int) -> str:
    for unit, length, digits in (("GB", 1e9, 2), ("MB", _MEGABYTE, 1), ("kB", 1e3, 1)):
        if number >= length:
            return f"{number / length:.{digits}f} {unit}"
    return f"{number} B"


def _age(seconds: float) -> str:
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
