"""Pieces of HTML: well formed, and without a tag that a file name brought in."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from udp_jax.page import choices, fragments, jobs
from udp_jax.page.intake import Limits
from udp_jax.page.jobs import State
from udp_jax.page.progress import Progress
from udp_jax.page.views import Comparison, Left

EVIL = "<img src=x onerror=alert(1)>\"'&.png"
_VOID = {"input", "img"}


class Tags(HTMLParser):
  """Tags and attributes of a piece; fails where one is not closed."""

  def __init__(self, text: str):
    super().__init__()
    self.seen: list[tuple[str, dict[str, str | None]]] = []
    self._open: list[str] = []
    self.feed(text)
    self.close()
    assert self._open == []

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    self.seen.append((tag, dict(attrs)))
    if tag not in _VOID:
      self._open.append(tag)

  def handle_endtag(self, tag: str) -> None:
    assert self._open.pop() == tag


def everything() -> list[str]:
  pictures = [{"relative": EVIL, "name": EVIL, "width": 10, "height": 10}] * 10
  path = Path("/x", EVIL)
  left = Left(choices.PURIFIERS[0], path, path, 0.5)
  states = [State(status, message=EVIL) for status in fragments._STATUS]
  return [
    fragments.header(local=True),
    fragments.upload_form(Limits()),
    fragments.heading(2, EVIL, name=EVIL),
    fragments.error(EVIL),
    fragments.note(EVIL),
    fragments.taken(pictures, [[EVIL, EVIL]]),
    fragments.estimate(3, 2.0, 60.0),
    fragments.facts(Comparison(path, path, path, 1, 3, 0.5), 8.0, EVIL),
    fragments.compared(Comparison(path, path, path, 1, 3, 0.5), EVIL),
    fragments.download(path),
    fragments.against(EVIL),
    fragments.lines(EVIL, ok=False),
    fragments.left([left, left._replace(share=None)], 7),
    *(fragments.about_method(one.name) for one in choices.METHODS),
    *(fragments.status(state, Progress(EVIL, 0.5, EVIL), [(EVIL, EVIL)] * 12) for state in states),
    *(fragments.announced(state) for state in states),
  ]


def test_no_name_or_message_becomes_a_tag() -> None:
  for piece in everything():
    for tag, attributes in Tags(piece).seen:
      assert not [name for name in attributes if name.startswith("on")], piece
      if tag == "img":
        assert (attributes["src"] or "").startswith("gradio_api/file=/x/%3Cimg"), piece
        assert attributes["alt"], piece


def test_the_bar_tells_screen_readers_how_far_it_is() -> None:
  state = State(jobs.RUNNING)
  seen = Tags(fragments.status(state, Progress("Computing", 0.305), [])).seen
  (bar,) = [attributes for _, attributes in seen if attributes.get("role") == "progressbar"]
  assert bar["aria-valuenow"] == "30" and bar["aria-valuetext"] == "Computing"
  unknown = Tags(fragments.status(state, Progress("Starting"), [])).seen
  assert not [1 for _, attributes in unknown if "aria-valuenow" in attributes]


def test_papers_are_reached_by_keyboard() -> None:
  for one in choices.METHODS:
    tips = [a for _, a in Tags(fragments.about_method(one.name)).seen if a.get("tabindex") == "0"]
    assert one.paper in (tips[0]["aria-label"] or "")


def test_estimates_and_broken_promises_say_so() -> None:
  assert "2 minutes" in fragments.estimate(1, 2.0, 60.0)
  assert "first" in fragments.estimate(1, 2.0, None)
  path = Path("/x")
  assert "MORE THAN" in fragments.facts(Comparison(path, path, path, 1, 9, 0.5), 8.0, "")


def test_messages_do_not_show_where_jobs_are() -> None:
  folder = Path("/home/me/jobs/1")
  assert fragments.own_lines("/home/me/jobs/1/a.png: cut off", folder) == "a.png: cut off"
  assert fragments.own_lines("/home/me/jobs/1: empty", folder) == "the pictures: empty"
