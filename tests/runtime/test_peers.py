"""Connections between processes, here between threads of one: real sockets, no jax."""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from udp_jax.errors import ConfigError, PeerLostError
from udp_jax.runtime import peers

SOON_S = 20.0


def free_port() -> int:
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


class Heard:
  """What a process was told."""

  def __init__(self):
    self.ends, self.stops, self.event = [], [], threading.Event()

  def end(self, number, how):
    self.ends.append((number, how))
    self.event.set()

  def stop(self, number):
    self.stops.append(number)
    self.event.set()


def connect(count, *, timeout_s=30.0, counts=None, start_timeout_s=SOON_S):
  """All processes of a group: [(Peers or what it raised, Heard)]."""
  address, heard = f"127.0.0.1:{free_port()}", [Heard() for _ in range(count)]

  def one(i):
    try:
      return peers.Peers(
        address,
        counts[i] if counts else count,
        i,
        peer_timeout_s=timeout_s,
        on_end=heard[i].end,
        on_stop=heard[i].stop,
        start_timeout_s=start_timeout_s,
      )
    except Exception as error:  # Returned, to be looked at.
      return error

  with ThreadPoolExecutor(count) as pool:
    return list(zip(pool.map(one, range(count)), heard))


def together(group, call):
  with ThreadPoolExecutor(len(group)) as pool:
    return list(pool.map(lambda indexed: call(indexed[0], indexed[1][0]), enumerate(group)))


def break_connections(peer):
  """What the kernel does for a process that is killed; that says nothing more, of itself or others.

  Its threads live on here, and what they saw of one broken connection would go out by the next.
  """
  links, peer._links = peer._links, {}
  for link in links.values():
    with contextlib.suppress(OSError):  # The other end was faster.
      link.shutdown(socket.SHUT_RDWR)


def test_everyone_learns_what_everyone_said():
  group = connect(4)
  for turn in range(50):
    values = together(group, lambda i, peer, turn=turn: peer.gather({"v": i + turn}, "turn"))
    assert values == [[{"v": i + turn} for i in range(4)]] * 4


def test_a_gather_waits_for_the_last():
  group = connect(3)

  def late(i, peer):
    time.sleep(0.4 if i == 1 else 0.0)
    start = time.monotonic()
    peer.gather(None, "barrier")
    return time.monotonic() - start

  waited = together(group, late)
  assert waited[1] < 0.3 < min(waited[0], waited[2])


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_a_death_is_known_to_all_others(dead):
  group = connect(3)
  break_connections(group[dead][0])
  for i, (_, heard) in enumerate(group):
    if i != dead:
      assert heard.event.wait(SOON_S)
      number, how = heard.ends[0]
      assert (number, "lost" in how) == (dead, True), heard.ends


def test_the_cause_of_an_end_is_heard_before_its_effect(monkeypatch):
  """Process 0 ends because process 1 died: process 2 hears of the death first, by a slow line."""
  group = connect(3)
  write_line = peers._write_line

  def slowly(link, message):
    time.sleep(0.3 if message["kind"] == "leave" else 0.0)
    write_line(link, message)

  monkeypatch.setattr(peers, "_write_line", slowly)
  monkeypatch.setattr(group[0][0], "_on_end", lambda number, how: break_connections(group[0][0]))
  break_connections(group[1][0])
  heard = group[2][1]
  assert heard.event.wait(SOON_S)
  number, how = heard.ends[0]
  assert (number, "lost" in how) == (1, True), heard.ends


def test_nothing_is_reported_before_it_is_passed_on(monkeypatch):
  """However long that takes; a machine may be busy."""
  group = connect(3)
  write_line, stuck = peers._write_line, threading.Event()

  def slowly(link, message):
    if message["kind"] == "leave":
      assert stuck.wait(SOON_S)
    write_line(link, message)

  monkeypatch.setattr(peers, "_write_line", slowly)
  monkeypatch.setattr(group[0][0], "_on_end", lambda number, how: break_connections(group[0][0]))
  break_connections(group[1][0])
  time.sleep(2.5)
  assert group[0][0]._links, "process 0 ended before the others heard why"
  stuck.set()
  heard = group[2][1]
  assert heard.event.wait(SOON_S)
  number, how = heard.ends[0]
  assert (number, "lost" in how) == (1, True), heard.ends


