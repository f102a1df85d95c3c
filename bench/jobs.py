"""Jobs of several ranks that live at the same time and work in turn: the others sleep in a read of a socket meanwhile."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

START_S, ANSWER_S = 120.0, 600.0


class Job(AbstractContextManager["Job"]):
    """A job, and a socket to each of its ranks, which run `answer_lines` on the address that is the command's last word."""

    def __init__(self, command: list[str], ranks: int, environment: Mapping[str, str], folder: Path | None = None):
        self._place = tempfile.TemporaryDirectory(prefix="bench-")
        address = f"{self._place.name}/door"
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(address)
            door.listen(ranks)
            door.settimeout(START_S)
            self._process = subprocess.Popen([*command, address], env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL)
            try:
                self._ranks = [door.accept()[0] for _ in range(ranks)]
            except TimeoutError:
                self._process.kill()
                raise TimeoutError(f"no answer in {START_S:.0f} s from the ranks of {' '.join(command)}") from None
        for rank in self._ranks:
            rank.settimeout(ANSWER_S)
        self._files = [rank.makefile("r") for rank in self._ranks]

    def ask(self, line: str) -> list[str]:
        """Send a line to all ranks; returns their answers. Raises: ConnectionError if a rank has ended, TimeoutError."""
        for rank in self._ranks:
            rank.sendall(f"{line}\n".encode())
        answers = [file.readline() for file in self._files]
        if not all(answers):
            raise ConnectionError(f"a rank ended, asked for: {line}")
        return [answer.rstrip("\n") for answer in answers]

    def __exit__(self, *_: object) -> None:
        """Close the sockets, at which the ranks end."""
        for file, rank in zip(self._files, self._ranks, strict=True):
            file.close()
            rank.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._place.cleanup()


def answer_lines(address: str, answer: Callable[[str], str]) -> None:
    """Answer each line that comes from the job's starter, until it closes the socket."""
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(address)
        with door.makefile("r") as lines:
            for line in lines:
                door.sendall(f"{answer(line.strip())}\n".encode())
