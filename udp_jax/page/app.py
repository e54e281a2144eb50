"""The page itself, made of Gradio's parts; what they do is in the other modules."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

# Before Gradio is imported, which would ask its makers' server for its version.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
import numpy as np
from fastapi import FastAPI
from PIL import Image

from udp_jax.data import images, marks, naming, picture_files
from udp_jax.errors import ConfigError, UserError
from udp_jax.page import choices, fragments, intake, jobs, progress, server, views
from udp_jax.page.jobs import Job, Jobs
from udp_jax.page.runner import Runner
from udp_jax.page.server import Settings
from udp_jax.runtime import files

_HERE = Path(__file__).parent
_ARCHIVE = "protected.zip"
_FOUND = "pictures.json"
# Side in pixels of the picture that masks are painted on.
_CANVAS = 900
_EVERY_S = 1.0
# Colours with enough contrast for small text, which Gradio's greys have not.
_SOFT, _SOFT_DARK, _ACCENT = "#55606d", "#aab4bf", "#1f5fbf"
_NOTHING = fragments.note("Nothing has been started yet.")
_OFFERED_JOBS = 50


def build(settings: Settings, all_jobs: Jobs, runner: Runner) -> FastAPI:
  """Returns the whole server: our own routes, and Gradio's page at the root."""
  page = _Page(settings, all_jobs, runner)
  sans = [gr.themes.Font(name) for name in ("system-ui", "Segoe UI", "Roboto", "sans-serif")]
  mono = [gr.themes.Font(name) for name in ("ui-monospace", "Menlo", "Consolas", "monospace")]
  return gr.mount_gradio_app(
    server.make(settings, all_jobs, runner),
    page.blocks(),
    path="/",
    server_name=settings.host,
    server_port=settings.port,
    allowed_paths=[str(all_jobs.folder)],
    footer_links=[],
    run_history=False,
    ssr_mode=False,
    enable_monitoring=False,
    mcp_server=False,
    max_file_size=settings.limits.size,
    theme=gr.themes.Default(primary_hue="blue", font=sans, font_mono=mono).set(
      body_text_color_subdued=_SOFT,
      body_text_color_subdued_dark=_SOFT_DARK,
      block_info_text_color=_SOFT,
      block_info_text_color_dark=_SOFT_DARK,
      button_primary_background_fill=_ACCENT,
      button_primary_background_fill_dark=_ACCENT,
    ),
    css=(_HERE / "page.css").read_text("utf-8"),
    head=f"<script>{(_HERE / 'page.js').read_text('utf-8')}</script>",
  )


