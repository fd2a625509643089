#!/usr/bin/env python3
"""A long line to a network namespace, for tests and benchmarks: packets arrive late, or not at all while it is cut.

Two TUN devices, one here and one in a namespace of the line's own, and this program between them. What is sent over a
proxy is acknowledged by the proxy; here the two ends talk to each other, and notice what they would of a bad network.

    line.py [--delay SECONDS]

makes both, says where it is (`NAMESPACE ADDRESS`, on a line) and takes orders from its standard input, of which it says
when they are done: `cut`, `mend`, `delay SECONDS`. When its input ends, both are gone.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time

TUN = "/dev/net/tun"
# From linux/if_tun.h.
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
# Large packets, because each costs a turn of a loop in Python.
MTU = 65000
# Bursts wait; they are not dropped.
QUEUE = 10_000


class Missing(Exception):
    """There can be no line on this machine; why."""


class Line:
    """The line, for who starts this program from Python."""

    def __init__(self, delay: float = 0.0) -> None:
        command = [sys.executable, os.path.realpath(__file__), "--delay", str(delay)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline().split()
        if len(said) != 2:
            _, why = self._process.communicate()
            raise Missing(why.strip())
        #: The namespace at the far end, and the address by which it is reached from here.
        self.namespace, self.address = said

    def cut(self) -> None:
        """From now on nothing arrives, at neither end. Neither hears of it."""
        self._order("cut")

    def mend(self) -> None:
        """From now on packets arrive again. Those of meanwhile are lost."""
        self._order("mend")

    def delay(self, seconds: float) -> None:
        """From now on packets take so long, in each direction."""
        self._order(f"delay {seconds}")

    def _order(self, order: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == order + "\n", "the line is gone"

    def close(self) -> None:
        """Takes the line and its namespace away. What runs in the namespace goes on, without a network."""
        self._process.communicate()


class Direction:
    """Packets on their way from one device to the other, in order."""

    def __init__(self, source: int, target: int) -> None:
        self.source = source
        self.target = target
        self.packets: collections.deque[tuple[float, bytes]] = collections.deque()

    def take(self, due: float) -> None:
        """Takes what has been sent into the line."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.packets.append((due, os.read(self.source, 1 << 16)))

    def deliver(self, now: float) -> None:
        """Has arrive what has been on its way for long enough."""
        while self.packets and self.packets[0][0] <= now:
            _, packet = self.packets.popleft()
            # A device that does not take it loses it, as any does.
            with contextlib.suppress(OSError):
                os.write(self.target, packet)


def ip(*words: str) -> None:
    """Runs the command `ip`."""
    try:
        done = subprocess.run(["ip", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise Missing("there is no `ip` (apt-get install iproute2)") from error
    if done.returncode != 0:
        raise Missing(f"`ip {' '.join(words)}` failed: {done.stderr.strip()}")


def open_tun(name: str) -> int:
    """A new device; it is there for as long as its descriptor is open."""
    try:
        device = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode("ascii"), IFF_TUN | IFF_NO_PI))
    except OSError as error:
        raise Missing(f"no device can be made with {TUN}: {error.strerror}") from error
    return device


def join(near: int, far: int, delay: float) -> None:
    """Passes packets on until the standard input ends."""
    directions = (Direction(near, far), Direction(far, near))
    whole = True
    orders = b""
    while True:
        waiting = [direction.packets[0][0] for direction in directions if direction.packets]
        patience = max(0.0, min(waiting) - time.monotonic()) if waiting else None
        readable, _, _ = select.select([0, near, far], [], [], patience)
        now = time.monotonic()
        for direction in directions:
            if direction.source in readable:
                direction.take(now + delay)
            if whole:
                direction.deliver(now)
            else:
                direction.packets.clear()
        if 0 not in readable:
            continue
        said = os.read(0, 4096)
        if not said:
            return
        *complete, orders = (orders + said).split(b"\n")
        for order in complete:
            words = order.decode("ascii").split()
            if words[:1] == ["delay"]:
                delay = float(words[1])
            elif words in (["cut"], ["mend"]):
                whole = words == ["mend"]
                for direction in directions:
                    direction.take(now)
                    direction.packets.clear()
            else:
                raise SystemExit(f"error: what is {order!r}?")
            print(order.decode("ascii"), flush=True)


def main() -> None:
    """The whole program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, default=0.0, help="how long a packet is on its way, in seconds")
    options = parser.parse_args()
    name = f"ol{os.getpid()}"
    # A pair of addresses out of those that are for nobody's use in public; several lines may be there at once.
    pair = (100 << 24) + (64 << 16) + 2 * random.SystemRandom().randrange(1 << 21)
    here, there = (".".join(str(byte) for byte in number.to_bytes(4, "big")) for number in (pair, pair + 1))
    try:
        near, far = open_tun(f"{name}n"), open_tun(f"{name}f")
        ip("netns", "add", name)
        try:
            ip("link", "set", f"{name}f", "netns", name)
            ip("-n", name, "link", "set", "lo", "up")
            for inside, device, own, other in (((), "n", here, there), (("-n", name), "f", there, here)):
                ip(*inside, "address", "add", own, "peer", other, "dev", name + device)
                ip(*inside, "link", "set", name + device, "mtu", str(MTU), "txqueuelen", str(QUEUE), "up")
            print(name, there, flush=True)
            join(near, far, options.delay)
        finally:
            ip("netns", "delete", name)
    except Missing as why:
        raise SystemExit(str(why)) from None


if __name__ == "__main__":
    main()
