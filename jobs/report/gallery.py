"""The gallery page: an HTML file that needs nothing but the files beside it.

The page is a template (`page/`) and a little data; what it shows of the images is in the files of
the index (`jobs.report.shards`), which it loads bit by bit. Prompts are other people's text, so
four things keep them text: the data is JSON with every `<` escaped, the script only ever sets text
content, the page's policy lets no script run but this one, by its hash, and the files that it loads
itself, and where the browser knows trusted types, no text becomes HTML and no other address a
script's.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.resources import files
from urllib.parse import quote

from jobs.formatting import counted
from jobs.image_settings import SETTINGS
from jobs.report.fields import DETAIL_LABELS, INDEX_LABELS
from jobs.report.shards import IndexShard, Link, embeddable_json
from jobs.task import Failure

GALLERY_LIMIT = 1_000_000
"""Most images of the gallery: browsers have room for these."""

FAILURE_LIMIT = 1_000

_STYLES = ("page.css", "filters.css", "viewer.css", "compare.css")

_SCRIPTS = (
    *("text.js", "table.js", "shards.js", "stars.js", "query.js", "facets.js", "filters.js"),
    *("scroll.js", "tiles.js", "viewer.js", "compare.js", "page.js"),
)
"""Parts of the page's one script, each after those that it uses as it begins."""

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def gallery_page(
    job: str,
    shards: Sequence[IndexShard],
    total: int,
    failures: Iterable[Failure],
    sheets: Sequence[str],
    note: str | None = None,
) -> str:
    """The page. total: images of the job, of which those in `shards` are shown; sheets: relative
    paths. note: stands above all, also where the page's script does not run.
    """
    failed = [asdict(failure) for failure in failures]
    data = {
        "job": job,
        "total": total,
        "labels": {**INDEX_LABELS, **DETAIL_LABELS},
        "settings": SETTINGS,
        "shards": [[shard.number, shard.images, shard.first, shard.last] for shard in shards],
        "failures": failed[:FAILURE_LIMIT],
        "failed": len(failed),
        "sheets": list(sheets),
    }
    style = "\n".join(map(_template, _STYLES))
    script = "\n".join(map(_template, _SCRIPTS))
    parts = {
        "title": _text(job),
        "policy": f"default-src 'none'; img-src 'self' file:; style-src '{source_hash(style)}'; "
        f"script-src '{source_hash(script)}' 'strict-dynamic'; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types shards",
        "note": "" if note is None else f'<p id="unfinished">{_text(note)}</p>',
        "plain": "\n".join(_plain(shards, total, sheets)),
        "style": style,
        "script": script,
        "data": embeddable_json(data),
    }
    # In one pass, so that a placeholder's look-alike in a title or prompt is left alone.
    return _PLACEHOLDER.sub(lambda match: parts[match[1]], _template("page.html"))


def unfinished_note(total: int, failed: int, planned: int | None) -> str | None:
    """The line above a report of a job that has no more images yet than that; None if it has all.

    planned: images of the job, if that is known.
    """
    if planned is None or total + failed >= planned:
        return None
    return f"This job is not finished: it has {total:,} of {counted(planned, 'picture')} so far"


def _plain(shards: Sequence[IndexShard], total: int, sheets: Sequence[str]) -> Iterator[str]:
    """The page where its script does not run: links, as HTML."""
    links = shards[0].links if shards else ()
    first = f"The first {len(links):,} of " if len(links) < total else ""
    yield f"<p>{first}{counted(total, 'picture')}, without JavaScript.</p>"
    yield f"<ol>{''.join(map(_item, links))}</ol>"
    yield '<p>All pictures are in the folder <a href="images/">images</a>, their parameters in '
    yield '<a href="records/">records</a>.</p>'
    if sheets:
        numbered = enumerate(sheets, 1)
        yield f"<p>Contact sheets: {' '.join(_link(path, str(n)) for n, path in numbered)}</p>"
    if len(shards) > 1:
        names = (f"gallery/{shard.number:05d}.js" for shard in shards)
        files = " ".join(
            _link(name, f"{shard.first:,}-{shard.last:,}")
            for name, shard in zip(names, shards, strict=True)
        )
        yield f"<p>Index, as JSON in scripts: {files}</p>"


def _item(link: Link) -> str:
    return f"<li>{_link(link.path, str(link.index))} {_text(link.prompt)}</li>\n"


def _link(path: str, text: str) -> str:
    return f'<a href="{quote(path)}">{text}</a>'


def _text(text: str) -> str:
    """A text as HTML in ASCII; half a pair of surrogates has no UTF-8."""
    return html.escape(text).encode("ascii", "xmlcharrefreplace").decode("ascii")


def _template(name: str) -> str:
    return files("jobs.report").joinpath("page", name).read_text("utf-8")


def source_hash(source: str) -> str:
    """An inline element's content as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
