"""A host for tests and benchmarks: a real server, with keys and a configuration of its own.

It is on loopback, or at the far end of a line, in a network namespace.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from line import Line

SERVER = "/usr/sbin/sshd"


class Sshd:
    """Serves until it is stopped. Nothing of the user's own `ssh` is read or written."""

    def __init__(self, directory: Path, line: Line | None = None) -> None:
        self.directory = directory
        self.address = line.address if line else "127.0.0.1"
        self._inside = ["ip", "netns", "exec", line.namespace] if line else []
        self.work = directory / "work"
        self.temp = directory / "tmp"
        self.temp.mkdir(parents=True, exist_ok=True)
        for name in ("host_key", "user_key"):
            (directory / name).unlink(missing_ok=True)
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
            subprocess.run(command, check=True)
        shutil.copy(directory / "user_key.pub", directory / "authorized_keys")
        self._process: subprocess.Popen[bytes] | None = None
        while self._process is None:
            with socket.socket() as free:
                # Free here; nobody else serves in a namespace.
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
            self._process = self._start()
        (directory / "known_hosts").unlink(missing_ok=True)
        self.know(self.port)
        (directory / "ssh_config").write_text(
            f"Host *\n User {getpass.getuser()}\n IdentityFile {directory}/user_key\n IdentitiesOnly yes\n"
            f" IdentityAgent none\n UserKnownHostsFile {directory}/known_hosts\n GlobalKnownHostsFile /dev/null\n",
            encoding="utf-8",
        )
        ssh = directory / "bin" / "ssh"
        ssh.parent.mkdir(exist_ok=True)
        ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {directory}/ssh_config "$@"\n', encoding="utf-8")
        ssh.chmod(0o755)

    def introduce(self, other: Sshd) -> None:
        """Has the `ssh` that knows this host know another, too, and be let in there."""
        shutil.copy(self.directory / "authorized_keys", other.directory / "authorized_keys")
        with open(self.directory / "known_hosts", "a", encoding="utf-8") as known:
            known.write((other.directory / "known_hosts").read_text(encoding="utf-8"))

    def know(self, port: int) -> None:
        """Has `ssh` know that the host is behind this port, too."""
        host_key = (self.directory / "host_key.pub").read_text(encoding="utf-8")
        with open(self.directory / "known_hosts", "a", encoding="utf-8") as known:
            known.write(f"[{self.address}]:{port} {host_key}")

    def _start(self) -> subprocess.Popen[bytes] | None:
        config = self.directory / "sshd_config"
        config.write_text(
            # With the first line, bash leaves out what the user's own ~/.bashrc does.
            f"SetEnv SHLVL=2 TMPDIR={self.temp}\nListenAddress {self.address}:{self.port}\n"
            f"HostKey {self.directory}/host_key\n"
            f"AuthorizedKeysFile {self.directory}/authorized_keys\nPidFile none\nUsePAM no\nStrictModes no\n"
            "PasswordAuthentication no\nPermitRootLogin yes\nMaxStartups 100\nPrintMotd no\nLogLevel ERROR\n",
            encoding="utf-8",
        )
        if os.getuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        with open(self.directory / "log", "wb") as log:
            command = [*self._inside, SERVER, "-D", "-e", "-f", str(config)]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        while process.poll() is None:
            try:
                with socket.create_connection((self.address, self.port)) as connection:
                    if connection.recv(4) == b"SSH-":
                        return process
            except OSError:
                time.sleep(0.01)
        return None

    @property
    def search_path(self) -> str:
        """`PATH` with the `ssh` that knows this host."""
        return f"{self.directory / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def item(self, slots: int) -> str:
        """The host as an item of `hosts`."""
        return f'{{ host = "{self.address}", port = {self.port}, slots = {slots}, workdir = "{self.work}" }}'

    def runs(self) -> list[Path]:
        """The directories of runs."""
        return [*self.work.glob("*/run-*"), *self.work.glob("*/new-*"), *self.temp.glob("offload-*")]

    def connections(self) -> list[int]:
        """The processes that serve connections."""
        assert self._process is not None
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self._process.pid)], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def cut(self) -> None:
        """Breaks all connections; the server goes on."""
        for pid in self.connections():
            os.kill(pid, 9)

    def stop(self) -> None:
        """Ends the server."""
        self.cut()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
