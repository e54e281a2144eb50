"""Removes private lines from texts in picture files and keeps the rest."""

from __future__ import annotations

import re

from udp_jax.data import metadata, picture_marks

# Finds a private name anywhere in a line; most lines have none and need no closer look.
_IN_LINE = re.compile(re.sub(r"\(\?<!\[a-z0-9\]\)|\^|\$", "", metadata.NAMES))
# Longer texts are not split into lines: if a private name occurs, the whole text is dropped.
_MAX_LINES = 1 << 20
# Names in texts: everything before the mark, such as "GPS Position : 1", and single words.
_PARTS = re.compile("[;,|{}]")
_PART_NAME = re.compile(r"\W{0,20}([a-z][\w .\-]{0,60}?)[\"']?[ \t]*[=:]")
_WORD_NAME = re.compile(r"(?<![\w.\-])([a-z][\w.\-]*+)[\"']?[ \t]*[=:]")


def of_text(name: str, text: str) -> tuple[str, tuple[str, ...]]:
  """Returns a named text without its private lines, and the keys of the rows that dropped them.

  >>> of_text("Title", "A cat")
  ('A cat', ())
  """
  key = metadata.of_name(name) or (
    "file_place" if text.lstrip().lower().startswith("file://") else None
  )
  if key is None and picture_marks.found(f"{name} {text}".encode("utf-8", "surrogatepass")):
    key = "embedded"
  if key is not None:
    return "", (key,)
  somewhere = _IN_LINE.search(metadata.bare(text))
  if somewhere is None:
    return text, ()
  if len(text) > _MAX_LINES:
    return "", (somewhere.lastgroup or "",)
  kept, dropped = [], []
  for line in text.splitlines(keepends=True):
    key = _of_line(line.lower())
    if key is None:
      kept.append(line)
    else:
      dropped.append(key)
  return ("".join(kept) if dropped else text), tuple(dict.fromkeys(dropped))


def _of_line(line: str) -> str | None:
  if not _IN_LINE.search(metadata.bare(line)):
    return None
  names = [match.group(1) for part in _PARTS.split(line) if (match := _PART_NAME.match(part))]
  return next(
    (key for name in names + _WORD_NAME.findall(line) if (key := metadata.of_name(name))), None
  )
