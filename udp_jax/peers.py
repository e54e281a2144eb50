"""Connections between the processes of a run: who is alive, and small messages.

Process 0 listens at the coordinator's address; every other process keeps a connection to it. A
connection that breaks is a process that died, one that is silent a host that hangs or is gone;
either ends the others. jax's own coordination service, whose clients abort with a stack trace when
its host dies, is reached through the same port by a relay that keeps their side open.

Messages are lines of JSON. Nothing here imports jax.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from udp_jax.errors import ConfigError, PeerLostError

START_TIMEOUT_S = 300.0
_BEAT_S = 1.0

Message = dict[str, Any]


class Peers:
  """One process's side of the connections.

  Attributes:
    process_id, num_processes: as given.
    service_address: "host:port" at which jax's coordination service is (process 0) or is reached.
    left: set once this process ends in order; broken connections then mean nothing.
  """

  def __init__(
    self,
    coordinator: str,
    num_processes: int,
    process_id: int,
    *,
    peer_timeout_s: float,
    on_end: Callable[[int, Message], None],
    on_stop: Callable[[int], None],
    start_timeout_s: float = START_TIMEOUT_S,
  ):
    """Waits until all processes are connected.

    Args:
      coordinator: "host:port" of process 0.
      num_processes: two or more.
      process_id: of this process.
      peer_timeout_s: silence after which a process counts as lost.
      on_end: called in a thread with the number of a process and {"lost": how}, when it died, or
        {"code": ..., "text": ..., "stopped": ...}, when it left before the others.
      on_stop: called in a thread with a signal's number when another process was asked to stop.
      start_timeout_s: how long to wait for the others.

    Raises:
      ConfigError: the address cannot be used, or the processes disagree about who they are.
      PeerLostError: not all of them appeared.
    """
    self.process_id, self.num_processes = process_id, num_processes
    self._timeout, self._on_end, self._on_stop = peer_timeout_s, on_end, on_stop
    self._host, self._port = split_address(coordinator)
    self.left = threading.Event()
    self._condition = threading.Condition()
    self._links: dict[int, socket.socket] = {}
    self._gone: set[int] = set()
    self._round = 0
    self._votes: dict[int, dict[int, Message]] = {}
    self._results: dict[int, list[Any]] = {}
    self._refused: str | None = None
    self._stopping = False
    # One thread sends, so that a signal's handler can send without waiting for a lock.
    self._outbox: queue.SimpleQueue = queue.SimpleQueue()
    self._thread(self._send_all)
    deadline = time.monotonic() + start_timeout_s
    if process_id == 0:
      self._listen(deadline)
    else:
      self._join(deadline)
    self._thread(self._beat)

  # --- What processes do together

  def gather(self, value: Any, name: str) -> list[Any]:
    """Everyone's `value` (of JSON), by process; returns when all have called it.

    All processes must make the same calls in the same order; `name` makes sure of it.
    """
    self._round += 1
    vote = {"kind": "vote", "round": self._round, "name": name, "value": value}
    if self.process_id == 0:
      self._count(0, vote)
    else:
      self._send(vote)
    with self._condition:
      self._condition.wait_for(lambda: self._round in self._results)
      return self._results.pop(self._round)

  def ask_to_stop(self, number: int) -> None:
    """Tells the others of a signal; safe in a signal handler. Only the first one is passed on."""
    if not self._stopping:
      self._stopping = True
      self._send({"kind": "stop", "signal": number})

  def leave(self, code: int, text: str, *, stopped: bool = False) -> None:
    """Says goodbye and waits, shortly, until that is sent; `stopped`: it was asked to end."""
    self.left.set()
    why = {"process": self.process_id, "code": code, "text": text, "stopped": stopped}
    self._send_now({"kind": "leave"} | why)

  # --- Connections

  def _listen(self, deadline: float) -> None:
    with _unused_port() as reserved:
      inner = reserved.getsockname()[1]
    self.service_address = f"127.0.0.1:{inner}"
    loopback = self._host in ("localhost", "127.0.0.1", "::1")
    try:
      server = _server("127.0.0.1" if loopback else "", self._port)
    except OSError as error:
      raise ConfigError(
        f"cannot listen at the coordinator's port {self._port} ({error.strerror or error}); choose "
        "another one"
      ) from error

    def accept() -> None:
      while True:
        connection, _ = server.accept()
        self._thread(partial(self._greet, connection, inner))

    self._thread(accept)
    with self._condition:
      complete = self._condition.wait_for(
        lambda: self._refused or len(self._links) == self.num_processes - 1,
        deadline - time.monotonic(),
      )
    if self._refused:
      raise ConfigError(self._refused)
    if not complete:
      missing = sorted({*range(1, self.num_processes)} - set(self._links))
      raise PeerLostError(f"process {missing[0]} of {self.num_processes} did not appear in time")
    self._send({"kind": "welcome"})

  def _greet(self, connection: socket.socket, inner: int) -> None:
    """Reads a newcomer's first line: another process, or its relay to jax's service."""
    hello = _read_line(connection) or {}
    number, count = hello.get("process"), hello.get("num_processes")
    if hello.get("kind") == "relay":
      # The service starts after everybody is here, so it may need a moment.
      with contextlib.suppress(OSError):
        _pump_both(connection, _connect("127.0.0.1", inner, time.monotonic() + START_TIMEOUT_S))
    elif isinstance(number, int) and isinstance(count, int):
      with self._condition:
        if count != self.num_processes:
          self._refused = (
            f"process 0 is one of {self.num_processes}, process {number} one of {count}"
          )
        elif number in self._links or not 0 < number < count:
          self._refused = f"two processes have the number {number}"
        else:
          self._links[number] = connection
        refused = self._refused
        self._condition.notify_all()
      if refused:
        _write_line(connection, {"kind": "refused", "text": refused})
        connection.close()
      else:
        self._read(number, connection)
    else:  # A stranger.
      connection.close()

  def _join(self, deadline: float) -> None:
    link = _connect(self._host, self._port, deadline)
    hello = {"process": self.process_id, "num_processes": self.num_processes}
    _write_line(link, {"kind": "hello"} | hello)
    link.settimeout(max(1.0, deadline - time.monotonic()))
    first = _read_line(link)
    if first is None:
      raise PeerLostError("process 0 ended before the run began, or not all processes appeared")
    if first["kind"] == "refused":
      raise ConfigError(first["text"])
    self._links[0] = link
    self._thread(lambda: self._read(0, link))
    server = _server("127.0.0.1", 0)
    self.service_address = f"127.0.0.1:{server.getsockname()[1]}"

    def relay() -> None:
      while True:
        downstream, _ = server.accept()
        upstream = _connect(self._host, self._port, time.monotonic() + START_TIMEOUT_S)
        _write_line(upstream, {"kind": "relay"})
        # jax's client must not see that its service is gone: it would abort this process.
        self._thread(partial(_pump_both, downstream, upstream, self.left))

    self._thread(relay)

  # --- Threads

  def _thread(self, target: Callable[[], None]) -> None:
    def run() -> None:
      with contextlib.suppress(OSError):  # A socket that was closed meanwhile.
        target()

    threading.Thread(target=run, daemon=True).start()

  def _read(self, number: int, link: socket.socket) -> None:
    """Handles what process `number` sends until its connection breaks."""
    link.settimeout(self._timeout)
    how = "its connection broke"
    buffer = b""
    while True:
      try:
        received = link.recv(65536)
      except TimeoutError:
        how = f"silent for {self._timeout:g} s"
        break
      except OSError:
        break
      if not received:
        break
      *lines, buffer = (buffer + received).split(b"\n")
      try:
        messages = [json.loads(line) for line in lines]
      except ValueError:
        how = "it sent what is no message"
        break
      for message in messages:
        self._handle(number, message)
    if number not in self._gone:
      self._ended(number, {"lost": how})

  def _handle(self, number: int, message: Message) -> None:
    kind = message["kind"]
    if kind == "vote":
      self._count(number, message)
    elif kind == "result":
      with self._condition:
        self._results[message["round"]] = message["values"]
        self._condition.notify_all()
    elif kind == "stop":
      first, self._stopping = not self._stopping, True
      if first and self.process_id == 0:
        self._send(message)
      if first:
        self._on_stop(message["signal"])
    elif kind in ("leave", "lost"):
      self._ended(message.pop("process"), message)

  def _ended(self, number: int, how: Message) -> None:
    """Passes the end of a process on, and reports it here."""
    if number in self._gone:
      return
    self._gone.add(number)
    how.pop("kind", None)
    if self.process_id == 0:
      # `on_end` ends this process, too: the others must not hear of that before its cause.
      self._send_now({"kind": "leave", "process": number} | how)
    if not self.left.is_set():
      self._on_end(number, how)

  def _count(self, number: int, vote: Message) -> None:
    """Process 0: keeps a vote, and sends the result once all are there."""
    with self._condition:
      votes = self._votes.setdefault(vote["round"], {})
      votes[number] = vote
      if len(votes) < self.num_processes:
        return
      del self._votes[vote["round"]]
      names = {found["name"] for found in votes.values()}
      values = [votes[i]["value"] for i in range(self.num_processes)]
      self._results[vote["round"]] = values
      self._condition.notify_all()
    if len(names) > 1:  # A bug, which would be much harder to find later.
      why = {"code": 1, "text": f"the processes are out of step: {sorted(names)}", "stopped": False}
      self._send_now({"kind": "leave", "process": 0} | why)
      self._on_end(0, why)
    self._send({"kind": "result", "round": vote["round"], "values": values})

  def _send(self, message: Message) -> None:
    self._outbox.put((None, message))

  def _send_now(self, message: Message) -> None:
    """Returns when the message is on its way, or shortly after: a receiver may hang."""
    self._send(message)
    sent = threading.Event()
    self._outbox.put((sent, None))
    sent.wait(2.0)

  def _send_all(self) -> None:
    while True:
      sent, message = self._outbox.get()
      if message is not None:
        for number, link in list(self._links.items()):
          if number not in self._gone:
            with contextlib.suppress(OSError):  # Its reader notices, too.
              _write_line(link, message)
      if sent is not None:
        sent.set()

  def _beat(self) -> None:
    while True:
      time.sleep(min(_BEAT_S, self._timeout / 4))
      self._send({"kind": "beat"})


def split_address(address: str) -> tuple[str, int]:
  """("host", port) of "host:port". Raises ConfigError."""
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise ConfigError(f"the coordinator's address {address!r} is not HOST:PORT")
  return host.strip("[]"), int(port)


def _server(host: str, port: int) -> socket.socket:
  if not host and socket.has_dualstack_ipv6():
    return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
  return socket.create_server((host, port))


def _unused_port() -> socket.socket:
  return _server("127.0.0.1", 0)


def _connect(host: str, port: int, deadline: float) -> socket.socket:
  """Tries again until process 0 is there."""
  while True:
    try:
      link = socket.create_connection((host, port), timeout=10.0)
    except OSError as error:
      if time.monotonic() > deadline:
        raise PeerLostError(
          f"process 0 did not answer at {host}:{port} in time ({error.strerror or error})"
        ) from error
      time.sleep(0.2)
    else:
      link.settimeout(None)
      link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
      return link


def _write_line(link: socket.socket, message: Message) -> None:
  link.sendall(json.dumps(message).encode() + b"\n")


def _read_line(link: socket.socket) -> Message | None:
  """One line, byte by byte: what follows it may belong to another protocol."""
  line = b""
  while not line.endswith(b"\n"):
    try:
      byte = link.recv(1)
    except OSError:
      return None
    if not byte or len(line) > 4096:
      return None
    line += byte
  try:
    message = json.loads(line)
  except ValueError:
    return None
  return message if isinstance(message, dict) else None


def _pump_both(
  first: socket.socket, second: socket.socket, hold: threading.Event | None = None
) -> None:
  """Copies bytes both ways; with `hold`, `first` sees no end of `second` until that is set."""

  def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
      while received := source.recv(65536):
        target.sendall(received)
    if hold is not None and source is second:
      hold.wait()
    for end in (source, target):
      with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)

  back = threading.Thread(target=pump, args=(second, first), daemon=True)
  back.start()
  pump(first, second)
  back.join()