class _Page:
  """The page's events. Jobs come from browsers by ID alone; nothing is kept in this object."""

  def __init__(self, settings: Settings, all_jobs: Jobs, runner: Runner):
    self._settings, self._jobs, self._runner = settings, all_jobs, runner

  # What the browser calls. Every argument may be anything.

  def take(self, draft: str) -> tuple[Any, ...]:
    """Reads a draft's pictures; returns what came in, the pictures to paint on, and no old mask."""
    if not draft:
      return "", gr.Dropdown(choices=[], value=None), None, ""
    try:
      job = self._jobs.get(draft)
      intake.check_pictures(job.pictures, self._settings.limits)
      found = picture_files.list_pictures(job.pictures)
    except UserError as error:
      text = fragments.own_lines(
        naming.printable(str(error)), self._jobs.folder / draft / "pictures"
      )
      if draft and (self._jobs.folder / draft / _FOUND).exists():
        (self._jobs.folder / draft / _FOUND).unlink()
      return fragments.error(f"error: {text}"), gr.Dropdown(choices=[], value=None), None, ""
    pictures = [
      {name: getattr(file, name) for name in ("name", "relative", "width", "height")}
      for file in found.files
    ]
    skipped = [
      [file, fragments.own_lines(reason, job.pictures).removeprefix(f"{file}: ")]
      for file, reason in found.origin["skipped"]
    ]
    files.write_json(job.folder / _FOUND, {"pictures": pictures, "skipped": skipped})
    names = [(one["relative"], one["name"]) for one in pictures]
    return fragments.taken(pictures, skipped), gr.Dropdown(choices=names, value=None), None, ""

  def estimate(self, draft: str, model: str, method: str) -> str:
    """Returns how long the chosen job will take."""
    pictures = self._found(draft)
    megapixels = sum(one["width"] * one["height"] for one in pictures) / 1e6
    asked = {"model": model, "method": method, "config": self._settings.config}
    rate = choices.seconds_per_megapixel(self._jobs.all(), asked) if pictures else None
    return fragments.estimate(len(pictures), megapixels, rate)

  def canvas(self, draft: str, name: str | None) -> dict[str, Any] | None:
    """Returns a picture to paint a mask on, at most `_CANVAS` pixels wide and high."""
    try:
      job, one = self._picture(draft, name)
      image = Image.fromarray(images.read_large(job.pictures / one["relative"]).pixels)
    except UserError:
      return None
    image.thumbnail((_CANVAS, _CANVAS))
    return {"background": image, "layers": [], "composite": None}

  def keep_mask(self, draft: str, name: str | None, painted: Any) -> str:
    """Saves what was painted as the picture's mask, at the picture's size."""
    try:
      job, one = self._picture(draft, name)
      white = painted_over(painted, (one["height"], one["width"]))
      images.write_png(job.masks / f"{one['name']}.png", white)
    except UserError as error:
      return fragments.error(f"error: {error}")
    share = 100 * float(np.mean(white > 0))
    return fragments.note(f"{one['relative']}: only the painted {share:.0f} % will be protected.")

  def drop_mask(self, draft: str, name: str | None) -> str:
    """Forgets a picture's mask."""
    try:
      job, one = self._picture(draft, name)
    except UserError as error:
      return fragments.error(f"error: {error}")
    (job.masks / f"{one['name']}.png").unlink(missing_ok=True)
    return fragments.note(f"{one['relative']}: all of it will be protected.")

  def start(
    self, draft: str, model: str, method: str, strength: str, owned: list[str]
  ) -> tuple[Any, ...]:
    """Queues a draft; returns what is wrong, the draft that is left, and the job to show."""
    try:
      if not (pictures := self._found(draft)):
        raise ConfigError("there are no pictures yet; choose some first")
      job = self._jobs.get(draft)
      chosen = choices.settings_of(model, method, strength, self._settings.models)
      if masked := job.masks.exists() and any(job.masks.rglob("*.png")):
        _fill_masks(job, pictures)
    except UserError as error:
      return fragments.error(f"error: {error}"), draft, gr.skip(), owned, gr.skip()
    chosen |= {"pictures": pictures, "masked": masked, "config": self._settings.config}
    chosen["megapixels"] = sum(one["width"] * one["height"] for one in pictures) / 1e6
    self._jobs.submit(job, chosen)
    self._runner.wake()
    owned = [job.id, *owned]
    return "", "", job.id, owned, self._listed(owned, job.id)

  def stop(self, current: str) -> None:
    """Stops a job."""
    if (job := self._job(current)) is not None:
      self._runner.stop(job)

  def go_on(self, current: str) -> None:
    """Goes on with a job that was stopped or failed."""
    if (job := self._job(current)) is not None:
      self._jobs.go_on(job)
      self._runner.wake()

  def restore(self, owned: list[str]) -> tuple[Any, ...]:
    """Returns the jobs that this browser may see, and the newest of them, after a reload."""
    known = self._visible(owned)
    busy = [job.id for job in self._jobs.queue() if job.id in known]
    current = (busy or known or [""])[0]
    return current, self._listed(owned, current)

  def tick(self, current: str, seen: str) -> tuple[Any, ...]:
    """Returns a job's state where it differs from what the browser shows, else nothing new."""
    job = self._job(current)
    if job is None:
      nothing = ("none", _NOTHING, "", *_buttons(None), gr.Column(visible=False), gr.skip(), "")
      return ("none", *[gr.skip()] * 7) if seen == "none" else nothing
    state = job.state()
    state = state._replace(message=fragments.own_lines(state.message, job.folder))
    running = progress.of_job(job) if state.status == jobs.RUNNING else None
    pictures = job.settings().get("pictures", [])
    what = progress.per_picture(job, [one["name"] for one in pictures], running)
    items = [(one["relative"], said) for one, said in zip(pictures, what, strict=True)]
    text = fragments.status(state, running, items)
    mark = f"{job.id} {state.status} {hash(text)}"
    if mark == seen:
      return seen, *[gr.skip()] * 7
    if seen.startswith(f"{job.id} {state.status} "):  # Only the progress is new.
      return mark, text, *[gr.skip()] * 6
    done = state.status == jobs.FINISHED
    names = [(one["relative"], one["name"]) for one in pictures]
    return (
      mark,
      text,
      fragments.announced(state),
      *_buttons(state),
      gr.Column(visible=done),
      gr.Dropdown(choices=names, value=names[0][1]) if done else gr.skip(),
      job.id if done else "",
    )

  def show_first(self, ready: str) -> tuple[Any, ...]:
    """Returns `show` of the first picture of a job that has finished; nothing for no job."""
    job = self._job(ready)
    return (
      ("", "", "", "") if job is None else self.show(ready, job.settings()["pictures"][0]["name"])
    )

  def show(self, current: str, name: str | None) -> tuple[Any, ...]:
    """Returns a protected picture beside the original, what changed, and what was measured."""
    try:
      job = self._jobs.get(current)
      found = views.compare(job, name or "")
    except UserError as error:
      return fragments.error(f"error: {error}"), "", "", ""
    chosen = job.settings()
    made = marks.read_manifest(job.output) or {}
    measured = fragments.facts(found, chosen["radius_255"], "being measured")
    archive = job.folder / _ARCHIVE
    if not archive.exists():
      intake.pack(job.output, archive)
    return (
      fragments.compared(found, name or ""),
      measured,
      fragments.against(made.get("against", {}).get("statement", "unknown")),
      fragments.download(archive),
    )

  def measure(self, current: str, name: str | None) -> Any:
    """Returns what was measured, with the distance, which takes seconds."""
    try:
      job = self._jobs.get(current)
      found = views.compare(job, name or "")
      words = views.distance(job, name or "")
    except UserError as error:
      return fragments.error(f"error: {error}")
    return fragments.facts(found, job.settings()["radius_255"], words)

  def verify(self, current: str) -> str:
    """Checks a job's budget by the command line's own program; returns what it says."""
    job = self._job(current)
    if job is None:
      return ""
    done = subprocess.run(
      choices.verify_command(job), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    said = done.stdout + ("" if not done.returncode else done.stderr)
    return fragments.lines(fragments.own_lines(said, job.folder), ok=done.returncode == 0)

  def ask_view(self, current: str, name: str | None) -> tuple[str, str]:
    """Queues the purifiers' view of a picture; returns its job, and what to show meanwhile."""
    try:
      view = views.start_view(self._jobs, self._jobs.get(current), name or "")
    except UserError as error:
      return "", fragments.error(f"error: {error}")
    self._runner.wake()
    return view.id, fragments.note("Waiting for another job to end, or starting.")

  def look(self, asked: str) -> tuple[Any, Any]:
    """Returns the purifiers' view as far as it is; forgets its job at its end.

    Args:
      asked: the view's job, and the hash of what the browser shows of it.
    """
    if not asked:  # A view that is asked for meanwhile is not forgotten.
      return gr.skip(), gr.skip()
    name, _, seen = asked.partition(" ")
    view = self._job(name)
    if view is None:
      return "", ""
    state = view.state()
    state = state._replace(message=fragments.own_lines(state.message, view.folder))
    gain = views.gain_for(view.settings()["radius_255"])
    found = list(views.left_in(view))
    text = fragments.left(found, gain) if found else ""
    if state.status in jobs.WAITING:
      running = state.status == jobs.RUNNING and len(found) < len(choices.PURIFIERS)
      one = choices.PURIFIERS[len(found)] if running else None
      now = None if one is None else progress.Progress(f"{one.label}: {one.words}")
      text = fragments.status(state, now, []) + text
      mark = str(hash(text))
      return f"{name} {mark}", gr.skip() if mark == seen else text
    if state.status != jobs.FINISHED:
      text = fragments.status(state, None, []) + text
    return "", text

  # What these share.

  def _job(self, name: str) -> Job | None:
    try:
      return self._jobs.get(name or "")
    except UserError:
      return None

  def _found(self, draft: str) -> list[dict[str, Any]]:
    job = self._job(draft)
    if job is None or not (job.folder / _FOUND).exists():
      return []
    return files.read_json(job.folder / _FOUND)["pictures"]

  def _picture(self, draft: str, name: str | None) -> tuple[Job, dict[str, Any]]:
    for one in self._found(draft):
      if one["name"] == name:
        return self._jobs.get(draft), one
    raise ConfigError("choose a picture first")

  def _visible(self, owned: list[str]) -> list[str]:
    """IDs of protections that this browser started, or of all where only this machine comes in."""
    return [
      job.id
      for job in self._jobs.all()
      if (self._settings.local or job.id in owned) and job.settings().get("kind") == jobs.PROTECT
    ][:_OFFERED_JOBS]

  def _listed(self, owned: list[str], current: str) -> Any:
    labels = []
    for name in self._visible(owned):
      job = self._jobs.get(name)
      labels.append((fragments.job_label(job.settings(), job.state()), name))
    return gr.Dropdown(choices=labels, value=current or None, visible=len(labels) > 1)

  def blocks(self) -> gr.Blocks:
    """Returns the page's parts and which event calls what."""
    settings = self._settings
    with gr.Blocks(
      title="Protect your pictures", analytics_enabled=False, delete_cache=(3600, 86400)
    ) as page:
      gr.HTML(fragments.header(local=settings.local), padding=False)
      gr.HTML(fragments.upload_form(settings.limits), padding=False)
      with gr.Group(visible="hidden"):
        draft = gr.Textbox(elem_id="draft", label="draft")
        current = gr.Textbox(elem_id="current", label="job")
        seen = gr.Textbox(label="state")
        view = gr.Textbox(label="view")
        ready = gr.Textbox(label="finished job")
        uploaded = gr.Button("uploaded", elem_id="uploaded")
      taken = gr.HTML(padding=False, elem_id="taken")
      gr.HTML(fragments.heading(2, "Against what, and how strongly", name="how"), padding=False)
      model = gr.Dropdown(
        [(label, name) for name, label in settings.models.items()],
        value=next(iter(settings.models)),
        label="Model to protect against",
        info="A protection is worth most against the model it was made with.",
        elem_id="model",
      )
      method = gr.Radio(
        [(one.label, one.name) for one in choices.METHODS],
        value=choices.METHODS[0].name,
        label="Method",
        elem_id="method",
      )
      about = gr.HTML(fragments.about_method(choices.METHODS[0].name), padding=False)
      strength = gr.Radio(
        [(f"{s.name}: {s.words} ({s.levels:g} of 255 levels)", s.name) for s in choices.STRENGTHS],
        value=choices.STRENGTHS[1].name,
        label="Strength",
        elem_id="strength",
      )
      with gr.Accordion("Protect only a part of a picture (optional)", open=False):
        gr.HTML(
          fragments.note(
            "Choose a picture, paint over the part to protect, and keep the mask. Pictures without "
            "a mask are protected as a whole."
          )
        )
        mask_of = gr.Dropdown([], label="Picture", elem_id="mask-of", interactive=True)
        editor = gr.ImageEditor(
          label="Paint over what is to be protected",
          type="numpy",
          image_mode="RGBA",
          sources=(),
          transforms=(),
          layers=False,
          brush=gr.Brush(default_size=40, colors=["rgba(255, 255, 255, 0.7)"], color_mode="fixed"),
          canvas_size=(_CANVAS, _CANVAS),
          elem_id="editor",
          buttons=[],
        )
        with gr.Row():
          keep = gr.Button("Keep this mask", elem_id="keep-mask")
          forget = gr.Button("No mask for this picture")
        mask_said = gr.HTML(padding=False, elem_id="mask-said")
      gr.HTML(fragments.heading(3, "Start", name="start"), padding=False)
      estimate = gr.HTML(
        fragments.note("Choose pictures first."), padding=False, elem_id="estimate"
      )
      wrong = gr.HTML(padding=False, elem_id="wrong")
      start = gr.Button("Protect the pictures", variant="primary", elem_id="start")
      gr.HTML(fragments.heading(4, "Progress and result", name="result"), padding=False)
      which = gr.Dropdown([], label="Job", visible=False, elem_id="which", interactive=True)
      status = gr.HTML(_NOTHING, padding=False, elem_id="status")
      announced = gr.HTML(padding=False)
      with gr.Row():
        stop = gr.Button("Stop", visible=False, elem_id="stop")
        go_on = gr.Button("Go on", visible=False, elem_id="go-on")
      with gr.Column(visible=False, elem_id="shown") as shown:
        download = gr.HTML(padding=False, elem_id="download")
        against = gr.HTML(padding=False, elem_id="against")
        gr.HTML('<h3 class="udp">Before and after</h3>', padding=False)
        picture = gr.Dropdown([], label="Picture", elem_id="picture", interactive=True)
        compared = gr.HTML(padding=False, elem_id="compared")
        facts = gr.HTML(padding=False, elem_id="facts")
        gr.HTML('<h3 class="udp">Check it</h3>', padding=False)
        verify = gr.Button("Verify: read all files again and check the promise", elem_id="verify")
        verified = gr.HTML(padding=False, elem_id="verified")
        ask = gr.Button("What is left after JPEG, blur and IMPRESS?", elem_id="ask-view")
        left = gr.HTML(padding=False, elem_id="left")
      owned = gr.BrowserState([], storage_key="udp-jax-jobs", secret=self._secret())
      timer = gr.Timer(_EVERY_S)

      quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
      private: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
      choice = [draft, model, method]
      states = [seen, status, announced, stop, go_on, shown, picture, ready]
      drafted = [taken, mask_of, editor, mask_said]
      results = [compared, facts, against, download]
      uploaded.click(None, None, draft, js="() => window.udpDraft()", **quiet).then(
        self.take, draft, drafted, concurrency_limit=1, **private
      ).then(self.estimate, choice, estimate, **quiet)
      for part in (model, method):
        part.change(self.estimate, choice, estimate, **quiet)
      method.change(fragments.about_method, method, about, **quiet)
      mask_of.input(self.canvas, [draft, mask_of], editor, **private)
      keep.click(self.keep_mask, [draft, mask_of, editor], mask_said, **private)
      forget.click(self.drop_mask, [draft, mask_of], mask_said, **private)
      start.click(
        self.start, [*choice, strength, owned], [wrong, draft, current, owned, which], **private
      ).then(None, draft, None, js="draft => { if (!draft) window.udpForget(); }", **quiet).then(
        self.take, draft, drafted, **quiet
      ).then(self.estimate, choice, estimate, **quiet)
      which.input(lambda name: name, which, current, **quiet)
      current.change(self.tick, [current, seen], states, **quiet)
      timer.tick(self.tick, [current, seen], states, **quiet)
      timer.tick(self.look, view, [view, left], **quiet)
      stop.click(self.stop, current, None, **quiet)
      go_on.click(self.go_on, current, None, **quiet)
      shows = (
        ready.change(self.show_first, ready, results, **private),
        picture.input(self.show, [current, picture], results, **private),
      )
      for drawn in shows:
        drawn.then(lambda: ("", "", ""), None, [view, left, verified], **quiet).then(
          self.measure, [current, picture], facts, concurrency_limit=1, **quiet
        )
      verify.click(self.verify, current, verified, concurrency_limit=1, **private)
      ask.click(self.ask_view, [current, picture], [view, left], **private)
      page.load(self.restore, owned, [current, which], **quiet)
      page.load(None, None, draft, js="() => window.udpDraft()", **quiet).then(
        self.take, draft, drafted, **quiet
      ).then(self.estimate, choice, estimate, **quiet)
    return page

  def _secret(self) -> str:
    """The key of what browsers remember, which outlives the page's process."""
    path = self._settings.workdir / "secret"
    if not path.exists():
      files.write_bytes(path, os.urandom(16).hex().encode())
      path.chmod(0o600)
    return path.read_text()


def _buttons(state: jobs.State | None) -> tuple[Any, Any]:
  status = None if state is None else state.status
  return (
    gr.Button(visible=status in jobs.WAITING),
    gr.Button(visible=status in (jobs.STOPPED, jobs.FAILED)),
  )


def painted_over(painted: Any, size: tuple[int, int]) -> np.ndarray:
  """Returns the mask of what was painted: uint8 (height, width, 3), white where something is.

  Args:
    painted: the editor's value: "layers" are uint8 (h, w, 4) of any size.
    size: (height, width) of the picture.

  Raises:
    ConfigError: nothing was painted.
  """
  layers = [] if not isinstance(painted, dict) else painted.get("layers") or []
  white = np.zeros(size, bool)
  for layer in layers:
    alpha = Image.fromarray(np.asarray(layer)[..., 3])
    # Nearest, so that edges stay where they were painted.
    white |= np.asarray(alpha.resize(size[::-1], Image.Resampling.NEAREST)) > 0
  if not white.any():
    raise ConfigError("nothing is painted yet; paint over the part to protect")
  return np.repeat(np.where(white, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)


def _fill_masks(job: Job, pictures: list[dict[str, Any]]) -> None:
  """Gives pictures without a mask a white one, as `protect` wants one for each."""
  for one in pictures:
    path = job.masks / f"{one['name']}.png"
    if not path.exists():
      images.write_png(path, np.full((one["height"], one["width"], 3), 255, np.uint8))
