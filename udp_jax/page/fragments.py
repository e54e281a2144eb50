"""Pieces of HTML for the page. All text that is not ours is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from udp_jax.page import choices, intake, jobs
from udp_jax.page.intake import Limits
from udp_jax.page.jobs import State
from udp_jax.page.progress import Progress
from udp_jax.page.views import Comparison, Left

# Files are listed one by one up to this number; the rest is folded away.
_LISTED = 8
_ACCEPT = ".png,.jpg,.jpeg,.webp,.bmp,.tif,.tiff,.gif,.zip,.txt,.caption,.jsonl,.csv"
_STATUS = {
  jobs.DRAFT: "Not started",
  jobs.QUEUED: "Waiting for another job to end",
  jobs.RUNNING: "Running",
  jobs.FINISHED: "Finished",
  jobs.FAILED: "Failed",
  jobs.STOPPED: "Stopped",
}


def escaped(text: object) -> str:
  """Returns text for HTML, also inside of attributes."""
  return html.escape(str(text), quote=True)


def header(*, local: bool) -> str:
  """Returns the page's heading and what it is; `local`: the browser's machine does the work."""
  where = "on this machine" if local else "on the machine that runs this page"
  return f"""<header class="udp">
<h1>Protect your pictures</h1>
<p>A small change in every picture makes it a bad example for image generators to learn from.
Everything happens {where}; nothing is sent anywhere else.</p></header>"""


def upload_form(limits: Limits) -> str:
  """Returns the place where pictures are dropped or chosen; a script makes it work."""
  return f"""<section class="udp" aria-labelledby="h-pictures">
<h2 id="h-pictures">1. Pictures</h2>
<div id="drop">
<p>Drop pictures, a folder or a zip archive here, or choose them.</p>
<p class="picks"><label class="pick">Choose pictures or a zip
<input type="file" id="pick-files" multiple accept="{_ACCEPT}"></label>
<label class="pick">Choose a folder
<input type="file" id="pick-folder" webkitdirectory></label></p>
<p class="soft">PNG, JPEG, WebP, TIFF, BMP or GIF; at most {limits.pictures} pictures and
{limits.megapixels:g} megapixels together. Captions beside them (.txt, metadata.jsonl) come along.
</p></div>
<p id="upload-said" role="status"></p></section>"""


def heading(number: int, words: str, *, name: str) -> str:
  """Returns the heading of a step of the page."""
  return f'<h2 class="udp" id="h-{escaped(name)}">{number}. {escaped(words)}</h2>'


def error(text: str) -> str:
  """Returns an error line that screen readers announce; "" for no text."""
  return f'<p class="udp error" role="alert">{escaped(text)}</p>' if text else ""


def note(text: str) -> str:
  """Returns a paragraph; "" for no text."""
  return f'<p class="udp">{escaped(text)}</p>' if text else ""


def taken(pictures: Sequence[Mapping[str, Any]], skipped: Iterable[Sequence[str]]) -> str:
  """Returns what came in: the pictures with their sizes, and those that cannot be used."""
  pixels = sum(one["width"] * one["height"] for one in pictures)
  items = [
    f"<li>{escaped(one['relative'])} <span>{one['width']} x {one['height']}</span></li>"
    for one in pictures
  ]
  lines = "".join(
    f'<p class="error">skipped: {escaped(file)}: {escaped(reason)}</p>' for file, reason in skipped
  )
  said = f"{_count(len(pictures))}, {pixels / 1e6:.2g} megapixels."
  return f'<div class="udp"><p><b>{said}</b></p>{_folded(items)}{lines}</div>'


def _count(number: int) -> str:
  return f"{number} picture" + ("" if number == 1 else "s")


def _folded(items: Sequence[str]) -> str:
  every = f'<ul class="files">{"".join(items[:_LISTED])}</ul>'
  if len(items) > _LISTED:
    rest = "".join(items[_LISTED:])
    more = len(items) - _LISTED
    every += f'<details><summary>{more} more</summary><ul class="files">{rest}</ul></details>'
  return every


def about_method(name: str) -> str:
  """Returns what a method does, with its paper in a tooltip that the keyboard reaches too."""
  one = choices.method(name)
  return (
    f'<p class="udp soft">{escaped(one.words)} '
    f'<span class="tip" tabindex="0" role="note" '
    f'aria-label="Paper: {escaped(one.paper)}">Paper'
    f'<span class="tip-text" aria-hidden="true">{escaped(one.paper)}</span></span></p>'
  )


def estimate(count: int, megapixels: float, rate: float | None) -> str:
  """Returns how long a job will take, by what earlier jobs took on this machine."""
  if not count:
    return note("Choose pictures first.")
  if rate is None:
    return note(
      "How long? No job with this model and method has finished on this machine yet. The time "
      "left is shown once the first rounds are done; the first run also compiles for a minute."
    )
  return note(
    f"About {duration(rate * megapixels)} for {_count(count)}, by earlier jobs on this machine."
  )


def duration(seconds: float) -> str:
  """Returns a time in the largest sensible unit.

  >>> duration(40), duration(150), duration(9000)
  ('40 seconds', '3 minutes', '2.5 hours')
  """
  if seconds < 90:
    return f"{max(1, round(seconds))} seconds"
  return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def job_label(settings: Mapping[str, Any], state: State) -> str:
  """Returns a job's name in the list of jobs."""
  names = [one["relative"] for one in settings.get("pictures", ())]
  what = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more" if names else "?"
  return f"{what}, {settings.get('method', '?')}: {_STATUS[state.status].lower()}"


