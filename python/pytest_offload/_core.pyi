"""The extension module: the orchestrator, in Rust.

A session begins when it is made: the template process starts at once, and collection with it. Its options:

- `args`, `mainargv`, `workers`, `run_uid`, `collect`, `start_method`, `isolation`, `basetemp`, `max_fail`,
  `yield_on_failure` (whether a worker gives its tests back after a failure) go into the `init` message as they are,
  then what the JSON object `init_extra` has;
- `stop_after` (None or 0: none): after how many failures tests that come later are not started;
- `template_pid`: a child of this process that is the template and waits for what `meeting_point` says;
- `cwd`, `python`, `worker_py`: what is started, and where; `env` (dict): variables on top of the environment;
- `secrets` (list): values that are masked in everything that comes back;
- `retries`, `timeout_secs` (None or 0: none), `junit`, `history` (paths or None), `record_history` (True), `dist`;
- `crash_retries`: how often a test is tried again whose process died (0);
- `inherit_output`, `continue_on_collection_errors` (bool);
- `flush_ms`: how long events may be held back to come together (20);
- `configuration`: what makes sandboxes that are somewhere else, `output_dir`: where that may keep what it remembers,
  `root`: the directory whose files travel there (None: whoever makes them looks for it);
- `hold`: `init` is not sent before `configure` is called.

`cwd`, `python`, `worker_py` and `workers` are required; further options are ignored.

Events that the protocol's page does not list: `("not_run", key, nodeid, reason)` at the end, for each test without an
outcome; `("worker_lost", worker, reason)`, a worker broke and no test is to blame (`worker_down` comes too);
`("run_warning", text)`, users should know, and no result changes; `("problem", text)`, the run cannot go on or is not
complete (the template died, workers keep breaking); `("collection_errors", n)`, no test will be run because of them.
`crashed` ends with `seconds, timed_out` after `attempt`.
"""

from collections.abc import Callable
from typing import Any

__version__: str

def settings(start_dir: str, path: str | None, overrides: list[tuple[str, Any, str]]) -> dict[str, Any]:
    """The configuration of a run that is started in `start_dir`: what was typed (key, value, option) over the
    environment, over the file `path` or the one that is found, over defaults. `ValueError`: the whole diagnosis."""

class Configuration:
    """A resolved configuration, for a session."""

class Session:
    def __init__(self, options: dict[str, Any]) -> None: ...
    def configure(self, extra: dict[str, Any] | None = None) -> None:
        """Sends `init`, for a session made with `hold`; `extra` is merged into it."""

    @property
    def meeting_point(self) -> tuple[str, str] | None:
        """Where a template that was forked before connects: the path of a socket, and the nonce to say there."""

    def tell(self, message: dict[str, Any]) -> None:
        """Gives the template a message, which it has after `init`."""

    def run(self, on_event: Callable[[list[tuple[Any, ...]]], object]) -> int:
        """Hands events over until the run is over; the exit code that `offload` would have.

        An exception of the callback or of a signal handler cancels the run and comes out of here when everything is
        cleaned up.
        """

    def leftover(self) -> list[tuple[Any, ...]]:
        """The events that an exception kept `run` from handing over."""

    def cancel(self) -> None:
        """Ends the run in order; the second time at once. Does not wait."""

    def drop_after(self, key: int) -> None:
        """Has no test with a larger key started any more. Does not wait."""

    def name_tests(self) -> None: ...
    def set_environ(self, changed: dict[str, str | None]) -> None:
        """Changes variables for a template that is started again; None removes one."""

    @staticmethod
    def stop_tests(stop: bool) -> None:
        """Stops the tests that run on this machine, or has them go on."""

    def close(self) -> None:
        """Cancels the run if it still goes on, and waits for its end."""

def main() -> int:
    """The program `offload`, with the arguments in `sys.argv`; its exit code."""