def test_ends_are_heard_once_and_everywhere_in_one_order(monkeypatch):
  """Two hundred ends, each noticed by two of eight threads at about the same time."""
  count = 200
  group = connect(2)
  write_line, jitter = peers._write_line, random.Random(0)

  def slowly(link, message):
    if jitter.random() < 0.2:  # Then several wait for it, and go on at once.
      time.sleep(0.005)
    write_line(link, message)

  monkeypatch.setattr(peers, "_write_line", slowly)
  main = group[0][0]
  ready = threading.Barrier(8)

  def notice(thread):
    ready.wait(SOON_S)
    for number in range(100 + thread // 2, 100 + count, 4):
      main._ended(number, {"kind": "lost", "lost": str(thread)})

  interval = sys.getswitchinterval()
  sys.setswitchinterval(1e-6)
  try:
    with ThreadPoolExecutor(8) as pool:
      list(pool.map(notice, range(8)))
  finally:
    sys.setswitchinterval(interval)
  deadline = time.monotonic() + SOON_S
  while len(group[1][1].ends) < count and time.monotonic() < deadline:
    time.sleep(0.01)
  here, there = (heard.ends for _, heard in group)
  assert sorted(number for number, _ in here) == [*range(100, 100 + count)]
  assert [number for number, _ in here] == [number for number, _ in there]


def test_silence_is_a_loss():
  group = connect(2, timeout_s=1.0)
  start = time.monotonic()
  group[1][0]._send = lambda message: None  # Alive, but it says no more.
  assert group[0][1].event.wait(SOON_S)
  assert group[0][1].ends == [(1, {"lost": "silent for 1 s"})]
  assert 0.8 < time.monotonic() - start < 10


def test_what_is_no_message_is_a_loss():
  group = connect(2)
  group[1][0]._links[0].sendall(b"\xff\n")
  assert group[0][1].event.wait(SOON_S)
  assert group[0][1].ends == [(1, {"lost": "it sent what is no message"})]


@pytest.mark.slow
def test_beats_keep_a_quiet_group_together():
  group = connect(2, timeout_s=1.0)
  time.sleep(2.5)
  assert together(group, lambda i, peer: peer.gather(i, "after")) == [[0, 1]] * 2
  assert not any(heard.ends for _, heard in group)


def test_whoever_leaves_says_why():
  group = connect(3)
  group[2][0].leave(4, "the disk is full")
  for i in (0, 1):
    assert group[i][1].event.wait(SOON_S)
    expected = {"code": 4, "text": "the disk is full", "stopped": False}
    assert group[i][1].ends == [(2, expected)]


def test_leaving_in_order_is_no_loss():
  group = connect(3)
  together(group, lambda i, peer: (peer.gather(None, "finish"), peer.left.set(), peer.leave(0, "")))
  together(group, lambda i, peer: break_connections(peer))
  time.sleep(0.3)
  assert not any(heard.ends for _, heard in group)


@pytest.mark.parametrize("asked", [0, 2])
def test_a_request_to_stop_reaches_the_others_once(asked):
  group = connect(3)
  for _ in range(3):
    group[asked][0].ask_to_stop(15)
  together(group, lambda i, peer: peer.gather(None, "later"))
  time.sleep(0.2)
  assert [heard.stops for _, heard in group] == [[] if i == asked else [15] for i in range(3)]


def test_processes_that_are_out_of_step_are_a_bug_that_shows():
  group = connect(2)
  threads = [
    threading.Thread(target=peer.gather, args=(None, name), daemon=True)
    for (peer, _), name in zip(group, ("here", "there"))
  ]
  for thread in threads:
    thread.start()
  assert group[0][1].event.wait(SOON_S) and group[1][1].event.wait(SOON_S)
  assert "out of step: ['here', 'there']" in group[0][1].ends[0][1]["text"]


def test_who_does_not_appear_is_named():
  group = connect(1, counts=[3], start_timeout_s=0.5)
  assert isinstance(group[0][0], PeerLostError)
  assert str(group[0][0]) == "process 1 of 3 did not appear in time"


def test_nobody_at_the_address():
  with pytest.raises(PeerLostError, match=r"process 0 did not answer at 127.0.0.1:\d+ in time"):
    peers.Peers(
      f"127.0.0.1:{free_port()}",
      2,
      1,
      peer_timeout_s=1.0,
      on_end=Heard().end,
      on_stop=Heard().stop,
      start_timeout_s=0.5,
    )


def test_disagreement_about_the_number_of_processes():
  for peer, _ in connect(2, counts=[2, 3]):
    assert isinstance(peer, ConfigError)
    assert str(peer) == "process 0 is one of 2, process 1 one of 3"


def test_a_port_in_use():
  with socket.create_server(("127.0.0.1", 0)) as server:
    address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ConfigError, match="cannot listen at the coordinator's port"):
      peers.Peers(address, 2, 0, peer_timeout_s=1.0, on_end=Heard().end, on_stop=Heard().stop)


def test_strangers_at_the_port_do_no_harm():
  group = connect(2)
  address = ("127.0.0.1", group[0][0]._port)
  for line in (b"\xff\n", b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"kind": "hello"}\n', b""):
    with socket.create_connection(address) as stranger:
      stranger.sendall(line)
  assert together(group, lambda i, peer: peer.gather(i, "after")) == [[0, 1]] * 2
  assert not any(heard.ends for _, heard in group)


def test_the_relay_carries_bytes_and_outlives_the_service():
  """A client of jax's aborts its process when the connection breaks: it must not see that."""
  group = connect(2)
  service = socket.create_server(peers.split_address(group[0][0].service_address))
  client = socket.create_connection(peers.split_address(group[1][0].service_address))
  served, _ = service.accept()
  client.sendall(b"question")
  assert served.recv(64) == b"question"
  served.sendall(b"answer")
  assert client.recv(64) == b"answer"
  served.close()
  service.close()
  client.settimeout(0.5)
  with pytest.raises(TimeoutError):
    client.recv(64)
  group[1][0].left.set()  # In order: now it is let go.
  client.settimeout(SOON_S)
  assert client.recv(64) == b""


@pytest.mark.parametrize("address", ["host", ":80", "host:", "host:x", "host:0", "host:70000", ""])
def test_addresses_that_are_none(address):
  with pytest.raises(ConfigError, match="is not HOST:PORT"):
    peers.split_address(address)


def test_addresses():
  assert peers.split_address("10.0.0.1:80") == ("10.0.0.1", 80)
  assert peers.split_address("[::1]:80") == ("::1", 80)