def status(state: State, progress: Progress | None, items: Sequence[tuple[str, str]]) -> str:
  """Returns a job's state, with a bar while it runs and every picture's own state.

  Args:
    state: of the job.
    progress: of its run; None if it does not run.
    items: (picture, what happens with it).
  """
  lines = "".join(
    [
      f"<p><b>{_STATUS[state.status]}</b>",
      f" in {escaped(duration(state.seconds))}" if state.status == jobs.FINISHED else "",
      f". {escaped(progress.words)}" if progress else "",
      f", about {escaped(progress.left)} left" if progress and progress.left else "",
      "</p>",
    ]
  )
  if progress:
    lines += _bar(progress)
  if state.message:
    failed = state.status == jobs.FAILED
    lines += error(state.message) if failed else f"<p>{escaped(state.message)}</p>"
  rows = [
    f'<li class="{"done" * (what == "done")}">{escaped(name)} <span>{escaped(what)}</span></li>'
    for name, what in items
  ]
  return f'<div class="udp card">{lines}{_folded(rows) if rows else ""}</div>'


def _bar(progress: Progress) -> str:
  part = 0.0 if progress.fraction is None else min(1.0, max(0.0, progress.fraction))
  now = "" if progress.fraction is None else f' aria-valuenow="{100 * part:.0f}"'
  return (
    f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" '
    f'aria-valuemax="100"{now} aria-valuetext="{escaped(progress.words)}">'
    f'<div style="width: {100 * part:.1f}%"></div></div>'
  )


def announced(state: State) -> str:
  """Returns the words that screen readers hear when a job's state changes, and only then."""
  return f'<p class="udp hidden" role="status">{_STATUS[state.status]}</p>'


def compared(found: Comparison, name: str) -> str:
  """Returns a protected picture over the original with a line to move, and the change.

  The line is a slider of the browser's own, which the keyboard moves too; a script draws it.
  """
  before, after = (
    _picture(path, f"{name}, {when}")
    for path, when in ((found.clean, "before"), (found.protected, "after"))
  )
  grey = f"The change, {found.gain} times amplified; grey is no change"
  return (
    f'<div class="udp compared"><div class="pair"><div class="sheet">{before}'
    f'<div class="after">{after}</div></div></div>'
    '<p><label class="line">Before on the left of the line, after on the right '
    '<input type="range" class="line-at" min="0" max="100" value="50"></label></p>'
    '<p><label><input type="checkbox" class="full-size"> Full size: one point of the picture is '
    "one point of the screen</label></p>"
    f"<figure>{_picture(found.amplified, grey)}<figcaption>{escaped(grey)}</figcaption>"
    "</figure></div>"
  )


def download(archive: Path) -> str:
  """Returns a link that saves an archive."""
  return (
    f'<p class="udp"><a class="download" href="{_address(archive)}" '
    f'download="{escaped(archive.name)}">Download the protected pictures (zip)</a></p>'
  )


def facts(found: Comparison, radius_255: float, distance: str) -> str:
  """Returns what was measured on a saved file."""
  kept = found.levels <= radius_255
  promise = "as promised" if kept else "MORE THAN PROMISED"
  return (
    '<dl class="udp facts">'
    f"<div><dt>Largest change</dt><dd>{found.levels} of {radius_255:g} levels, {promise}</dd></div>"
    f"<div><dt>Changed</dt><dd>{100 * found.share:.0f} % of all values</dd></div>"
    f"<div><dt>How visible</dt><dd>{escaped(distance)}</dd></div></dl>"
    '<p class="udp soft">Measured from the saved file. A value of a picture has 256 levels.</p>'
  )


def against(statement: str) -> str:
  """Returns what a job's pictures are protected against, in the manifest's words."""
  return (
    f'<p class="udp notice"><b>What this protects against:</b> {escaped(statement)}. It makes '
    "learning from the files harder; it does not stop anyone from copying or showing them, and "
    "cleaning can take a part of it away.</p>"
  )


def lines(text: str, *, ok: bool) -> str:
  """Returns a program's own lines."""
  kind = "good" if ok else "error"
  return f'<pre class="udp {kind}" role="status" tabindex="0">{escaped(text.strip())}</pre>'


def left(found: Sequence[Left], gain: int) -> str:
  """Returns what purifiers leave of a change, beside the change itself."""
  figures = []
  for one in found:
    share = "nothing was changed" if one.share is None else f"{100 * one.share:.0f} %"
    caption = f"<b>{escaped(one.purifier.label)}: {share}</b> {escaped(one.purifier.words)}"
    figures.append(
      f"<figure>{_picture(one.picture, f'The picture after {one.purifier.label}')}"
      f"{_picture(one.amplified, f'What {one.purifier.label} leaves of the change')}"
      f"<figcaption>{caption}</figcaption></figure>"
    )
  return (
    f'<div class="udp left">{"".join(figures)}</div><p class="udp soft">The middle of the picture '
    f"after each, and what is left of the change, {gain} times amplified. The number says how much "
    "of the change itself is still in it; what a purifier adds at random does not count. How much "
    "of the effect on a model is left is another question, which only training answers.</p>"
  )


def _picture(path: Path, alt: str) -> str:
  return f'<img src="{_address(path)}" alt="{escaped(alt)}">'


def _address(path: Path) -> str:
  return f"gradio_api/file={quote(str(path))}"


def own_lines(text: str, folder: Path) -> str:
  """Returns a message of the library without the job's place, which means nothing to a user."""
  return text.replace(f"{folder}/", "").replace(str(folder), "the pictures")


def limit_words(limits: Limits) -> str:
  """Returns the limits for the terminal."""
  return (
    f"at most {limits.pictures} pictures, {limits.megapixels:g} megapixels and "
    f"{limits.size / 2**30:g} GiB at a time; archives: {intake.ARCHIVE}"
  )
