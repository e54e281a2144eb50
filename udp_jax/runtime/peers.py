"""Connections between the processes of a run, for liveness and small messages.

Process 0 listens at the coordinator's address; every other process keeps a connection to it. A
broken connection means that the process died, a silent one that its host hangs or is gone; either
ends the other processes. jax's own coordination service is reached through the same port, by a
relay that keeps the clients' side open: its clients abort with a stack trace when the service dies.

Messages are lines of JSON. This module does not import jax.
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
    process_id, num_processes: as given to the constructor.
    service_address: "host:port" of jax's coordination service (process 0) or of the relay to it.
    left: set once this process ends in order; broken connections are ignored from then on.
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
      num_processes: number of processes in the run, at least 2.
      process_id: number of this process, from 0.
      peer_timeout_s: seconds of silence after which a process counts as lost.
      on_end: called in a thread with the number of a process and {"lost": how} if it died, or
        {"code": ..., "text": ..., "stopped": ...} if it left before the others.
      on_stop: called in a thread with a signal's number when another process was asked to stop.
      start_timeout_s: seconds to wait for the other processes.

    Raises:
      ConfigError: the address cannot be used, or the processes disagree about who they are.
      PeerLostError: some processes did not connect in time.
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
    # A single thread sends, so that a signal handler can send without waiting for a lock.
    self._outbox: queue.SimpleQueue = queue.SimpleQueue()
    self._thread(self._send_all)
    # A single thread reports ended processes, in the order in which their ends were noticed.
    self._ends: queue.SimpleQueue = queue.SimpleQueue()
    self._thread(self._report_ends)
    deadline = time.monotonic() + start_timeout_s
    if process_id == 0:
      self._listen(deadline)
    else:
      self._join(deadline)
    self._thread(self._beat)

  # --- Collective calls

  def gather(self, value: Any, name: str) -> list[Any]:
    """Returns every process's JSON `value`, by process number, once all have called it.

    All processes must make the same calls in the same order; `name` checks that they do.
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
    """Tells the other processes of a signal, once. Safe in a signal handler."""
    if not self._stopping:
      self._stopping = True
      self._send({"kind": "stop", "signal": number})

  def leave(self, code: int, text: str, *, stopped: bool = False) -> None:
    """Announces this process's end and waits up to 2 s until sent; `stopped`: it was asked to."""
    self.left.set()
    why = {"process": self.process_id, "code": code, "text": text, "stopped": stopped}
    self._send_now({"kind": "leave"} | why, 2.0)

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
    """Reads the first line of a new connection: a process, or its relay to jax's service."""
    hello = _read_line(connection) or {}
    number, count = hello.get("process"), hello.get("num_processes")
    if hello.get("kind") == "relay":
      # The service starts after all processes are connected, so it may need a moment.
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
    else:  # Not a process of this run.
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
        # jax's client must not notice that its service is gone: it would abort this process.
        self._thread(partial(_pump_both, downstream, upstream, self.left))

    self._thread(relay)

  # --- Threads

  def _thread(self, target: Callable[[], None]) -> None:
    def run() -> None:
      with contextlib.suppress(OSError):  # The socket was closed in the meantime.
        target()

    threading.Thread(target=run, daemon=True).start()

  def _read(self, number: int, link: socket.socket) -> None:
    """Handles the messages of process `number` until its connection breaks."""
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
    """Records that a process ended; only the first report counts."""
    with self._condition:
      if number in self._gone:
        return
      self._gone.add(number)
      self._ends.put((number, {name: value for name, value in how.items() if name != "kind"}))

  def _report_ends(self) -> None:
    """Forwards each end to the other processes, then reports it in this one."""
    while True:
      number, how = self._ends.get()
      if self.process_id == 0:
        # `on_end` ends this process too: the others must first hear of the cause.
        self._send_now({"kind": "leave", "process": number} | how, self._timeout)
      if not self.left.is_set():
        self._on_end(number, how)

  def _count(self, number: int, vote: Message) -> None:
    """Stores a vote in process 0, and sends the result once all votes are in."""
    with self._condition:
      votes = self._votes.setdefault(vote["round"], {})
      votes[number] = vote
      if len(votes) < self.num_processes:
        return
      del self._votes[vote["round"]]
      names = {found["name"] for found in votes.values()}
      values = [votes[i]["value"] for i in range(self.num_processes)]
      if len(names) == 1:
        self._results[vote["round"]] = values
        self._condition.notify_all()
    if len(names) > 1:  # End the run: this bug would be much harder to find later.
      text = f"the processes are out of step: {sorted(names)}"
      self._ended(0, {"code": 1, "text": text, "stopped": False})
      return
    self._send({"kind": "result", "round": vote["round"], "values": values})

  def _send(self, message: Message) -> None:
    self._outbox.put((None, message))

  def _send_now(self, message: Message, timeout_s: float) -> None:
    """Sends a message and waits until it is sent, at most `timeout_s` as a receiver may hang."""
    self._send(message)
    sent = threading.Event()
    self._outbox.put((sent, None))
    sent.wait(timeout_s)

  def _send_all(self) -> None:
    while True:
      sent, message = self._outbox.get()
      if message is not None:
        for number, link in list(self._links.items()):
          if number not in self._gone:
            with contextlib.suppress(OSError):  # The thread that reads this link notices, too.
              _write_line(link, message)
      if sent is not None:
        sent.set()

  def _beat(self) -> None:
    while True:
      time.sleep(min(_BEAT_S, self._timeout / 4))
      self._send({"kind": "beat"})


def split_address(address: str) -> tuple[str, int]:
  """Splits "host:port" into ("host", port). Raises ConfigError if that is impossible."""
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
  """Connects to a server, retrying until it answers or the deadline passes."""
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
  """Reads one line byte by byte, because later bytes may belong to another protocol."""
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
  """Copies bytes both ways; with `hold`, hides the end of `second` from `first` until it is set."""

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
