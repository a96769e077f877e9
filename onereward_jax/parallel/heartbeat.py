"""How several processes end as one.

The first that ends with an error ends all of them, with its exit code and its sentence; so does the absence of one's
heartbeat. What is restarted resumes from the newest checkpoint.
"""

import itertools
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from onereward_jax.errors import Fault
from onereward_jax.parallel import hosts

_ENDED, _BEATS, _LEFT = "onereward/ended/", "onereward/heartbeats/", "onereward/left/"
_INTERVAL = 1.0  # seconds between two heartbeats
_FAREWELL = 10.0  # seconds that the primary stays for the others to see how the run ended: it holds the service


def run_together(run: Callable[[], int]) -> int:
    """Runs a program that returns an exit code and says why before it does, in one or several processes.

    Of several processes, the first that ends with a code other than 0 ends all, wherever they are, with that code; a
    program asks `announce_end` before it prints an error. A killed process is found by its missing heartbeat: exit code
    75. If the primary was killed, JAX ends the others at once by SIGABRT: it holds the service by which they know each
    other.
    """
    try:
        code = run()
        if not code:
            hosts.wait_for_all("end")
    except Exception as error:  # a defect: the others are told that this process ends, and its traceback is printed
        if (team := hosts.team()) is None:
            raise
        if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" not in str(error):
            team.over.wait(team.timeout + 5)  # most likely another process died in the middle of a computation
        if announce_end(1):
            traceback.print_exc()
        code = 1
    if (team := hosts.team()) is None:
        return code
    if code:
        announce_end(code)
        leave(team)
    team.over.set()
    import jax

    jax.distributed.shutdown()
    return 0


def announce_end(code: int) -> bool:
    """Tells all processes that the run is over with this exit code, and returns whether this one was first to tell."""
    if (team := hosts.team()) is None or team.spoke:
        return True
    team.spoke = True  # before the others, and the thread that watches, know
    try:
        team.client.key_value_set(f"{_ENDED}code", str(code))
    except Exception:  # it is there already, or the service is gone
        team.spoke = False
    return team.spoke


def leave(team: hosts.Team) -> NoReturn:
    """Ends this process with the exit code announced first; Python's own end would wait for the others."""
    code = Fault.CODE
    try:
        code = int(dict(team.client.key_value_dir_get(_ENDED))[f"{_ENDED}code"])
        team.client.key_value_set(f"{_LEFT}{team.index}", "", allow_overwrite=True)
        deadline = time.monotonic() + _FAREWELL
        while team.index == 0 and time.monotonic() < deadline:
            if len(team.client.key_value_dir_get(_LEFT)) == team.count:
                break
            time.sleep(_INTERVAL / 10)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def watch(team: hosts.Team) -> None:
    """Sends heartbeats and ends this process when the run is over; the primary ends the run when one is silent."""
    watched = range(1, team.count) if team.index == 0 else ()
    seen = {f"{_BEATS}{index}": ("", time.monotonic()) for index in watched}
    for beat in itertools.count():
        if team.over.wait(_INTERVAL):
            return
        try:
            team.client.key_value_set(f"{_BEATS}{team.index}", str(beat), allow_overwrite=True)
            over = bool(team.client.key_value_dir_get(_ENDED))
            beats = dict(team.client.key_value_dir_get(_BEATS)) if watched else {}
        except Exception:  # the primary is gone: JAX ends this one
            continue
        if over and not team.spoke:
            leave(team)
        now = time.monotonic()
        for name, (last, since) in seen.items():
            if beats.get(name, "") != last:
                seen[name] = (beats[name], now)
            elif now - since > team.timeout and not team.spoke and announce_end(Fault.CODE):
                print(
                    f"onereward: process {name.removeprefix(_BEATS)} of {team.count} has sent no heartbeat for"
                    f" {team.timeout:g} s: the same command in all of them resumes from the newest checkpoint",
                    file=sys.stderr,
                )
                leave(team)
